//! Publishing in the background, right after a commit.

use std::{collections::HashSet, sync::Arc};

use tokio::sync::Semaphore;

use super::RelayError;
use crate::kafka::ProduceError;

/// Groups that are published in the background at once. A later pass publishes each group above it.
const MAX_PUBLISHING_GROUPS: usize = 64;

/// The groups that are published in the background, a bounded number. Cheap to clone; all clones
/// share their limit.
#[derive(Clone)]
pub(super) struct Background(Arc<Semaphore>);

impl Default for Background {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_PUBLISHING_GROUPS)))
    }
}

impl Background {
    /// Runs `work` on a group, unless the group is empty or too many are published already.
    pub(super) fn publish<T, W>(&self, group: Vec<T>, work: impl FnOnce(Vec<T>) -> W)
    where
        W: Future<Output = Result<(), RelayError>> + Send + 'static,
    {
        if group.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else { return };
        let (messages, work) = (group.len(), work(group));
        tokio::spawn(async move {
            if let Err(error) = work.await {
                tracing::warn!(messages, %error, "publishing failed, a later pass repeats it");
            }
            drop(permit);
        });
    }

    /// Waits until no group is published.
    pub(super) async fn drain(&self) {
        let all = u32::try_from(MAX_PUBLISHING_GROUPS).unwrap_or(u32::MAX);
        let _closed = self.0.acquire_many(all).await;
    }
}

/// The part of `group` that the broker has acknowledged. It may acknowledge some although others
/// fail.
pub(super) fn acknowledged<'g, T>(group: &'g [T], result: &Result<(), ProduceError>) -> Vec<&'g T> {
    match result {
        Ok(()) => group.iter().collect(),
        Err(ProduceError::TooLarge { numbers, .. }) => {
            let too_large: HashSet<_> = numbers.iter().copied().collect();
            let numbered = group.iter().enumerate();
            let small_enough = numbered.filter(|(number, _)| !too_large.contains(number));
            small_enough.map(|(_, message)| message).collect()
        }
        Err(ProduceError::Kafka(_)) => Vec::new(),
    }
}
