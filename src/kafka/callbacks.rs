use std::{
    collections::HashMap,
    error::Error,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::Utc;
use rdkafka::{
    ClientContext, Offset, Statistics,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance},
    error::KafkaError,
    statistics,
    topic_partition_list::{TopicPartitionList, TopicPartitionListElem},
};

use super::{
    client::ClientLog, condition::Condition, message_ages::MessageAges, partitions::Partitions,
    token::Tokens,
};
use crate::{
    config::KafkaConfig,
    telemetry::{Component, Metrics},
};

/// How long a revocation waits for batches in flight, or half of `kafka.max_poll_interval` if that
/// is less. Nothing is polled meanwhile, which the group allows for `kafka.max_poll_interval`.
///
/// A revocation of lost partitions does not wait: another consumer may own them already, and the
/// group takes no offset of them from this consumer.
const MAX_DRAIN: Duration = Duration::from_secs(15);
/// How long after a topic was replaced the committed offsets are not trusted. A member may still
/// have committed an offset of the former topic.
const DISTRUST_COMMITTED_FOR: Duration = Duration::from_secs(60);

/// Receives librdkafka's callbacks, on the poll thread: rebalances, statistics, errors and log
/// lines.
pub(super) struct ConsumerCallbacks {
    pub(crate) topic: String,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) metrics: Metrics,
    pub(crate) condition: Arc<Condition>,
    pub(crate) log: ClientLog,
    tokens: Tokens,
    max_poll_interval: Duration,
    fetch_progress: Mutex<HashMap<i32, FetchProgress>>,
    pub(crate) ages: MessageAges,
    /// Another client has taken over. Callbacks about this client's partitions are ignored.
    retired: AtomicBool,
    /// Until then, assigned partitions are read from their beginning.
    from_beginning_until: Option<Instant>,
}

/// An offset to commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartitionOffset {
    pub(super) partition: i32,
    pub(super) offset: i64,
}

/// How far a partition is fetched, by the last statistics.
#[derive(Debug, Clone, Copy)]
struct FetchProgress {
    /// The next offset to fetch.
    next_offset: i64,
    /// Fetched messages of all partitions that are not polled yet. The partitions share the
    /// consumer's queue.
    queued: i64,
    committed: i64,
    /// The end of the partition, if the client has delivered every message before it.
    reached_end: Option<i64>,
}

impl FetchProgress {
    fn new(state: &statistics::Partition) -> Self {
        let (next_offset, queued) = (state.next_offset, state.fetchq_cnt);
        let has_delivered_all =
            state.fetch_state == "active" && queued == 0 && next_offset == state.hi_offset;
        Self {
            next_offset,
            queued,
            committed: state.committed_offset,
            reached_end: has_delivered_all.then_some(next_offset),
        }
    }

    /// Whether the partition, which ends at `end`, has messages that the client does not deliver.
    ///
    /// While messages are queued, the partition may have to wait until those are polled. Then it is
    /// behind only if no partition delivered anything. A client whose position is beyond the end
    /// fetches nothing, so that counts as behind too.
    fn is_behind(self, end: i64, anything_came: bool) -> bool {
        if self.queued > 0 { !anything_came } else { self.next_offset != end }
    }
}

impl ConsumerCallbacks {
    pub(super) fn new(
        topic: &str,
        kafka: &KafkaConfig,
        partitions: &Arc<Partitions>,
        metrics: &Metrics,
        health: &Component,
    ) -> Self {
        Self {
            topic: topic.to_owned(),
            max_poll_interval: kafka.max_poll_interval,
            partitions: Arc::clone(partitions),
            metrics: metrics.clone(),
            condition: Arc::new(Condition::new(topic, kafka.group_protocol, health)),
            log: ClientLog::default(),
            tokens: Tokens::of(kafka),
            fetch_progress: Mutex::default(),
            ages: MessageAges::default(),
            retired: AtomicBool::new(false),
            from_beginning_until: None,
        }
    }

