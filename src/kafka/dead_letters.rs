use rdkafka::{
    Message as _,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{Header, Headers, OwnedHeaders, OwnedMessage},
};

use super::{Message, Producer, Refusal};
use crate::telemetry::Metrics;

/// Messages that no retry can help, set aside as they were found.
#[derive(Clone)]
pub struct DeadLetters {
    producer: Producer,
    topic: String,
    metrics: Metrics,
}

impl DeadLetters {
    pub fn new(producer: Producer, topic: &str, metrics: &Metrics) -> Self {
        Self { producer, topic: topic.to_owned(), metrics: metrics.clone() }
    }

    /// Sets messages aside, each with its refusal's class and text, and waits until the broker has them. May set one aside
    /// twice: the original topic, partition and offset in its headers identify it. One that the dead-letter topic finds too large
    /// goes without its value, or if need be without its key and its own headers too, and a header `stocklock.omitted.bytes` says so.
    pub async fn set_aside(&self, letters: &[(&OwnedMessage, Refusal)]) -> KafkaResult<()> {
        let whole = letters.iter().map(|(message, refusal)| letter(message, refusal, Extent::Whole)).collect();
        match self.producer.produce(&self.topic, whole).await {
            Err(error) if is_too_large(&error) => {
                for (message, refusal) in letters {
                    self.produce_in_any_size(message, refusal).await?;
                }
            }
            produced => produced?,
        }
        for (message, Refusal { class, text }) in letters {
            self.metrics.dead_letters.with_label_values(&[message.topic(), class]).inc();
            let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
            tracing::warn!(topic, partition, offset, class, error = text, "set aside as a dead letter");
        }
        Ok(())
    }

    async fn produce_in_any_size(&self, message: &OwnedMessage, refusal: &Refusal) -> KafkaResult<()> {
        for extent in [Extent::Whole, Extent::WithoutValue] {
            match self.producer.produce(&self.topic, vec![letter(message, refusal, extent)]).await {
                Err(error) if is_too_large(&error) => {}
                produced => return produced,
            }
        }
        self.producer.produce(&self.topic, vec![letter(message, refusal, Extent::OurHeaders)]).await
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

fn letter(message: &OwnedMessage, refusal: &Refusal, extent: Extent) -> Message {
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
        omitted += found().map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len)).sum::<usize>();
    }
    if extent < Extent::Whole {
        headers = headers.insert(Header { key: "stocklock.omitted.bytes", value: Some(&omitted.to_string()) });
    }
    Message {
        key: key.filter(|_| extent >= Extent::WithoutValue).map(<[u8]>::to_vec),
        payload: payload.filter(|_| extent == Extent::Whole).map(<[u8]>::to_vec),
        headers: Some(headers),
    }
}

fn is_too_large(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge)
}

/// Adds why, and from where.
fn add_ours(headers: OwnedHeaders, message: &OwnedMessage, Refusal { class, text }: &Refusal) -> OwnedHeaders {
    let timestamp = message.timestamp().to_millis().map_or_else(String::new, |t| t.to_string());
    let ours = [
        ("stocklock.error.class", (*class).to_owned()),
        ("stocklock.error.text", text.chars().take(1000).collect()),
        ("stocklock.original.topic", message.topic().to_owned()),
        ("stocklock.original.partition", message.partition().to_string()),
        ("stocklock.original.offset", message.offset().to_string()),
        ("stocklock.original.timestamp", timestamp),
    ];
    ours.iter().fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}
