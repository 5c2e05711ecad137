//! The headers of a message in the binary mode of `CloudEvents` (version 1.0.2, "Kafka Protocol
//! Binding", 3.2). They let a reader route an event without a look at its value.

use chrono::{DateTime, SecondsFormat, Utc};
use rdkafka::message::{Header, OwnedHeaders};

use super::Message;
use crate::{
    domain::{OrderStatus, StockLevel},
    wire::{OrderStatusCodec, StatusHeaders, StockLevelCodec},
};

const SPEC_VERSION: &str = "1.0";
const HEX_DIGITS: &[u8; 16] = b"0123456789ABCDEF";
const STATUS_TYPE: &str = "io.stocklock.order_status";
const LEVEL_TYPE: &str = "io.stocklock.stock_level";
/// Several processes publish one level. It is the same event, so it has the same source.
const LEVEL_SOURCE: &str = "stock";

/// An event that a message carries.
pub(crate) struct CloudEvent<'a> {
    /// Together with the source it names the event: a repetition of the event has the same.
    pub(crate) id: String,
    /// The reporter, such as `worker`.
    pub(crate) source: &'a str,
    /// The schema's full name.
    pub(crate) kind: &'static str,
    /// What the event is about: the key of its message.
    pub(crate) subject: String,
    pub(crate) time: DateTime<Utc>,
    pub(crate) content_type: &'static str,
}

impl CloudEvent<'_> {
    pub(crate) fn into_headers(self) -> OwnedHeaders {
        let time = self.time.to_rfc3339_opts(SecondsFormat::Millis, true);
        let source = format!("/stocklock/{}", uri_segment(self.source));
        [
            ("content-type", self.content_type),
            ("ce_specversion", SPEC_VERSION),
            ("ce_id", &self.id),
            ("ce_source", &source),
            ("ce_type", self.kind),
            ("ce_subject", &self.subject),
            ("ce_time", &time),
        ]
        .into_iter()
        .fold(OwnedHeaders::new_with_capacity(7), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        })
    }
}

impl Message {
    /// A status, with the headers of `CloudEvents` if the topic has them.
    ///
    /// An order has each status once. So the id of the event is the order's id and the status, and
    /// a redelivered batch repeats it.
    pub(crate) fn of_status(codec: &OrderStatusCodec, status: &OrderStatus) -> Self {
        let mut message = Self::of_order(status.order_id, codec.encode(status));
        message.headers = codec.headers().map(|StatusHeaders { content_type }| {
            let order_id = status.order_id.to_string();
            let event = CloudEvent {
                id: format!("{order_id}/{}", status.status.as_str()),
                source: &status.source,
                kind: STATUS_TYPE,
                subject: order_id,
                time: status.occurred_at,
                content_type,
            };
            event.into_headers()
        });
        message
    }

    /// A level, with the headers of `CloudEvents` if the topic has them.
    ///
    /// The id of the event is the product's id and the version: a repeated level has the same.
    pub(crate) fn of_level(codec: &StockLevelCodec, level: &StockLevel) -> Self {
        let product = level.product_id.as_str();
        let headers = codec.has_cloudevents().then(|| {
            let event = CloudEvent {
                id: format!("{product}/{}", level.version),
                source: LEVEL_SOURCE,
                kind: LEVEL_TYPE,
                subject: product.to_owned(),
                time: level.as_of,
                content_type: "application/avro",
            };
            event.into_headers()
        });
        let key = Some(product.as_bytes().to_vec());
        Self { key, payload: Some(codec.encode(level)), headers }
    }
}

/// The text as one segment of a URI's path (RFC 3986, 2.3): a source may have any characters.
fn uri_segment(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut segment, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                segment.push(char::from(byte));
            }
            byte => {
                let digit = |nibble: u8| char::from(HEX_DIGITS[usize::from(nibble)]);
                segment.extend(['%', digit(byte >> 4), digit(byte & 0xF)]);
            }
        }
        segment
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_of_any_characters_is_one_segment_of_a_uri() {
        assert_eq!(uri_segment("worker"), "worker");
        assert_eq!(uri_segment("Kasse 7/ä"), "Kasse%207%2F%C3%A4");
    }
}
