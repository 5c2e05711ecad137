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

/// The names of the headers that a letter has besides those of its message. A message that was
/// replayed keeps the origin and the number of its replays.
pub(crate) mod headers {
    pub(crate) const CLASS: &str = "stocklock.error.class";
    pub(crate) const TEXT: &str = "stocklock.error.text";
    pub(crate) const TOPIC: &str = "stocklock.original.topic";
    pub(crate) const PARTITION: &str = "stocklock.original.partition";
    pub(crate) const OFFSET: &str = "stocklock.original.offset";
    pub(crate) const TIMESTAMP: &str = "stocklock.original.timestamp";
    pub(crate) const GROUP: &str = "stocklock.original.group";
    pub(crate) const OMITTED: &str = "stocklock.omitted.bytes";
    pub(crate) const KEY_MADE: &str = "stocklock.key.made";
    pub(crate) const REPLAYS: &str = "stocklock.replays";
    /// The headers of a message that was replayed.
    pub(crate) const OF_REPLAY: [&str; 5] = [TOPIC, PARTITION, OFFSET, TIMESTAMP, REPLAYS];
}

/// The longest value of a header of a replay, bytes. A topic's name has 249 at most.
const MAX_REPLAY_HEADER_BYTES: usize = 256;

/// Dead letters of one call that are logged one by one.
const MAX_LOGGED: usize = 10;

/// Publishes messages to a dead-letter topic as they were found.
#[derive(Clone)]
pub struct DeadLetters {
    producer: Producer,
    topic: Arc<str>,
    /// The consumer group that the messages were read in.
    group_id: Arc<str>,
    /// Whether the topic has rejected a letter without a key.
    needs_keys: Arc<AtomicBool>,
    metrics: Metrics,
}

/// A message to be dead-lettered, and why.
pub(super) struct DeadLetter<'m> {
    pub(super) message: &'m OwnedMessage,
    pub(super) reason: DeadLetterReason,
}

impl DeadLetters {
    /// `topic` is the dead-letter topic.
    pub fn new(producer: Producer, topic: &str, metrics: &Metrics) -> Self {
        Self {
            producer,
            topic: topic.into(),
            group_id: "".into(),
            needs_keys: Arc::default(),
            metrics: metrics.clone(),
        }
    }

    /// The same for messages that are read in a consumer group.
    pub(super) fn of_group(mut self, group_id: &Arc<str>) -> Self {
        self.group_id = Arc::clone(group_id);
        self
    }

