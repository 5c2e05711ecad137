use std::{
    collections::BTreeMap,
    error::Error,
    ops::Range,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext, Message as _, Offset, TopicPartitionList,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
};

use super::{
    advice::advice, client::ClientLog, client_config, plain::serve_callbacks, token::Tokens,
};
use crate::config::KafkaConfig;

/// How long a broker may take to answer a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// How long the client may deliver nothing before [`TopicReader::read`] fails.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// How long a partition may be without a leader, and the time between two questions.
const LEADER_TIMEOUT: Duration = Duration::from_secs(10);
const LEADER_RETRY_DELAY: Duration = Duration::from_millis(100);
/// How long a group may be without a coordinator, and the time between two questions.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(30);
const COORDINATOR_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Most messages that the client fetches ahead, KiB.
const MAX_FETCHED_KIB: &str = "16384";

/// Reads the messages that a topic retains, without joining a group. Its calls block. A call fails
/// if a broker rejects a question or does not answer it within 10 s.
pub(crate) struct TopicReader {
    client: BaseConsumer<ReaderCallbacks>,
}

/// Logs the errors of the client. The end of a partition is none.
struct ReaderCallbacks {
    log: ClientLog,
    tokens: Tokens,
}

impl ClientContext for ReaderCallbacks {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.log.line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            tracing::error!(
                %error,
                reason,
                advice = advice(reason),
                "the reader of a topic reports an error"
            );
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.tokens.for_callback()
    }
}

impl ConsumerContext for ReaderCallbacks {}

/// An offset of each partition: it is read up to there, that offset excluded.
pub(crate) type EndOffsets = BTreeMap<i32, i64>;

/// The offset of each partition at which reading begins. A partition without one is read from its
/// beginning.
pub(crate) type StartOffsets = BTreeMap<i32, i64>;

impl TopicReader {
    /// `group_id` is the group whose committed offsets can be asked for.
    ///
    /// Fails if librdkafka rejects the configuration.
    pub(crate) fn new(kafka: &KafkaConfig, group_id: &str) -> KafkaResult<Self> {
        let mut client = client_config(kafka);
        client
            .set("group.id", group_id)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("queued.max.messages.kbytes", MAX_FETCHED_KIB)
            // The broker reports the end of a partition with an empty fetch.
            .set("fetch.wait.max.ms", "10");
        let callbacks = ReaderCallbacks { log: ClientLog::default(), tokens: Tokens::of(kafka) };
        let client = client.create_with_context(callbacks)?;
        // The questions before the first reading need a token too.
        serve_callbacks(&client);
        Ok(Self { client })
    }

    /// The offsets that the group has committed. Partitions without one are left out. Asks again
    /// for up to 30 s while the group has no coordinator: a broker that never had a group first
    /// creates the topic of the offsets.
    pub(crate) fn committed(&self, topic: &str) -> KafkaResult<EndOffsets> {
        let begun = Instant::now();
        loop {
            match self.committed_now(topic) {
                Err(error)
                    if has_no_coordinator(&error) && begun.elapsed() < COORDINATOR_TIMEOUT =>
                {
                    tracing::debug!(%error, "no coordinator of the group, asking again");
                    std::thread::sleep(COORDINATOR_RETRY_DELAY);
                }
                answer => return answer,
            }
        }
    }

    fn committed_now(&self, topic: &str) -> KafkaResult<EndOffsets> {
        let mut asked = TopicPartitionList::new();
        for partition in self.partitions(topic)? {
            asked.add_partition(topic, partition);
        }
        let answered = self.client.committed_offsets(asked, ANSWER_TIMEOUT)?;
        let mut committed = EndOffsets::new();
        for element in answered.elements() {
            element.error()?;
            if let Offset::Offset(offset) = element.offset() {
                committed.insert(element.partition(), offset);
            }
        }
        Ok(committed)
    }

    /// The ends with which [`TopicReader::read`] reads the whole topic.
    pub(crate) fn all(&self, topic: &str) -> KafkaResult<EndOffsets> {
        Ok(self.partitions(topic)?.into_iter().map(|partition| (partition, i64::MAX)).collect())
    }

