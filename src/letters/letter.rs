use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use rdkafka::{
    Message as _, Timestamp,
    message::{BorrowedMessage, Header, Headers as _, OwnedHeaders, OwnedMessage},
};

use crate::{
    config::TopicsConfig,
    kafka::{ReplayedMessage, letter_headers as names},
};

/// A topic with its dead-letter topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LetterTopic {
    pub(crate) kind: LetterKind,
    /// The topic of the messages.
    pub(crate) original: String,
    /// The dead-letter topic.
    pub(crate) name: String,
}

/// What the messages of a topic are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LetterKind {
    Event,
    Status,
    OrderRequest,
    Adjustment,
}

/// The place of a letter in its dead-letter topic. As text: `TOPIC:PARTITION:OFFSET`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LetterId {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// A dead letter.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    pub(crate) id: LetterId,
    pub(crate) kind: LetterKind,
    /// When it was dead-lettered. `None`: its message has no time.
    pub(crate) written_at: Option<DateTime<Utc>>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
    /// As found, in their order.
    pub(crate) headers: Vec<LetterHeader>,
    /// Why it was dead-lettered. Empty if its header is missing.
    pub(crate) class: String,
    pub(crate) text: String,
    pub(crate) replays: u32,
    /// The message that was dead-lettered. `None` if a header is missing.
    pub(crate) origin: Option<Origin>,
    /// The same of the message that was never replayed.
    pub(crate) first_origin: Option<Origin>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LetterHeader {
    pub(crate) name: String,
    pub(crate) value: Option<Vec<u8>>,
}

/// The place of a message in its topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Milliseconds since 1970.
    pub(crate) timestamp: Option<i64>,
}

/// The topics that are configured, each with its dead-letter topic.
pub(crate) fn letter_topics(topics: &TopicsConfig) -> Vec<LetterTopic> {
    let own = [
        (LetterKind::Event, &topics.orders, &topics.orders_dlq),
        (LetterKind::Status, &topics.order_status, &topics.order_status_dlq),
    ];
    let intakes = [
        (LetterKind::OrderRequest, &topics.order_requests),
        (LetterKind::Adjustment, &topics.stock_adjustments),
    ];
    let intakes = intakes.into_iter().filter_map(|(kind, intake)| {
        let intake = intake.as_ref()?;
        Some((kind, &intake.requests, &intake.dead_letters))
    });
    let all = own.into_iter().chain(intakes);
    all.map(|(kind, original, name)| LetterTopic {
        kind,
        original: original.clone(),
        name: name.clone(),
    })
    .collect()
}

impl FromStr for LetterId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = || {
            let mut parts = text.rsplitn(3, ':');
            let offset = parts.next()?.parse().ok().filter(|offset| *offset >= 0)?;
            let partition = parts.next()?.parse().ok().filter(|partition| *partition >= 0)?;
            let topic = parts.next().filter(|topic| !topic.is_empty())?.to_owned();
            Some(Self { topic, partition, offset })
        };
        parsed().ok_or_else(|| {
            "expected TOPIC:PARTITION:OFFSET of a letter, such as orders.dlq:3:42".to_owned()
        })
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.topic, self.partition, self.offset)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.topic, self.partition, self.offset)
    }
}

