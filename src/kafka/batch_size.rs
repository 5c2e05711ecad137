use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use rdkafka::{ClientConfig, admin::AdminClient, client::DefaultClientContext};
use tokio::sync::Mutex;

use super::topic_settings::TopicSettings;

/// The largest batch where no topic asks for less, bytes: less than a topic takes by default.
pub(super) const MAX_BATCH_BYTES: usize = 900_000;
/// No batch limit is lower, bytes. A message that is larger is a batch by itself.
pub(super) const MIN_BATCH_BYTES: usize = 1024;
/// A topic is not asked again sooner than this.
const ASK_EVERY: Duration = Duration::from_secs(10);
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks topics how large a batch they take.
#[derive(Debug, Default)]
pub(super) struct BatchLimits {
    asked: Mutex<HashMap<String, Instant>>,
}

impl BatchLimits {
    /// The largest batch that every one of these topics takes, bytes. `None` where the broker does
    /// not say so within 5 s, or all were asked less than 10 s ago.
    pub(super) async fn ask(&self, config: &ClientConfig, topics: &[&str]) -> Option<usize> {
        // Who comes meanwhile waits, and then need not ask.
        let mut asked = self.asked.lock().await;
        let now = Instant::now();
        asked.retain(|_, at| now.duration_since(*at) < ASK_EVERY);
        // The broker refuses to describe a topic twice.
        let due: BTreeSet<_> =
            topics.iter().copied().filter(|topic| !asked.contains_key(*topic)).collect();
        let due: Vec<_> = due.into_iter().collect();
        if due.is_empty() {
            return None;
        }
        let admin: AdminClient<DefaultClientContext> = config.create().ok()?;
        let described = TopicSettings::describe(&admin, &due, ASK_TIMEOUT).await;
        asked.extend(due.iter().map(|topic| ((*topic).to_owned(), Instant::now())));
        // It waits for its thread.
        drop(tokio::task::spawn_blocking(move || drop(admin)));
        let described = described.inspect_err(|error| {
            tracing::info!(topics = ?due, %error, "the largest batches of topics are unknown");
        });
        described.ok()?.values().filter_map(TopicSettings::max_batch_bytes).map(with_margin).min()
    }
}

/// The broker may compress a batch again by another codec, which may make it a little larger.
fn with_margin(bytes: usize) -> usize {
    (bytes - bytes / 16).max(MIN_BATCH_BYTES)
}