    /// The offsets that a partition retains. Asks again for up to 10 s while the partition has no
    /// leader, as one that was created a moment ago.
    pub(crate) fn retained(&self, topic: &str, partition: i32) -> KafkaResult<Range<i64>> {
        let begun = Instant::now();
        loop {
            match self.client.fetch_watermarks(topic, partition, ANSWER_TIMEOUT) {
                Ok((first, end)) => return Ok(first..end),
                Err(error) if has_no_leader(&error) && begun.elapsed() < LEADER_TIMEOUT => {
                    std::thread::sleep(LEADER_RETRY_DELAY);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The ends with which the topic is read up to its present end.
    pub(crate) fn present_ends(&self, topic: &str) -> KafkaResult<EndOffsets> {
        let ends = self.partitions(topic)?.into_iter();
        ends.map(|partition| Ok((partition, self.retained(topic, partition)?.end))).collect()
    }

    /// The first message of each partition that was written at `since` or later, milliseconds since
    /// 1970. Removes partitions without such a message from `ends`.
    pub(crate) fn starts_at(
        &self,
        topic: &str,
        since_millis: i64,
        ends: &mut EndOffsets,
    ) -> KafkaResult<StartOffsets> {
        let mut asked = TopicPartitionList::new();
        for partition in ends.keys() {
            asked.add_partition_offset(topic, *partition, Offset::Offset(since_millis.max(0)))?;
        }
        let answered = self.client.offsets_for_times(asked, ANSWER_TIMEOUT)?;
        let mut starts = StartOffsets::new();
        for element in answered.elements() {
            element.error()?;
            if let Offset::Offset(offset) = element.offset() {
                starts.insert(element.partition(), offset);
            }
        }
        ends.retain(|partition, _| starts.contains_key(partition));
        Ok(starts)
    }

    /// Gives `take` every message that the topic retains, up to `ends` or to the present end of the
    /// partition. The messages of a partition come in order. Returns early, without an error, once
    /// `take` returns `false`.
    ///
    /// Fails if the topic is unknown or may not be read, and if nothing comes for 30 s.
    pub(crate) fn read(
        &self,
        topic: &str,
        ends: EndOffsets,
        take: impl FnMut(&BorrowedMessage<'_>) -> bool,
    ) -> KafkaResult<()> {
        self.read_from(topic, &StartOffsets::new(), ends, take)
    }

    /// The same from `starts` on.
    pub(crate) fn read_from(
        &self,
        topic: &str,
        starts: &StartOffsets,
        mut ends: EndOffsets,
        mut take: impl FnMut(&BorrowedMessage<'_>) -> bool,
    ) -> KafkaResult<()> {
        ends.retain(|partition, end| *end > starts.get(partition).copied().unwrap_or(0));
        let mut assigned = TopicPartitionList::new();
        for partition in ends.keys() {
            let start = starts.get(partition).map_or(Offset::Beginning, |at| Offset::Offset(*at));
            assigned.add_partition_offset(topic, *partition, start)?;
        }
        self.client.assign(&assigned)?;
        let mut received_at = Instant::now();
        while !ends.is_empty() {
            match self.client.poll(POLL_TIMEOUT) {
                None if received_at.elapsed() > MAX_SILENCE => {
                    return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::RequestTimedOut));
                }
                None => continue,
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(ends.remove(&partition)),
                Some(Err(KafkaError::MessageConsumption(
                    error @ (RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::UnknownTopicOrPartition),
                ))) => return Err(KafkaError::MessageConsumption(error)),
                // The client retries by itself.
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

    /// The numbers of a topic's partitions.
    pub(crate) fn partitions(&self, topic: &str) -> KafkaResult<Vec<i32>> {
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

fn has_no_leader(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::NotLeaderForPartition | RDKafkaErrorCode::LeaderNotAvailable)
    )
}

fn has_no_coordinator(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
        )
    )
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        mocking::MockCluster,
        types::{RDKafkaApiKey, RDKafkaRespErr},
    };

    use super::*;
    use crate::config::{Config, Layers};

    const NO_COORDINATOR: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR;

    #[test]
    fn a_group_without_a_coordinator_yet_is_asked_again() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("orders", 1, 1).unwrap();
        let mut kafka = Config::resolve(&Layers::default()).unwrap().kafka;
        kafka.brokers = cluster.bootstrap_servers();
        let reader = TopicReader::new(&kafka, "a-group").unwrap();
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[NO_COORDINATOR; 3]);

        let answer = reader.committed_now("orders");
        let committed = reader.committed("orders");

        assert!(has_no_coordinator(&answer.unwrap_err()), "the fault fires");
        assert_eq!(committed.unwrap(), EndOffsets::new());
    }
}
