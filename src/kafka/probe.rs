use std::{
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    client::OAuthToken,
    config::{FromClientConfigAndContext as _, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use super::{
    advice::{advice, is_refusal},
    certificate, client_config,
    plain::serve_callbacks,
    token::Tokens,
};
use crate::{config::KafkaConfig, log_limiter::LogLimiter, telemetry::Lack};

/// How long a broker may take to answer a question. Then the client gives the question up.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A cause with a remedy says more than others that follow it, for this time. librdkafka repeats
/// it twice a minute while it lasts.
const REMEDY_LASTS: Duration = Duration::from_secs(60);

/// A client beside the role's own. It asks brokers about topics, and about the offsets of a group
/// that it does not join.
#[derive(Clone)]
pub(crate) struct KafkaProbe {
    kafka: Arc<KafkaConfig>,
    client: Arc<BaseConsumer<ProbeCallbacks>>,
}

/// Keeps the client's last error, which says why no broker answers. Does not log it, since the
/// role's own clients do; only what a look at a certificate adds.
#[derive(Default)]
pub(super) struct ProbeCallbacks {
    tokens: Tokens,
    log: LogLimiter,
    cause: Mutex<Option<Cause>>,
}

#[derive(Debug, Clone)]
struct Cause {
    text: String,
    is_refusal: bool,
    noted_at: Instant,
    /// Whether a look at the broker's certificate was added.
    is_explained: bool,
}

/// Why no broker answers.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// The address and the cause.
    pub(super) why: String,
    pub(super) advice: Option<&'static str>,
    /// A broker answers and refuses.
    pub(super) is_refusal: bool,
}

impl From<Unanswered> for Lack {
    fn from(Unanswered { mut why, advice, is_refusal }: Unanswered) -> Self {
        if let Some(advice) = advice {
            why = format!("{why}; {advice}");
        }
        Self { why, is_refusal }
    }
}

impl ProbeCallbacks {
    pub(super) fn new(kafka: &KafkaConfig) -> Self {
        Self { tokens: Tokens::of(kafka), ..Self::default() }
    }

    fn cause(&self) -> MutexGuard<'_, Option<Cause>> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a cause, unless it says less than the one before. The same cause again lasts anew.
    fn note(&self, text: &str, is_refusal: bool) {
        let (mut cause, noted_at) = (self.cause(), Instant::now());
        let has_remedy = advice(text).is_some();
        let is_kept = |known: &Cause| {
            let is_fresh = noted_at.duration_since(known.noted_at) < REMEDY_LASTS;
            !has_remedy && is_fresh && advice(&known.text).is_some()
        };
        match cause.as_mut() {
            Some(known) if known.text.starts_with(text) => known.noted_at = noted_at,
            Some(known) if is_kept(known) => {}
            _ => {
                let text = text.to_owned();
                *cause = Some(Cause { text, is_refusal, noted_at, is_explained: false });
            }
        }
    }
}

impl ClientContext for ProbeCallbacks {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    /// Some causes come as a line alone.
    fn log(&self, _: RDKafkaLogLevel, _: &str, line: &str) {
        if advice(line).is_some() {
            self.note(without_thread(line), is_refusal(line));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "probe of kafka failed");
        let code = error.rdkafka_error_code();
        if code != Some(RDKafkaErrorCode::AllBrokersDown) {
            let is_authentication = code == Some(RDKafkaErrorCode::Authentication);
            self.note(reason, is_authentication || is_refusal(reason));
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.tokens.for_callback()
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
        let client = BaseConsumer::from_config_and_context(&config, ProbeCallbacks::new(kafka))?;
        Ok(Self { kafka: Arc::new(kafka.clone()), client: Arc::new(client) })
    }

    /// The client for a question. Serves its callbacks first, which blocks for 5 s at most while
    /// the process has no token.
    pub(super) fn client(&self) -> &BaseConsumer<ProbeCallbacks> {
        serve_callbacks(&self.client);
        &self.client
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
        let metadata = match self.client().fetch_metadata(Some(topic), ANSWER_TIMEOUT) {
            Ok(metadata) => metadata,
            Err(error) => return Err(self.unanswered(&error).into()),
        };
        *self.client.context().cause() = None;
        let Some(found) = metadata.topics().first() else {
            return Err(self.refused(topic, "the broker's answer does not mention it"));
        };
        if let Some(error) = found.error() {
            return Err(self.refused(topic, &RDKafkaErrorCode::from(error).to_string()));
        }
        if found.partitions().iter().all(|partition| partition.leader() < 0) {
            let brokers = &self.kafka.brokers;
            let why = format!("{brokers}: topic {topic}: no partition has a leader");
            return Err(Lack::unreachable(why));
        }
        Ok(())
    }

    fn refused(&self, topic: &str, why: &str) -> Lack {
        Lack::refused(format!("{}: topic {topic}: {why}", self.kafka.brokers))
    }

    /// Why no broker answers: the error, the client's last one, and what to do about it. Blocks
    /// for some seconds at most, for a look at a certificate that the client refuses.
    pub(super) fn unanswered(&self, error: &KafkaError) -> Unanswered {
        let callbacks = self.client().context();
        let known = callbacks.cause().clone();
        let brokers = &self.kafka.brokers;
        let Some(mut cause) = known else {
            let why = format!("{brokers}: {error}");
            return Unanswered { why, advice: None, is_refusal: false };
        };
        if !cause.is_explained {
            cause.is_explained = true;
            if let Some(why) = certificate::explain(&self.kafka, &cause.text) {
                cause.text = format!("{}: {why}", cause.text);
                if callbacks.log.is_due(&why, Instant::now()).is_some() {
                    let advice = advice(&why);
                    tracing::warn!(brokers, cause = why, advice, "broker's certificate refused");
                }
            }
            *callbacks.cause() = Some(cause.clone());
        }
        let why = format!("{brokers}: {error}: {}", cause.text);
        Unanswered { why, advice: advice(&cause.text), is_refusal: cause.is_refusal }
    }
}

/// Why no broker answers a question about a topic, and what to do about it. `None` if one answers
/// within 5 s.
pub(crate) async fn why_unreachable(kafka: &KafkaConfig, topic: &str) -> Option<String> {
    let probe = KafkaProbe::new(kafka, &kafka.group_id).ok()?;
    let topic = topic.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let failed = probe.client().fetch_metadata(Some(&topic), ANSWER_TIMEOUT).err()?;
        Some(Lack::from(probe.unanswered(&failed)).why)
    });
    asked.await.ok()?
}

