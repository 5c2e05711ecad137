use rdkafka::{
    Message as _,
    error::KafkaResult,
    message::{Header, Headers as _, OwnedHeaders, OwnedMessage},
};

use super::{Message, Producer};
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

    /// Sets messages aside, each with its error's class and text, and waits until the broker has them. May set one aside
    /// twice: the original topic, partition and offset in its headers identify it.
    pub async fn set_aside(&self, letters: &[(&OwnedMessage, &'static str, String)]) -> KafkaResult<()> {
        let messages = letters.iter().map(|(message, class, text)| Message {
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            headers: Some(headers(message, class, text)),
        });
        self.producer.produce(&self.topic, messages.collect()).await?;
        for (message, class, text) in letters {
            self.metrics.dead_letters.with_label_values(&[message.topic(), class]).inc();
            let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
            tracing::warn!(topic, partition, offset, class, error = text, "set aside as a dead letter");
        }
        Ok(())
    }
}

/// The message's own headers, then why and from where.
fn headers(message: &OwnedMessage, class: &str, text: &str) -> OwnedHeaders {
    let timestamp = message.timestamp().to_millis().map_or_else(String::new, |t| t.to_string());
    let added = [
        ("stocklock.error.class", class.to_owned()),
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
