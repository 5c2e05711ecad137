//! When a client of the cluster is to be replaced by a new client.

use std::{
    sync::mpsc::{self, TryRecvError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, TopicPartitionList,
    consumer::Consumer as _,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use super::{
    plain::{self, PlainCallbacks},
    token::Tokens,
};

/// How long a client may fail before it is replaced. It recovers by itself from most failures, and
/// a replacement takes time too.
const PATIENCE: Duration = Duration::from_secs(15);
/// Least time between two replacements of a client since its topic was replaced, and least age of
/// such a client. Brokers may disagree on the topic for some seconds.
pub(super) const MIN_TOPIC_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause between two replacements that did not help.
const MAX_PAUSE: Duration = Duration::from_secs(300);
/// How long a new client may take to connect and to answer a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The pauses between replacements that do not help. Each pause is twice as long as the one before,
/// from 15 s to 5 min.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    replacements: u32,
    last: Option<Instant>,
}

impl Pauses {
    /// Whether the pause after the last replacement is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let pause = PATIENCE
            .saturating_mul(1 << self.replacements.saturating_sub(1).min(10))
            .min(MAX_PAUSE);
        self.last.is_none_or(|last| now.duration_since(last) >= pause)
    }

    /// Notes a replacement.
    pub(super) fn replaced(&mut self, now: Instant) {
        (self.replacements, self.last) = (self.replacements.saturating_add(1), Some(now));
    }

    /// How many replacements since the client last worked.
    pub(super) fn replacements(&self) -> u32 {
        self.replacements
    }

    /// Notes that the client works.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// What a client needs that asks about a group and a topic.
#[derive(Clone)]
pub(super) struct Query {
    pub(super) config: ClientConfig,
    pub(super) tokens: Tokens,
}

/// Finds out whether a new client reaches a topic that the present client does not reach.
#[derive(Debug, Default)]
pub(super) struct ReachabilityCheck {
    /// The answer of the check that runs.
    answer: Option<mpsc::Receiver<bool>>,
}

impl ReachabilityCheck {
    /// Returns `true` once a new client has reached the leaders of all partitions of the topic and
    /// the group's coordinator. Asks again and again until then, on a thread of its own.
    ///
    /// Does nothing until the present client has been without a broker for 15 s. `query` names the
    /// group; the new client does not join it.
    pub(super) fn reaches(
        &mut self,
        query: &Query,
        topic: &str,
        unreachable_for: Option<Duration>,
    ) -> bool {
        if unreachable_for.is_none_or(|unreachable_for| unreachable_for < PATIENCE) {
            self.answer = None;
            return false;
        }
        match self.answer.as_ref().map(mpsc::Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => false,
            Some(Ok(true)) => {
                self.answer = None;
                true
            }
            None | Some(Ok(false) | Err(TryRecvError::Disconnected)) => {
                let (answer, answered) = mpsc::channel();
                let (query, topic) = (query.clone(), topic.to_owned());
                std::thread::spawn(move || {
                    let reached = reach(&query, &topic);
                    let error = reached.as_ref().err();
                    tracing::debug!(topic, ?error, "reachability of the topic checked");
                    let _receiver_gone = answer.send(reached.is_ok());
                });
                self.answer = Some(answered);
                false
            }
        }
    }
}

/// Asks the leader of each partition of the topic, and the group's coordinator.
///
/// Fails with the first error: no such topic, no leader, or no answer within 5 s.
fn reach(query: &Query, topic: &str) -> KafkaResult<()> {
    let client = plain::asking(&query.config, PlainCallbacks::quiet(&query.tokens))?;
    let metadata = client.fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
    let found = metadata
        .topics()
        .first()
        .filter(|found| found.error().is_none() && !found.partitions().is_empty());
    let found =
        found.ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition))?;
    let mut partitions = TopicPartitionList::new();
    for partition in found.partitions() {
        if partition.leader() < 0 {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::LeaderNotAvailable));
        }
        client.fetch_watermarks(topic, partition.id(), ANSWER_TIMEOUT)?;
        partitions.add_partition(topic, partition.id());
    }
    client.committed_offsets(partitions, ANSWER_TIMEOUT)?;
    Ok(())
}

/// Decides when a producer is replaced, by the results of its deliveries.
#[derive(Debug, Default)]
pub(super) struct ProducerRenewal {
    /// When the first of the deliveries began that failed since the last success.
    failing_since: Option<Instant>,
    pauses: Pauses,
}

impl ProducerRenewal {
    /// Notes the result of a delivery: its error, or `None` if it succeeded. Returns whether the
    /// producer is to be replaced now.
    pub(super) fn is_due(
        &mut self,
        error: Option<&KafkaError>,
        began: Instant,
        now: Instant,
    ) -> bool {
        match error {
            None => {
                self.failing_since = None;
                self.pauses.reset();
                return false;
            }
            Some(error) if !is_of_client(error) => return false,
            Some(_) => {}
        }
        let since = *self.failing_since.get_or_insert(began);
        let is_due = now.duration_since(since) >= PATIENCE && self.pauses.is_over(now);
        if is_due {
            self.pauses.replaced(now);
            self.failing_since = None;
        }
        is_due
    }
}

/// Whether another client might deliver these messages. It might not if the broker rejects them.
fn is_of_client(error: &KafkaError) -> bool {
    !matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidTopic
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::PolicyViolation
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: RDKafkaErrorCode) -> KafkaError {
        KafkaError::MessageProduction(code)
    }

    #[test]
    fn a_producer_that_fails_for_long_is_replaced_at_growing_intervals() {
        let (mut renewal, start) = (ProducerRenewal::default(), Instant::now());
        let mut replaced_after = Vec::new();
        for second in (10..200).step_by(10) {
            let (began, now) =
                (start + Duration::from_secs(second - 10), start + Duration::from_secs(second));
            if renewal.is_due(Some(&failed(RDKafkaErrorCode::MessageTimedOut)), began, now) {
                replaced_after.push(second);
            }
        }
        assert_eq!(replaced_after, [20, 40, 70, 130]);
    }

    #[test]
    fn a_producer_that_delivers_or_whose_messages_are_rejected_stays() {
        let (mut renewal, start) = (ProducerRenewal::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!renewal.is_due(
            Some(&failed(RDKafkaErrorCode::MessageTimedOut)),
            start,
            after(10)
        ));
        assert!(!renewal.is_due(None, after(10), after(11)));
        assert!(!renewal.is_due(
            Some(&failed(RDKafkaErrorCode::MessageTimedOut)),
            after(11),
            after(21)
        ));
        assert!(!renewal.is_due(
            Some(&failed(RDKafkaErrorCode::MessageSizeTooLarge)),
            after(21),
            after(60)
        ));
    }
}
