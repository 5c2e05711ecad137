use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel, error::KafkaError};

use super::{
    advice::{advice, is_refused_token},
    token::note_refused_token,
};
use crate::config::KafkaConfig;
use crate::log_limiter::LogLimiter;

/// How often a client asks for the topics' partitions and the brokers' addresses, milliseconds.
const METADATA_REFRESH_MS: &str = "5000";
/// How long a client without metadata waits before it asks the bootstrap servers again,
/// milliseconds.
const BOOTSTRAP_AGAIN_MS: &str = "10000";
/// How long a broker may take to accept a connection, milliseconds.
const CONNECT_TIMEOUT_MS: &str = "10000";
/// How long a broker may take to answer a request, milliseconds.
const REQUEST_TIMEOUT_MS: &str = "20000";
/// Part of the line that librdkafka 2.12 logs when a topic was deleted and created again, in its
/// debug context `metadata`. No call returns a topic's id.
const TOPIC_REPLACED: &str = " changed id from ";
/// A topic id of zeros: the client has no metadata yet, or the broker named no id.
const NO_TOPIC_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// The configuration that every client of the cluster begins with.
pub fn client_config(kafka: &KafkaConfig) -> ClientConfig {
    // The first to initialise OpenSSL decides whether it is cleared at the exit of the process.
    // librdkafka has it cleared, which crashes a thread that asks for a token at that moment.
    openssl::init();
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &kafka.brokers)
        .set("client.id", "stocklock")
        .set("allow.auto.create.topics", "false")
        .set("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS)
        .set("topic.metadata.propagation.max.ms", METADATA_REFRESH_MS)
        .set("metadata.recovery.strategy", "rebootstrap")
        .set("metadata.recovery.rebootstrap.trigger.ms", BOOTSTRAP_AGAIN_MS)
        .set("socket.connection.setup.timeout.ms", CONNECT_TIMEOUT_MS)
        .set("socket.timeout.ms", REQUEST_TIMEOUT_MS)
        .set("reconnect.backoff.max.ms", "2000")
        .set("socket.keepalive.enable", "true");
    for (name, value) in &kafka.security {
        client.set(*name, value);
    }
    client
}

/// Has the client report new ids of topics to its [`ClientLog`].
pub(super) fn report_topic_ids(client: &mut ClientConfig) {
    client.set("debug", "metadata").set_log_level(RDKafkaLogLevel::Debug);
}

/// Takes a client's log lines and errors. Writes them at a limited rate, and notes when a topic of
/// the client was replaced.
#[derive(Debug, Default)]
pub(super) struct ClientLog {
    limiter: LogLimiter,
    topic_replaced: AtomicBool,
    ids: TopicIds,
}

/// The last id of each topic whose id went back to zeros. (librdkafka itself knows all other ids.)
#[derive(Debug, Default)]
struct TopicIds(Mutex<HashMap<String, String>>);

impl ClientLog {
    /// Writes a line of librdkafka's log, and notes a topic whose id changed.
    pub(super) fn line(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        if self.ids.is_replacement(line) {
            tracing::warn!(line, "a topic was replaced by another topic of its name");
            self.topic_replaced.store(true, Ordering::SeqCst);
            return;
        }
        match (level, advice(line)) {
            (RDKafkaLogLevel::Debug, _) => tracing::trace!(facility, line, "librdkafka"),
            (RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice, None) => {
                tracing::debug!(facility, line, "librdkafka");
            }
            (_, advice) => {
                // Lines with different advice are about different mistakes.
                let subject = advice.unwrap_or(facility);
                if let Some(dropped_lines) = self.limiter.is_due(subject, Instant::now()) {
                    tracing::warn!(facility, line, advice, dropped_lines, "librdkafka");
                }
            }
        }
    }

    /// Writes an error of the client.
    pub(super) fn error(&self, error: &KafkaError, reason: &str) {
        if is_refused_token(reason) {
            note_refused_token();
        }
        if let Some(dropped_lines) = self.limiter.is_due(&error.to_string(), Instant::now()) {
            tracing::warn!(%error, reason, advice = advice(reason), dropped_lines, "kafka");
        }
    }

    /// Whether a topic of the client was deleted and created again.
    pub(super) fn is_topic_replaced(&self) -> bool {
        self.topic_replaced.load(Ordering::SeqCst)
    }
}

impl TopicIds {
    /// Whether a log line says that a topic has another id than before. An id of zeros counts as no
    /// id.
    fn is_replacement(&self, line: &str) -> bool {
        let Some((before, ids)) = line.split_once(TOPIC_REPLACED) else { return false };
        let Some((from, to)) = ids.split_once(" to ") else { return false };
        let topic = before.rsplit(' ').next().unwrap_or_default();
        let to = to.trim_end();
        if to == NO_TOPIC_ID {
            let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            ids.insert(topic.to_owned(), from.to_owned());
            return false;
        }
        if from != NO_TOPIC_ID {
            return true;
        }
        let former = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
        former.is_some_and(|former| former != to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_topic_that_had_an_id_counts_as_replaced() {
        let first = "[thrd:main]: Topic orders changed id from AAAAAAAAAAAAAAAAAAAAAA \
                     to pXu3w6cwSqmKGR2xm7a9Gg";
        let second = "[thrd:main]: Topic orders changed id from pXu3w6cwSqmKGR2xm7a9Gg \
                      to Qd3H1vKeTnO7xSkyq1Wd0g";
        let ids = TopicIds::default();
        assert!(!ids.is_replacement(first));
        assert!(ids.is_replacement(second));
    }

    #[test]
    fn an_id_of_zeros_is_no_replacement_and_another_id_after_it_is() {
        let line = |from, to| format!("[thrd:main]: Topic orders changed id from {from} to {to}");
        let (ids, former, latter) =
            (TopicIds::default(), "pXu3w6cwSqmKGR2xm7a9Gg", "Qd3H1vKeTnO7xSkyq1Wd0g");
        for (from, to, is_replaced) in [
            (former, NO_TOPIC_ID, false),
            (NO_TOPIC_ID, former, false),
            (former, NO_TOPIC_ID, false),
            (NO_TOPIC_ID, latter, true),
            (NO_TOPIC_ID, latter, false),
        ] {
            assert_eq!(ids.is_replacement(&line(from, to)), is_replaced, "from {from} to {to}");
        }
    }
}