    /// The callbacks of the client that takes over. If the topic was replaced, that client reads
    /// its partitions from their beginning.
    pub(super) fn successor(&self) -> Self {
        let from_beginning_until = if self.log.is_topic_replaced() {
            Some(Instant::now() + DISTRUST_COMMITTED_FOR)
        } else {
            self.from_beginning_until
        };
        Self {
            topic: self.topic.clone(),
            max_poll_interval: self.max_poll_interval,
            partitions: Arc::clone(&self.partitions),
            metrics: self.metrics.clone(),
            condition: Arc::clone(&self.condition),
            log: ClientLog::default(),
            tokens: self.tokens.clone(),
            fetch_progress: Mutex::default(),
            ages: MessageAges::default(),
            retired: AtomicBool::new(false),
            from_beginning_until,
        }
    }

    /// Removes the lag gauges of partitions that are not owned or not known.
    pub(super) fn forget_lag(&self, partitions: &[i32]) {
        for partition in partitions {
            self.metrics.forget_lag(&self.topic, *partition);
            self.ages.forget(*partition);
        }
    }

    /// Sets the gauge of the age of the partition's first message that is not handled.
    fn show_age(&self, partition: i32, state: &statistics::Partition, lag: i64) {
        let known = [state.stored_offset, state.committed_offset, state.lo_offset];
        let age = match known.into_iter().find(|offset| *offset >= 0) {
            Some(next) if lag > 0 => {
                self.ages.of(partition, next, Utc::now().timestamp_millis(), Instant::now())
            }
            _ => {
                self.ages.forget(partition);
                Duration::ZERO
            }
        };
        let gauge = &self.metrics.consumer_lag_seconds;
        gauge.with_label_values(&[&self.topic, &partition.to_string()]).set(age.as_secs_f64());
    }

    /// Notes that another client has taken over.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }

    /// Whether a partition that ends at `end` has messages that the client does not deliver.
    /// `anything_came` says whether the client delivered a message of any partition of late.
    pub(super) fn is_behind(&self, partition: i32, end: i64, anything_came: bool) -> bool {
        let fetched = self.fetch_progress.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.get(&partition).is_none_or(|fetched| fetched.is_behind(end, anything_came))
    }

    /// Partitions whose committed offset is beyond their end, with the offsets to commit.
    pub(super) fn find_committed_too_far(&self) -> Vec<PartitionOffset> {
        let fetched = self.fetch_progress.lock().unwrap_or_else(PoisonError::into_inner);
        let too_far = |(partition, fetched): (&i32, &FetchProgress)| {
            let offset = self.partitions.committed_too_far(
                *partition,
                fetched.committed,
                fetched.reached_end,
            )?;
            Some(PartitionOffset { partition: *partition, offset })
        };
        fetched.iter().filter_map(too_far).collect()
    }

    /// How many messages are left to read and to handle, or `None` if the client does not know.
    ///
    /// A log may end with records that are no messages, such as those of transactions. They count
    /// while messages of any partition are queued.
    fn lag(&self, partition: i32, seen: &statistics::Partition) -> Option<i64> {
        let is_fetched =
            seen.ls_offset >= 0 && seen.next_offset >= seen.ls_offset && seen.fetchq_cnt == 0;
        if is_fetched && self.partitions.is_all_done(partition) {
            return Some(0);
        }
        if seen.consumer_lag >= 0 {
            return Some(seen.consumer_lag);
        }
        // A group that has committed nothing begins at the earliest message.
        let (low, high) = (seen.lo_offset, seen.hi_offset);
        (low >= 0 && high >= low).then(|| high - low)
    }
}

