use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
};

use super::client_config;
use crate::config::KafkaConfig;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// How long nothing may come of partitions that have messages.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Reads what a topic retains, without joining a group. Its calls block. Each fails if the brokers
/// say nothing for 30 s.
pub(crate) struct TopicReader {
    client: BaseConsumer,
}

/// Partitions, and with each the offset up to which it is read.
pub(crate) type Ends = BTreeMap<i32, i64>;

impl TopicReader {
    /// Fails if the configuration is refused. `group_id` is the group whose committed offsets can
    /// be asked for.
    pub(crate) fn new(kafka: &KafkaConfig, group_id: &str) -> KafkaResult<Self> {
        let mut client = client_config(kafka);
        client
            .set("group.id", group_id)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            // The broker reports the end of a partition with an empty fetch.
            .set("fetch.wait.max.ms", "10");
        Ok(Self { client: client.create()? })
    }

    /// The offset that the group has committed of each partition for which it has.
    pub(crate) fn committed(&self, topic: &str) -> KafkaResult<Ends> {
        let mut asked = TopicPartitionList::new();
        for partition in self.partitions(topic)? {
            asked.add_partition(topic, partition);
        }
        let answered = self.client.committed_offsets(asked, ANSWER_TIMEOUT)?;
        let mut committed = Ends::new();
        for element in answered.elements() {
            element.error()?;
            if let Offset::Offset(offset) = element.offset() {
                committed.insert(element.partition(), offset);
            }
        }
        Ok(committed)
    }

    /// The whole of each partition of a topic.
    pub(crate) fn all(&self, topic: &str) -> KafkaResult<Ends> {
        Ok(self.partitions(topic)?.into_iter().map(|partition| (partition, i64::MAX)).collect())
    }

    /// The first offset that a partition retains, and the one behind its last message.
    pub(crate) fn extent(&self, topic: &str, partition: i32) -> KafkaResult<(i64, i64)> {
        self.client.fetch_watermarks(topic, partition, ANSWER_TIMEOUT)
    }

    /// Hands over every message that the topic retains, up to the offsets given or to the present
    /// end. Each partition keeps its order. Stops early, without an error, once `take` answers
    /// `false`.
    pub(crate) fn read(
        &self,
        topic: &str,
        mut ends: Ends,
        mut take: impl FnMut(&BorrowedMessage<'_>) -> bool,
    ) -> KafkaResult<()> {
        ends.retain(|_, end| *end > 0);
        let mut assigned = TopicPartitionList::new();
        for partition in ends.keys() {
            assigned.add_partition_offset(topic, *partition, Offset::Beginning)?;
        }
        self.client.assign(&assigned)?;
        let mut received_at = Instant::now();
        while !ends.is_empty() {
            match self.client.poll(POLL) {
                None if received_at.elapsed() > SILENCE_MAX => {
                    return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::RequestTimedOut));
                }
                None => continue,
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(ends.remove(&partition)),
                Some(Err(KafkaError::MessageConsumption(
                    error @ (RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::UnknownTopicOrPartition),
                ))) => return Err(KafkaError::MessageConsumption(error)),
                // The client tries again by itself.
                Some(Err(error)) => {
                    tracing::debug!(%error, topic, "poll failed");
                    continue;
                }
                Some(Ok(message)) => {
                    let Some(end) = ends.get(&message.partition()).copied() else { continue };
                    if message.offset() < end && !take(&message) {
                        break;
                    }
                    if message.offset() + 1 >= end {
                        ends.remove(&message.partition());
                    }
                }
            }
            received_at = Instant::now();
        }
        Ok(())
    }

    fn partitions(&self, topic: &str) -> KafkaResult<Vec<i32>> {
        let metadata = self.client.fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
        let Some(found) = metadata.topics().first() else {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic));
        };
        if let Some(error) = found.error() {
            return Err(KafkaError::MetadataFetch(error.into()));
        }
        Ok(found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect())
    }
}
