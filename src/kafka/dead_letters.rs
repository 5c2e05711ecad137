use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rdkafka::{
    Message as _,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, Headers, OwnedHeaders, OwnedMessage},
};

use super::{DeadLetterReason, Message, ProduceError, Producer};
use crate::telemetry::Metrics;

/// Letters of a batch that are logged one by one.
const MAX_LOGGED: usize = 10;

/// Messages that no retry can help, set aside as they were found.
#[derive(Clone)]
pub struct DeadLetters {
    producer: Producer,
    topic: Arc<str>,
    /// Whether the topic has refused a letter that had no key.
    needs_keys: Arc<AtomicBool>,
    metrics: Metrics,
}

impl DeadLetters {
    pub fn new(producer: Producer, topic: &str, metrics: &Metrics) -> Self {
        Self { producer, topic: topic.into(), needs_keys: Arc::default(), metrics: metrics.clone() }
    }

    /// Sets messages aside, each with its refusal's class and text, and waits until the broker has them. May set one aside
    /// twice: the original topic, partition and offset in its headers identify it. One that the dead-letter topic finds too large
    /// goes without its value, or if need be without its key and its own headers too, and a header `stocklock.omitted.bytes` says so.
    pub(crate) async fn set_aside(
        &self,
        letters: &[(&OwnedMessage, DeadLetterReason)],
    ) -> Result<(), ProduceError> {
        let mut open: Vec<_> = letters.iter().collect();
        for extent in [Extent::Whole, Extent::WithoutValue, Extent::OurHeaders] {
            let too_large = match self.produce(&open, extent).await {
                Err(ProduceError::TooLarge { numbers, .. }) if extent > Extent::OurHeaders => {
                    numbers
                }
                produced => {
                    produced?;
                    break;
                }
            };
            open = too_large.into_iter().map(|number| open[number]).collect();
        }
        self.count(letters);
        Ok(())
    }

    /// A compacted topic refuses a letter without a key, as its message had none; then it gets one.
    async fn produce(
        &self,
        letters: &[&(&OwnedMessage, DeadLetterReason)],
        extent: Extent,
    ) -> Result<(), ProduceError> {
        let needs_keys = self.needs_keys.load(Ordering::Relaxed);
        let compose = |needs_keys| {
            let letters = letters
                .iter()
                .map(|(message, refusal)| letter(message, refusal, extent, needs_keys));
            letters.collect::<Vec<_>>()
        };
        match self.producer.produce(&self.topic, compose(needs_keys)).await {
            Err(ProduceError::Kafka(error)) if is_invalid_record(&error) && !needs_keys => {
                self.needs_keys.store(true, Ordering::Relaxed);
                let topic = &*self.topic;
                tracing::warn!(topic, %error, "the topic refuses letters without a key, is its cleanup.policy compact?");
                self.producer.produce(&self.topic, compose(true)).await
            }
            produced => produced,
        }
    }

    fn count(&self, letters: &[(&OwnedMessage, DeadLetterReason)]) {
        for (message, refusal) in letters {
            self.metrics.dead_letters.with_label_values(&[message.topic(), refusal.class]).inc();
        }
        for (message, DeadLetterReason { class, text }) in letters.iter().take(MAX_LOGGED) {
            let (topic, partition, offset) =
                (message.topic(), message.partition(), message.offset());
            tracing::warn!(topic, partition, offset, class, error = text, "dead-lettered");
        }
        if letters.len() > MAX_LOGGED {
            tracing::warn!(letters = letters.len() - MAX_LOGGED, "more were dead-lettered");
        }
    }
}

/// How much of a message its letter has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    /// Only why and from where, which is bounded.
    OurHeaders,
    /// Its key and its headers too.
    WithoutValue,
    Whole,
}

fn letter(
    message: &OwnedMessage,
    refusal: &DeadLetterReason,
    extent: Extent,
    needs_key: bool,
) -> Message {
    let (key, payload) = (message.key(), message.payload());
    let found = || message.headers().into_iter().flat_map(Headers::iter);
    let mut headers = OwnedHeaders::new();
    if extent >= Extent::WithoutValue {
        headers = found().fold(headers, OwnedHeaders::insert);
    }
    headers = add_ours(headers, message, refusal);
    let mut omitted = 0;
    if extent < Extent::Whole {
        omitted += payload.map_or(0, <[u8]>::len);
    }
    if extent < Extent::WithoutValue {
        omitted += key.map_or(0, <[u8]>::len);
        omitted += found()
            .map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len))
            .sum::<usize>();
    }
    if extent < Extent::Whole {
        headers = headers
            .insert(Header { key: "stocklock.omitted.bytes", value: Some(&omitted.to_string()) });
    }
    let mut kept_key = key.filter(|_| extent >= Extent::WithoutValue).map(<[u8]>::to_vec);
    if needs_key && kept_key.is_none() {
        let origin = format!("{}-{}-{}", message.topic(), message.partition(), message.offset());
        kept_key = Some(origin.into_bytes());
        headers = headers.insert(Header { key: "stocklock.key.made", value: Some("true") });
    }
    Message {
        key: kept_key,
        payload: payload.filter(|_| extent == Extent::Whole).map(<[u8]>::to_vec),
        headers: Some(headers),
    }
}

/// librdkafka gives the second code to the others of the batch.
fn is_invalid_record(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::InvalidRecord | RDKafkaErrorCode::InvalidDifferentRecord))
}

/// Adds why, and from where.
fn add_ours(
    headers: OwnedHeaders,
    message: &OwnedMessage,
    DeadLetterReason { class, text }: &DeadLetterReason,
) -> OwnedHeaders {
    let timestamp = message.timestamp().to_millis().map_or_else(String::new, |t| t.to_string());
    let ours = [
        ("stocklock.error.class", (*class).to_owned()),
        ("stocklock.error.text", text.chars().take(1000).collect()),
        ("stocklock.original.topic", message.topic().to_owned()),
        ("stocklock.original.partition", message.partition().to_string()),
        ("stocklock.original.offset", message.offset().to_string()),
        ("stocklock.original.timestamp", timestamp),
    ];
    ours.iter()
        .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}