impl ClientContext for ConsumerCallbacks {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.log.line(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        if self.retired.load(Ordering::SeqCst) {
            return;
        }
        let owned = self.partitions.owned();
        let known = self.condition.observe(&statistics, &owned, Instant::now());
        let unknown: Vec<_> =
            owned.into_iter().filter(|partition| !known.contains(partition)).collect();
        self.forget_lag(&unknown);
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        let mut fetched = self.fetch_progress.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.clear();
        for (partition, state) in &topic.partitions {
            fetched.insert(*partition, FetchProgress::new(state));
        }
        drop(fetched);
        for partition in known {
            let Some(state) = topic.partitions.get(&partition) else { continue };
            let Some(lag) = self.lag(partition, state) else { continue };
            let gauge = &self.metrics.consumer_lag;
            gauge.with_label_values(&[&self.topic, &partition.to_string()]).set(lag);
            self.show_age(partition, state, lag);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.metrics.retries.with_label_values(&["kafka"]).inc();
        self.log.error(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.tokens.for_callback()
    }
}

impl ConsumerContext for ConsumerCallbacks {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if self.retired.load(Ordering::SeqCst) {
            return;
        }
        match rebalance {
            Rebalance::Assign(list) => {
                let partitions = ids(list);
                let from_beginning =
                    self.from_beginning_until.is_some_and(|until| Instant::now() < until);
                if from_beginning && let Err(error) = begin_at_beginning(list) {
                    tracing::warn!(
                        ?partitions,
                        %error,
                        "partitions not read from their beginning, but from their committed offsets"
                    );
                }
                tracing::info!(
                    topic = self.topic,
                    ?partitions,
                    from_beginning,
                    "partitions assigned"
                );
                self.metrics.rebalances.with_label_values(&["assign"]).inc();
                self.partitions.assign(&partitions);
                // librdkafka remembers that a partition was paused in a former assignment.
                if let Err(error) = consumer.resume(list) {
                    let topic = &self.topic;
                    tracing::warn!(topic, ?partitions, %error, "partitions not resumed");
                }
                self.condition.joined();
            }
            Rebalance::Revoke(list) => {
                let is_lost = consumer.assignment_lost();
                let (kind, deadline) = if is_lost {
                    ("lost", Duration::ZERO)
                } else {
                    ("revoke", MAX_DRAIN.min(self.max_poll_interval / 2))
                };
                let partitions = ids(list);
                let drained = self.partitions.revoke(&partitions, deadline);
                // Else librdkafka remembers the pause until the partition is assigned again.
                if let Err(error) = consumer.resume(list) {
                    let topic = &self.topic;
                    tracing::warn!(topic, ?partitions, %error, "partitions not resumed");
                }
                self.condition.revoked(&partitions);
                if is_lost {
                    self.condition.left("partitions lost");
                }
                tracing::info!(
                    topic = self.topic,
                    ?partitions,
                    kind,
                    drained,
                    "partitions revoked"
                );
                self.metrics.rebalances.with_label_values(&[kind]).inc();
                self.forget_lag(&partitions);
            }
            Rebalance::Error(error) => {
                tracing::warn!(topic = self.topic, %error, "rebalance failed");
            }
        }
    }
}

fn ids(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(TopicPartitionListElem::partition).collect()
}

/// Has the partitions that are about to be assigned read from their beginning.
fn begin_at_beginning(list: &TopicPartitionList) -> Result<(), KafkaError> {
    list.elements().iter_mut().try_for_each(|partition| partition.set_offset(Offset::Beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_not_behind_while_messages_of_others_come() {
        let fetched = |next_offset, queued| FetchProgress {
            next_offset,
            queued,
            committed: 0,
            reached_end: None,
        };
        for (next_offset, queued, anything_came, is_behind) in [
            (9, 0, false, false),
            (7, 0, true, true),
            (9, 500, true, false),
            (7, 500, true, false),
            (7, 500, false, true),
            (12, 0, false, true),
        ] {
            let answer = fetched(next_offset, queued).is_behind(9, anything_came);
            assert_eq!(
                answer, is_behind,
                "next {next_offset}, queued {queued}, came {anything_came}"
            );
        }
    }
}
