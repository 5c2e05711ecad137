use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use chrono::Utc;
use rdkafka::{
    Offset, TopicPartitionList, consumer::Consumer as _, error::KafkaResult,
    metadata::MetadataPartition, topic_partition_list::TopicPartitionListElem,
};

use super::probe::{ANSWER_TIMEOUT, KafkaProbe};
use crate::{backoff::jittered, config::KafkaConfig, lifecycle::Shutdown, telemetry::Metrics};

/// Mean time between two measurements.
const MEASURE_EVERY: Duration = Duration::from_secs(4);
/// If nothing of a backlog is committed for so long, no consumer works on it and shows its lag.
const UNSERVED_AFTER: Duration = Duration::from_secs(10);
/// How exactly the time of a message is searched, milliseconds.
const RESOLUTION_MS: i64 = 100;
/// The greatest age that is shown, milliseconds: a year. Older messages are shown with this age.
const MAX_AGE_MS: i64 = 365 * 86_400_000;

/// Shows the lag of a topic that other processes consume, while none of them works on it. So the
/// lag is known although all consumers are away. A consumer that works shows its own lag.
pub(crate) struct BacklogWatch {
    probe: KafkaProbe,
    topic: String,
    metrics: Metrics,
    /// The partitions with messages that are not committed.
    backlogs: HashMap<i32, Backlog>,
    /// Partitions whose gauges are set.
    shown: HashSet<i32>,
    /// Failed measurements in a row.
    failures: u32,
}

/// Messages of a partition that the group has not committed.
#[derive(Debug, Clone, Copy)]
struct Uncommitted {
    partition: i32,
    /// The offset of the first of them.
    next: i64,
    messages: i64,
}

/// The backlog of a partition: its uncommitted messages, as of the last measurement.
#[derive(Debug, Clone, Copy)]
struct Backlog {
    /// The offset of its first message.
    next: i64,
    messages: i64,
    /// When a measurement first found that message to be the next one.
    since: Instant,
    /// When that message was produced, Unix time in milliseconds, if it is known.
    produced_at_ms: Option<i64>,
}

impl Backlog {
    fn is_unserved(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= UNSERVED_AFTER
    }
}

impl BacklogWatch {
    /// Watches the messages of a topic that `group_id` has not committed.
    ///
    /// Fails if librdkafka rejects the configuration.
    pub(crate) fn new(
        kafka: &KafkaConfig,
        group_id: &str,
        topic: &str,
        metrics: Metrics,
    ) -> KafkaResult<Self> {
        let probe = KafkaProbe::new(kafka, group_id)?;
        let (backlogs, shown) = (HashMap::new(), HashSet::new());
        Ok(Self { probe, topic: topic.to_owned(), metrics, backlogs, shown, failures: 0 })
    }

