use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use chrono::Utc;
use rdkafka::{
    Offset, TopicPartitionList, consumer::Consumer as _, error::KafkaResult,
    metadata::MetadataPartition, topic_partition_list::TopicPartitionListElem,
};

use super::probe::{ANSWERS_WITHIN, KafkaProbe};
use crate::{config::KafkaConfig, lifecycle::Shutdown, telemetry::Metrics};

/// Between two looks at the offsets.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// A backlog of which nothing is committed for so long has no consumer that shows its lag.
const UNSERVED_AFTER: Duration = Duration::from_secs(10);
/// How exactly the time of a message is searched, ms.
const RESOLUTION_MS: i64 = 100;
/// Messages that are older look as if they were so old, ms: a year.
const LONGEST_AGE_MS: i64 = 365 * 86_400_000;

/// Shows the lag of a topic that other processes consume, while none of them works on it: so the
/// lag is known although all consumers are away. A consumer at work shows its own lag.
pub(crate) struct BacklogWatch {
    probe: KafkaProbe,
    topic: String,
    metrics: Metrics,
    backlogs: HashMap<i32, Backlog>,
    shown: HashSet<i32>,
    failures: u32,
}

/// What is left to read of a partition.
#[derive(Debug, Clone, Copy)]
struct Backlog {
    /// The offset of its first message.
    next: i64,
    messages: i64,
    /// Since when the backlog begins at that message.
    since: Instant,
    /// When that message was produced, Unix time in ms.
    produced_at_ms: Option<i64>,
}

impl Backlog {
    fn is_unserved(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= UNSERVED_AFTER
    }
}

impl BacklogWatch {
    /// Watches what `group_id` has not committed of a topic. Fails where the configuration is
    /// refused.
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

    /// Looks every few seconds until a stop is requested. What cannot be measured is not shown.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        while !shutdown.is_requested() {
            let looking = tokio::task::spawn_blocking(move || {
                self.look(Instant::now());
                self
            });
            self = tokio::select! {
                looked = looking => match looked {
                    Ok(watch) => watch,
                    Err(_) => return,
                },
                () = shutdown.requested() => return,
            };
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY.mul_f64(0.75 + fastrand::f64() / 2.0)) => {}
                () = shutdown.requested() => {}
            }
        }
    }

    fn look(&mut self, now: Instant) {
        match self.measure(now) {
            Ok(()) => self.failures = 0,
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                // Once, and not where a leader has just changed.
                if self.failures == 2 {
                    tracing::warn!(topic = self.topic, %error, "the backlog cannot be measured");
                }
                self.backlogs.clear();
            }
        }
        self.show(now);
    }

    fn measure(&mut self, now: Instant) -> KafkaResult<()> {
        let former = std::mem::take(&mut self.backlogs);
        for (partition, next, messages) in self.left_to_read()? {
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

    /// Each partition that has messages that are not committed: the offset of the first, and how
    /// many there are.
    fn left_to_read(&self) -> KafkaResult<Vec<(i32, i64, i64)>> {
        let client = &self.probe.client;
        while client.poll(Duration::ZERO).is_some() {}
        let metadata = client.fetch_metadata(Some(&self.topic), ANSWERS_WITHIN)?;
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
        let committed = by_partition(&client.committed_offsets(asked, ANSWERS_WITHIN)?);
        let left = ids.into_iter().filter_map(|id| {
            let (begin, end) = (*begins.get(&id)?, *ends.get(&id)?);
            let next = committed.get(&id).map_or(begin, |committed| begin.max(*committed));
            (next < end).then_some((id, next, end - next))
        });
        Ok(left.collect())
    }

    /// When the messages at these offsets were produced, Unix time in ms: the latest time up to
    /// which the broker finds no later message. It takes some 30 requests, for all of them at once,
    /// and no right to read.
    fn search_times(&self, wanted: &HashMap<i32, i64>) -> KafkaResult<HashMap<i32, i64>> {
        let now = Utc::now().timestamp_millis();
        let mut bounds: HashMap<i32, (i64, i64)> =
            wanted.keys().map(|partition| (*partition, (now - LONGEST_AGE_MS, now))).collect();
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

    /// Of each partition the offset at its beginning, at its end, or of the first message that is
    /// not older than a time in ms.
    fn offsets(
        &self,
        asked: impl Iterator<Item = (i32, Offset)>,
    ) -> KafkaResult<HashMap<i32, i64>> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in asked {
            list.add_partition_offset(&self.topic, partition, offset)?;
        }
        let found = self.probe.client.offsets_for_times(list, ANSWERS_WITHIN)?;
        found.elements().iter().try_for_each(TopicPartitionListElem::error)?;
        Ok(by_partition(&found))
    }

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

/// The offsets that are known.
fn by_partition(list: &TopicPartitionList) -> HashMap<i32, i64> {
    let elements = list.elements();
    let known = elements.iter().filter_map(|element| match element.offset() {
        Offset::Offset(offset) => Some((element.partition(), offset)),
        _ => None,
    });
    known.collect()
}
