use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientContext,
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use super::client_config;
use crate::{config::KafkaConfig, telemetry::Lack};

/// How long a broker may take to answer a question. Then the client gives the question up.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A client beside the role's own. It asks brokers about topics, and about the offsets of a group
/// that it does not join.
#[derive(Clone)]
pub(crate) struct KafkaProbe {
    brokers: Arc<str>,
    pub(super) client: Arc<BaseConsumer<ProbeCallbacks>>,
}

/// Keeps the client's last error, which says why no broker answers. Does not log it, since the
/// role's own clients do.
#[derive(Debug, Default)]
pub(super) struct ProbeCallbacks(Mutex<Option<Cause>>);

#[derive(Debug)]
struct Cause {
    text: String,
    is_refusal: bool,
}

impl ClientContext for ProbeCallbacks {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "probe of kafka failed");
        let code = error.rdkafka_error_code();
        if code != Some(RDKafkaErrorCode::AllBrokersDown) {
            let is_refusal = code == Some(RDKafkaErrorCode::Authentication);
            let cause = Cause { text: reason.to_owned(), is_refusal };
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
        }
    }
}

impl ConsumerContext for ProbeCallbacks {}

impl KafkaProbe {
    /// `group_id` is the group whose committed offsets can be asked for.
    ///
    /// Fails if librdkafka rejects the configuration. Does not wait for brokers.
    pub(crate) fn new(kafka: &KafkaConfig, group_id: &str) -> KafkaResult<Self> {
        let mut config = client_config(kafka);
        config
            .set("group.id", group_id)
            .set("enable.auto.commit", "false")
            .set("socket.timeout.ms", ANSWER_TIMEOUT.as_millis().to_string());
        let client = BaseConsumer::from_config_and_context(&config, ProbeCallbacks::default())?;
        Ok(Self { brokers: kafka.brokers.as_str().into(), client: Arc::new(client) })
    }

    /// Asks a broker for each of the topics, with one request for each.
    ///
    /// Fails if no broker answers within 5 s, and if a topic is absent, may not be described, or
    /// has no partition with a leader.
    pub(crate) async fn find(&self, topics: &[String]) -> Result<(), Lack> {
        let (probe, topics) = (self.clone(), topics.to_vec());
        let found = tokio::task::spawn_blocking(move || {
            topics.iter().try_for_each(|topic| probe.find_topic(topic))
        });
        found.await.unwrap_or_else(|error| Err(Lack::unreachable(error.to_string())))
    }

    fn find_topic(&self, topic: &str) -> Result<(), Lack> {
        // The client consumes nothing. The poll serves its callbacks.
        while self.client.poll(Duration::ZERO).is_some() {}
        let metadata = match self.client.fetch_metadata(Some(topic), ANSWER_TIMEOUT) {
            Ok(metadata) => metadata,
            Err(error) => return Err(self.unreachable(&error)),
        };
        let Some(found) = metadata.topics().first() else {
            return Err(self.refused(topic, "the broker's answer does not mention it"));
        };
        if let Some(error) = found.error() {
            return Err(self.refused(topic, &RDKafkaErrorCode::from(error).to_string()));
        }
        if found.partitions().iter().all(|partition| partition.leader() < 0) {
            return Err(Lack::unreachable(format!(
                "{}: topic {topic}: no partition has a leader",
                self.brokers
            )));
        }
        Ok(())
    }

    fn refused(&self, topic: &str, why: &str) -> Lack {
        Lack::refused(format!("{}: topic {topic}: {why}", self.brokers))
    }

    /// Why no broker answers: the error, and the client's last one.
    pub(super) fn unreachable(&self, error: &KafkaError) -> Lack {
        while self.client.poll(Duration::ZERO).is_some() {}
        let cause = self.client.context().0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let is_refusal = cause.as_ref().is_some_and(|cause| cause.is_refusal);
        let why =
            cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {}", cause.text));
        Lack { why: format!("{}: {why}", self.brokers), is_refusal }
    }
}
