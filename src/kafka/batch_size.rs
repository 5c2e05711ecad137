use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use rdkafka::ClientConfig;
use tokio::sync::Mutex;

use super::{plain, token::Tokens, topic_settings::TopicSettings};

/// The largest batch if no topic needs a smaller one, bytes. It is less than a topic takes by
/// default.
pub(super) const MAX_BATCH_BYTES: usize = 900_000;
/// The least limit of batches, bytes. A larger message is a batch by itself.
pub(super) const MIN_BATCH_BYTES: usize = 1024;
/// Least time between two questions about a topic.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How long a broker may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks brokers how large a batch each topic takes.
#[derive(Debug, Default)]
pub(super) struct BatchLimits {
    /// When the broker last answered, or did not answer in time, about each topic.
    asked: Mutex<HashMap<String, Instant>>,
}

impl BatchLimits {
    /// The largest batch that each of these topics takes, bytes. `None` if the broker does not
    /// answer within 5 s, or if all topics were asked about less than 10 s ago.
    pub(super) async fn ask(
        &self,
        config: &ClientConfig,
        tokens: &Tokens,
        topics: &[&str],
    ) -> Option<usize> {
        // Concurrent callers wait for the lock. Then the topics are asked about already.
        let mut asked = self.asked.lock().await;
        let now = Instant::now();
        asked.retain(|_, at| now.duration_since(*at) < ASK_EVERY);
        // The broker rejects a request that names a topic twice.
        let due: BTreeSet<_> =
            topics.iter().copied().filter(|topic| !asked.contains_key(*topic)).collect();
        let due: Vec<_> = due.into_iter().collect();
        if due.is_empty() {
            return None;
        }
        let admin = plain::admin(config, tokens).await.ok()?;
        let described = TopicSettings::describe(&admin, &due, ANSWER_TIMEOUT).await;
        asked.extend(due.iter().map(|topic| ((*topic).to_owned(), Instant::now())));
        // Dropping the client blocks until its thread ends.
        drop(tokio::task::spawn_blocking(move || drop(admin)));
        let described = described.inspect_err(|error| {
            tracing::info!(topics = ?due, %error, "limits of the topics' batches not known");
        });
        described.ok()?.values().filter_map(TopicSettings::max_batch_bytes).map(with_margin).min()
    }
}

/// Leaves a sixteenth free. The broker may compress a batch again with another codec, and make it a
/// little larger.
fn with_margin(bytes: usize) -> usize {
    (bytes - bytes / 16).max(MIN_BATCH_BYTES)
}