    /// Publishes dead letters, and returns when the broker has acknowledged all of them. A letter
    /// may be published twice: the original topic, partition and offset in its headers identify it.
    ///
    /// A letter that is too large for the dead-letter topic is published without its value. If it
    /// is still too large, it is published without its key and its own headers too. The header
    /// `stocklock.omitted.bytes` says how much is left out.
    ///
    /// Fails with a [`ProduceError`] if the broker did not acknowledge a letter; others may be
    /// published.
    pub(super) async fn publish(&self, letters: &[DeadLetter<'_>]) -> Result<(), ProduceError> {
        let mut open: Vec<_> = letters.iter().collect();
        for content in [LetterContent::Whole, LetterContent::NoValue, LetterContent::OwnHeaders] {
            let too_large = match self.produce(&open, content).await {
                Err(ProduceError::TooLarge { numbers, .. })
                    if content > LetterContent::OwnHeaders =>
                {
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

    /// Produces letters. A compacted topic rejects a message without a key: from the first such
    /// rejection on, every letter without a key gets one.
    async fn produce(
        &self,
        letters: &[&DeadLetter<'_>],
        content: LetterContent,
    ) -> Result<(), ProduceError> {
        let needs_keys = self.needs_keys.load(Ordering::Relaxed);
        let compose = |needs_keys| {
            let letters =
                letters.iter().map(|letter| compose(letter, &self.group_id, content, needs_keys));
            letters.collect::<Vec<_>>()
        };
        match self.producer.produce(&self.topic, compose(needs_keys)).await {
            Err(ProduceError::Kafka(error)) if is_invalid_record(&error) && !needs_keys => {
                self.needs_keys.store(true, Ordering::Relaxed);
                tracing::warn!(
                    topic = &*self.topic,
                    %error,
                    "dead letters without a key rejected, adding keys; is cleanup.policy compact?"
                );
                self.producer.produce(&self.topic, compose(true)).await
            }
            produced => produced,
        }
    }

    fn count(&self, letters: &[DeadLetter<'_>]) {
        for DeadLetter { message, reason } in letters {
            self.metrics.dead_letters.with_label_values(&[message.topic(), reason.class]).inc();
        }
        for DeadLetter { message, reason } in letters.iter().take(MAX_LOGGED) {
            let (topic, partition, offset) =
                (message.topic(), message.partition(), message.offset());
            let DeadLetterReason { class, text } = reason;
            tracing::warn!(topic, partition, offset, class, error = text, "dead-lettered");
        }
        if letters.len() > MAX_LOGGED {
            tracing::warn!(letters = letters.len() - MAX_LOGGED, "further messages dead-lettered");
        }
    }
}

/// How much of a message its letter has, from least to most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum LetterContent {
    /// Only the headers that [`DeadLetters`] adds. Their size is bounded.
    OwnHeaders,
    /// The message's key and headers too.
    NoValue,
    Whole,
}

/// Makes the message that is published as a letter.
fn compose(
    letter: &DeadLetter<'_>,
    group_id: &str,
    content: LetterContent,
    needs_key: bool,
) -> Message {
    let DeadLetter { message, reason } = letter;
    let (key, payload) = (message.key(), message.payload());
    let found = || message.headers().into_iter().flat_map(Headers::iter);
    let mut headers = OwnedHeaders::new();
    if content >= LetterContent::NoValue {
        headers = found().fold(headers, OwnedHeaders::insert);
    } else {
        headers = found().filter(is_of_replay).fold(headers, OwnedHeaders::insert);
    }
    headers = add_own_headers(headers, message, group_id, reason);
    let mut omitted = 0;
    if content < LetterContent::Whole {
        omitted += payload.map_or(0, <[u8]>::len);
    }
    if content < LetterContent::NoValue {
        omitted += key.map_or(0, <[u8]>::len);
        omitted += found()
            .filter(|header| !is_of_replay(header))
            .map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len))
            .sum::<usize>();
    }
    if content < LetterContent::Whole {
        headers =
            headers.insert(Header { key: headers::OMITTED, value: Some(&omitted.to_string()) });
    }
    let mut kept_key = key.filter(|_| content >= LetterContent::NoValue).map(<[u8]>::to_vec);
    if needs_key && kept_key.is_none() {
        let origin = format!("{}-{}-{}", message.topic(), message.partition(), message.offset());
        kept_key = Some(origin.into_bytes());
        headers = headers.insert(Header { key: headers::KEY_MADE, value: Some("true") });
    }
    Message {
        key: kept_key,
        payload: payload.filter(|_| content == LetterContent::Whole).map(<[u8]>::to_vec),
        headers: Some(headers),
    }
}

/// Whether a header says that its message was replayed, and from where. Every letter keeps it.
fn is_of_replay(header: &Header<'_, &[u8]>) -> bool {
    headers::OF_REPLAY.contains(&header.key)
        && header.value.is_none_or(|value| value.len() <= MAX_REPLAY_HEADER_BYTES)
}

/// Whether the broker rejected a record. librdkafka gives the second code to the other records of
/// the batch.
fn is_invalid_record(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::InvalidRecord | RDKafkaErrorCode::InvalidDifferentRecord))
}

/// Adds the headers that say why the message was dead-lettered and where it was found.
fn add_own_headers(
    to: OwnedHeaders,
    message: &OwnedMessage,
    group_id: &str,
    DeadLetterReason { class, text }: &DeadLetterReason,
) -> OwnedHeaders {
    let timestamp = message.timestamp().to_millis().map_or_else(String::new, |t| t.to_string());
    let ours = [
        (headers::CLASS, (*class).to_owned()),
        (headers::TEXT, text.chars().take(1000).collect()),
        (headers::TOPIC, message.topic().to_owned()),
        (headers::PARTITION, message.partition().to_string()),
        (headers::OFFSET, message.offset().to_string()),
        (headers::TIMESTAMP, timestamp),
        (headers::GROUP, group_id.to_owned()),
    ];
    ours.iter().fold(to, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}
