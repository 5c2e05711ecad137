use rdkafka::{
    Message as _,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{Header, Headers as _, OwnedHeaders, OwnedMessage},
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
    /// goes without its value, and a header `stocklock.omitted.bytes` says so.
    pub async fn set_aside(&self, letters: &[(&OwnedMessage, Refusal)]) -> KafkaResult<()> {
        let messages = letters.iter().map(|(message, refusal)| Message {
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: Some(headers(message, refusal)),
        });
        match self.producer.produce(&self.topic, messages.clone().collect()).await {
            Err(error) if is_too_large(&error) => {
                for message in messages {
                    self.produce_in_any_size(message).await?;
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

    async fn produce_in_any_size(&self, mut letter: Message) -> KafkaResult<()> {
        match self.producer.produce(&self.topic, vec![letter.clone()]).await {
            Err(error) if is_too_large(&error) => {
                let omitted = letter.payload.take().map_or(0, |payload| payload.len()).to_string();
                let header = Header { key: "stocklock.omitted.bytes", value: Some(&omitted) };
                letter.headers = Some(letter.headers.unwrap_or_default().insert(header));
                self.producer.produce(&self.topic, vec![letter]).await
            }
            produced => produced,
        }
    }
}

fn is_too_large(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge)
}

/// The message's own headers, then why and from where.
fn headers(message: &OwnedMessage, Refusal { class, text }: &Refusal) -> OwnedHeaders {
    let timestamp = message.timestamp().to_millis().map_or_else(String::new, |t| t.to_string());
    let added = [
        ("stocklock.error.class", (*class).to_owned()),
        ("stocklock.error.text", text.chars().take(1000).collect()),
        ("stocklock.original.topic", message.topic().to_owned()),
        ("stocklock.original.partition", message.partition().to_string()),
        ("stocklock.original.offset", message.offset().to_string()),
        ("stocklock.original.timestamp", timestamp),
    ];
    let mut headers = OwnedHeaders::new();
    for header in message.headers().iter().flat_map(|found| found.iter()) {
        headers = headers.insert(header);
    }
    for (key, value) in &added {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    headers
}