/// A line of librdkafka without the name of its thread.
fn without_thread(line: &str) -> &str {
    match line.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")) {
        Some((_, text)) => text,
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &str = "ssl://b:9093/bootstrap: certificate verify failed";

    #[test]
    fn a_cause_that_comes_again_lasts_anew() {
        let callbacks = ProbeCallbacks::default();
        callbacks.note(REFUSED, true);
        let before = Instant::now().checked_sub(REMEDY_LASTS).unwrap();
        if let Some(cause) = callbacks.cause().as_mut() {
            cause.noted_at = before;
            cause.text = format!("{REFUSED}: hostname mismatch");
        }

        callbacks.note(REFUSED, true);
        callbacks.note("Connection refused", false);

        let cause = callbacks.cause().clone().unwrap();
        assert!(cause.text.ends_with("hostname mismatch") && cause.is_refusal, "{cause:?}");
        assert!(cause.noted_at > before);
    }

    #[test]
    fn the_advice_is_that_of_the_cause_and_not_of_an_advice() {
        let unanswered =
            Unanswered { why: REFUSED.to_owned(), advice: advice(REFUSED), is_refusal: true };
        let given = unanswered.advice.unwrap();

        let lack = Lack::from(unanswered);

        assert!(given.contains("kafka.ssl_ca_location"), "{given}");
        assert_eq!(lack.why, format!("{REFUSED}; {given}"));
    }
}