    /// Measures every few seconds until a stop is requested. Shows no lag that cannot be measured.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let measuring = tokio::task::spawn_blocking(move || {
                self.update(Instant::now());
                self
            });
            let Ok(Ok(watch)) = shutdown.interruptible(measuring).await else { return };
            self = watch;
            if shutdown.sleep(jittered(MEASURE_EVERY, 0.75..1.25)).await.is_err() {
                return;
            }
        }
    }

    /// Measures the backlogs and sets the gauges.
    fn update(&mut self, now: Instant) {
        match self.measure(now) {
            Ok(()) => self.failures = 0,
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                // Logged once, and not at the first failure: a leader may have just changed.
                if self.failures == 2 {
                    tracing::warn!(topic = self.topic, %error, "backlog not measured");
                }
                self.backlogs.clear();
            }
        }
        self.show(now);
    }

    fn measure(&mut self, now: Instant) -> KafkaResult<()> {
        let former = std::mem::take(&mut self.backlogs);
        for Uncommitted { partition, next, messages } in self.uncommitted()? {
            let fresh = Backlog { next, messages, since: now, produced_at_ms: None };
            let known = former.get(&partition).filter(|known| known.next == next);
            let backlog = known.map_or(fresh, |known| Backlog { messages, ..*known });
            self.backlogs.insert(partition, backlog);
        }
        if self
            .backlogs
            .values()
            .any(|backlog| backlog.is_unserved(now) && backlog.produced_at_ms.is_none())
        {
            let wanted = self
                .backlogs
                .iter()
                .map(|(partition, backlog)| (*partition, backlog.next))
                .collect();
            let dated = self.search_times(&wanted)?;
            for (partition, backlog) in &mut self.backlogs {
                backlog.produced_at_ms = dated.get(partition).copied();
            }
        }
        Ok(())
    }

    /// The uncommitted messages of each partition that has any.
    ///
    /// Fails if a broker does not answer within 5 s, or rejects a question.
    fn uncommitted(&self) -> KafkaResult<Vec<Uncommitted>> {
        let client = self.probe.client();
        let metadata = client.fetch_metadata(Some(&self.topic), ANSWER_TIMEOUT)?;
        let found = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
        let mut asked = TopicPartitionList::new();
        for partition in found {
            asked.add_partition(&self.topic, partition.id());
        }
        if asked.count() == 0 {
            return Ok(Vec::new());
        }
        let ids: Vec<_> = found.iter().map(MetadataPartition::id).collect();
        let begins = self.offsets(ids.iter().map(|id| (*id, Offset::Beginning)))?;
        let ends = self.offsets(ids.iter().map(|id| (*id, Offset::End)))?;
        let committed = by_partition(&client.committed_offsets(asked, ANSWER_TIMEOUT)?);
        let uncommitted = ids.into_iter().filter_map(|id| {
            let (begin, end) = (*begins.get(&id)?, *ends.get(&id)?);
            let next = committed.get(&id).map_or(begin, |committed| begin.max(*committed));
            let messages = end - next;
            (messages > 0).then_some(Uncommitted { partition: id, next, messages })
        });
        Ok(uncommitted.collect())
    }

    /// When the messages at these offsets were produced, Unix time in milliseconds.
    ///
    /// Searches by halves for the latest time for which the broker still names this message or an
    /// earlier one. That takes some 30 requests, each for all partitions. Unlike a fetch it needs
    /// no right to read.
    fn search_times(&self, wanted: &HashMap<i32, i64>) -> KafkaResult<HashMap<i32, i64>> {
        let now = Utc::now().timestamp_millis();
        let mut bounds: HashMap<i32, (i64, i64)> =
            wanted.keys().map(|partition| (*partition, (now - MAX_AGE_MS, now))).collect();
        while bounds.values().any(|(low, high)| high - low > RESOLUTION_MS) {
            let middles = bounds
                .iter()
                .map(|(partition, (low, high))| (*partition, Offset::Offset(low.midpoint(*high))));
            let first_after = self.offsets(middles)?;
            for (partition, (low, high)) in &mut bounds {
                let is_at_or_after =
                    first_after.get(partition).is_some_and(|first| *first <= wanted[partition]);
                *(if is_at_or_after { low } else { high }) = low.midpoint(*high);
            }
        }
        Ok(bounds.into_iter().map(|(partition, (low, _))| (partition, low)).collect())
    }

    /// An offset of each partition: at its beginning, at its end, or of the first message that is
    /// not older than a Unix time in milliseconds.
    fn offsets(
        &self,
        asked: impl Iterator<Item = (i32, Offset)>,
    ) -> KafkaResult<HashMap<i32, i64>> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in asked {
            list.add_partition_offset(&self.topic, partition, offset)?;
        }
        let found = self.probe.client().offsets_for_times(list, ANSWER_TIMEOUT)?;
        found.elements().iter().try_for_each(TopicPartitionListElem::error)?;
        Ok(by_partition(&found))
    }

    /// Sets the gauges of backlogs on which no consumer works, and removes the others.
    fn show(&mut self, now: Instant) {
        let unserved: HashMap<_, _> =
            self.backlogs.iter().filter(|(_, backlog)| backlog.is_unserved(now)).collect();
        for partition in self.shown.iter().filter(|partition| !unserved.contains_key(partition)) {
            self.metrics.forget_lag(&self.topic, *partition);
        }
        for (partition, backlog) in &unserved {
            let age =
                backlog.produced_at_ms.map(|produced| Utc::now().timestamp_millis() - produced);
            self.metrics.set_lag(&self.topic, **partition, backlog.messages, age);
        }
        self.shown = unserved.into_keys().copied().collect();
    }
}

/// The offsets that are known, by partition.
fn by_partition(list: &TopicPartitionList) -> HashMap<i32, i64> {
    let elements = list.elements();
    let known = elements.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some((element.partition(), offset)),
        _ => None,
    });
    known.collect()
}