impl Letter {
    /// Reads a message of a dead-letter topic. A header that is missing or broken leaves its field
    /// empty.
    pub(crate) fn read(message: &BorrowedMessage<'_>, kind: LetterKind) -> Self {
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let headers: Vec<_> = headers
            .map(|Header { key, value }| LetterHeader {
                name: key.to_owned(),
                value: value.map(<[u8]>::to_vec),
            })
            .collect();
        let replays = last(&headers, names::REPLAYS).and_then(|text| text.parse().ok());
        let replays = replays.unwrap_or(0);
        let first_origin = if replays > 0 { origin(&headers, first) } else { None };
        let origin = origin(&headers, last);
        Self {
            id: LetterId {
                topic: message.topic().to_owned(),
                partition: message.partition(),
                offset: message.offset(),
            },
            kind,
            written_at: message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis),
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            class: last(&headers, names::CLASS).unwrap_or_default(),
            text: last(&headers, names::TEXT).unwrap_or_default(),
            replays,
            first_origin: first_origin.or_else(|| origin.clone()),
            origin,
            headers,
        }
    }

    /// The last value of a header, as text.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        last(&self.headers, name)
    }

    /// Whether the letter has all of its message. Parts that were too large are left out.
    pub(crate) fn is_complete(&self) -> bool {
        self.header(names::OMITTED).is_none()
    }

    /// The key of the message. A compacted dead-letter topic demands a key, which is made then.
    pub(crate) fn original_key(&self) -> Option<&[u8]> {
        self.key.as_deref().filter(|_| self.header(names::KEY_MADE).is_none())
    }

    /// The message that replays this letter to its original topic: the key, the value and the
    /// headers as they were first found. Further headers have the origin and the number of replays.
    pub(crate) fn replayed<'m>(
        &'m self,
        topic: &'m str,
        partition: Option<i32>,
    ) -> ReplayedMessage<'m> {
        let found = self.headers.iter().filter(|header| !header.name.starts_with("stocklock."));
        let mut headers = found.fold(OwnedHeaders::new(), |headers, header| {
            headers.insert(Header { key: &header.name, value: header.value.as_ref() })
        });
        let mut own = vec![(names::REPLAYS, self.replays.saturating_add(1).to_string())];
        if let Some(Origin { topic, partition, offset, timestamp }) = &self.first_origin {
            let timestamp = timestamp.map_or_else(String::new, |time| time.to_string());
            own.extend([
                (names::TOPIC, topic.clone()),
                (names::PARTITION, partition.to_string()),
                (names::OFFSET, offset.to_string()),
                (names::TIMESTAMP, timestamp),
            ]);
        }
        for (key, value) in &own {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let (key, payload) = (self.original_key(), self.payload.as_deref());
        ReplayedMessage { topic, partition, key, payload, headers }
    }

    /// The message that a replay produces, at the place that the letter came from.
    pub(crate) fn as_delivered(&self, origin: &Origin, now: DateTime<Utc>) -> OwnedMessage {
        let replayed = self.replayed(&origin.topic, Some(origin.partition));
        OwnedMessage::new(
            replayed.payload.map(<[u8]>::to_vec),
            replayed.key.map(<[u8]>::to_vec),
            origin.topic.clone(),
            Timestamp::CreateTime(now.timestamp_millis()),
            origin.partition,
            origin.offset,
            Some(replayed.headers),
        )
    }
}

/// Bytes as text for a terminal: text with its control characters escaped, or hexadecimal digits.
pub(crate) fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => escaped(text),
        Err(_) => format!("0x{}", hex(bytes)),
    }
}

/// A text with its control characters escaped.
pub(crate) fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn last(headers: &[LetterHeader], name: &str) -> Option<String> {
    text(headers.iter().rev(), name)
}

fn first(headers: &[LetterHeader], name: &str) -> Option<String> {
    text(headers.iter(), name)
}

fn text<'h>(mut headers: impl Iterator<Item = &'h LetterHeader>, name: &str) -> Option<String> {
    let found = headers.find(|header| header.name == name)?;
    Some(String::from_utf8_lossy(found.value.as_ref()?).into_owned())
}

fn origin(
    headers: &[LetterHeader],
    find: impl Fn(&[LetterHeader], &str) -> Option<String>,
) -> Option<Origin> {
    Some(Origin {
        topic: find(headers, names::TOPIC)?,
        partition: find(headers, names::PARTITION)?.parse().ok()?,
        offset: find(headers, names::OFFSET)?.parse().ok()?,
        timestamp: find(headers, names::TIMESTAMP).and_then(|time| time.parse().ok()),
    })
}
