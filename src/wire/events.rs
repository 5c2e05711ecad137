//! The codecs of the topics.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    SchemaError, WireError, WriterSchema, adjustments,
    codec::{Codec, OwnSchema, REGISTRY_HEADER_BYTES},
    json,
    registered::RegisteredSchemas,
    requests::ORDER_REQUEST,
    status_object,
};
use crate::{
    config::{StatusFormat, TopicsConfig},
    domain::{
        EventKind, Invalid, Line, Lines, MAX_LINES, OrderEvent, OrderId, OrderStatus, ProductId,
        Reason, ReportedStatus,
    },
};

const ORDER_EVENT_TEXT: &str = include_str!("../../schemas/order_event.avsc");
const ORDER_STATUS_TEXT: &str = include_str!("../../schemas/order_status.avsc");

static ORDER_EVENT: OwnSchema =
    OwnSchema::new(ORDER_EVENT_TEXT, &[include_str!("../../schemas/earlier/order_event.v1.avsc")]);
static ORDER_STATUS: OwnSchema = OwnSchema::new(
    ORDER_STATUS_TEXT,
    &[include_str!("../../schemas/earlier/order_status.v1.avsc")],
);

/// The most characters of a status's `source`.
const MAX_SOURCE_CHARS: usize = 128;

/// An event as the schema has it.
#[derive(Deserialize, Serialize)]
#[serde(rename = "order_event")]
struct OrderEventRecord {
    order_id: String,
    kind: String,
    lines: Vec<OrderLineRecord>,
    accepted_at: i64,
    hold_seconds: Option<i32>,
    reference: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename = "order_line")]
struct OrderLineRecord {
    product_id: String,
    quantity: i64,
}

/// A status as the schema has it.
#[derive(Deserialize, Serialize)]
#[serde(rename = "order_status")]
pub(super) struct OrderStatusRecord {
    pub(super) order_id: String,
    pub(super) status: String,
    pub(super) reason: Option<String>,
    pub(super) source: String,
    /// Milliseconds since 1970.
    pub(super) occurred_at: i64,
    pub(super) reference: Option<String>,
}

/// Fails with `Unreadable` for the first schema whose values no topic can read.
pub(crate) fn check_writer_schemas(writers: &[WriterSchema]) -> Result<(), SchemaError> {
    let is_request = |writer: &WriterSchema| {
        adjustments::reads(writer) || writer.is_read_by(ORDER_REQUEST.parsed())
    };
    let mut others = writers.iter().filter(|writer| !is_request(writer));
    others.try_for_each(|writer| writer.check(ORDER_EVENT.parsed(), ORDER_STATUS.parsed()))
}

/// The values of the `orders` topic.
pub struct OrderEventCodec(Codec);

impl OrderEventCodec {
    /// Reads values of this crate's schemas alone.
    ///
    /// Fails if a schema does not resolve. A test rules that out for the embedded ones.
    pub fn new() -> Result<Self, SchemaError> {
        Self::reading(&[])
    }

    /// Reads values of this crate's schemas, and of those `writers` that they can read.
    ///
    /// Fails with `Unresolved` if a schema does not resolve.
    pub fn reading(writers: &[WriterSchema]) -> Result<Self, SchemaError> {
        Codec::new(&ORDER_EVENT, writers).map(Self)
    }

    /// Also reads and writes the framing of a registry, if there is one.
    #[must_use]
    pub(crate) fn on(
        self,
        topics: &TopicsConfig,
        registry: Option<&Arc<RegisteredSchemas>>,
    ) -> Self {
        Self(self.0.with_registry(registry, Some(&topics.orders)))
    }

    /// Whether values get the framing that is configured: the registry, if there is one, has told
    /// the id of the schema.
    pub(crate) fn can_write(&self) -> bool {
        self.0.can_write()
    }

    /// The value in single-object encoding, or in the framing of the registry. Cannot fail.
    pub fn encode(&self, event: &OrderEvent) -> Vec<u8> {
        let begun = self.0.begin().string(&event.order_id.to_string()).string(event.kind.as_str());
        let with_lines = begun.array(event.lines.as_slice(), |datum, line| {
            datum.string(line.product_id().as_str()).long(line.quantity())
        });
        with_lines
            .long(event.accepted_at.timestamp_millis())
            .optional_long(event.hold_seconds.map(i64::from))
            .optional_string(event.reference.as_deref())
            .into_bytes()
    }

    /// The fields of a value, whatever their bounds. Fails as `decode` does, but never with
    /// `Invalid`.
    pub(crate) fn fields(&self, bytes: &[u8]) -> Result<Value, WireError> {
        let record: OrderEventRecord = self.0.decode(bytes)?;
        serde_json::to_value(record).map_err(WireError::BrokenJson)
    }

    /// Reads an event. Fails with every variant of [`WireError`] except `BrokenJson`: an event is
    /// never JSON.
    pub fn decode(&self, bytes: &[u8]) -> Result<OrderEvent, WireError> {
        let record: OrderEventRecord = self.0.decode(bytes)?;
        if record.lines.len() > MAX_LINES {
            return Err(Invalid(format!(
                "an order has 1 to {MAX_LINES} lines, not {}",
                record.lines.len()
            ))
            .into());
        }
        let lines = record
            .lines
            .into_iter()
            .map(|line| Line::new(ProductId::parse(&line.product_id)?, line.quantity));
        Ok(OrderEvent {
            order_id: record.order_id.parse()?,
            kind: EventKind::parse(&record.kind)?,
            lines: Lines::new(lines.collect::<Result<_, _>>()?)?,
            accepted_at: timestamp(record.accepted_at)?,
            hold_seconds: record.hold_seconds.map(hold_seconds).transpose()?,
            reference: record.reference,
        })
    }
}

/// The values of the `order-status` topic.
pub struct OrderStatusCodec {
    codec: Codec,
    format: StatusFormat,
    /// Whether statuses carry the headers of `CloudEvents`.
    cloudevents: bool,
}

/// What the headers of a status say about its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StatusHeaders {
    pub(crate) content_type: &'static str,
}

impl OrderStatusCodec {
    /// Reads values of this crate's schemas alone.
    ///
    /// Fails if a schema does not resolve. A test rules that out for the embedded ones.
    pub fn new() -> Result<Self, SchemaError> {
        Self::reading(&[])
    }

    /// Reads values of this crate's schemas, and of those `writers` that they can read.
    ///
    /// Fails with `Unresolved` if a schema does not resolve.
    pub fn reading(writers: &[WriterSchema]) -> Result<Self, SchemaError> {
        let codec = Codec::new(&ORDER_STATUS, writers)?;
        Ok(Self { codec, format: StatusFormat::Avro, cloudevents: false })
    }

    /// Writes as the settings of the topic say. Also reads and writes the framing of a registry, if
    /// there is one.
    #[must_use]
    pub(crate) fn on(
        self,
        topics: &TopicsConfig,
        registry: Option<&Arc<RegisteredSchemas>>,
    ) -> Self {
        Self {
            codec: self.codec.with_registry(registry, Some(&topics.order_status)),
            format: topics.status_format,
            cloudevents: topics.cloudevents,
        }
    }

    /// As [`OrderEventCodec::can_write`]. JSON needs no id.
    pub(crate) fn can_write(&self) -> bool {
        match self.format {
            StatusFormat::Avro => self.codec.can_write(),
            StatusFormat::Json => true,
        }
    }

    /// The value in the format of the topic. Cannot fail.
    pub fn encode(&self, status: &OrderStatus) -> Vec<u8> {
        match self.format {
            StatusFormat::Avro => self.encode_avro(status),
            StatusFormat::Json => status_object::write(status),
        }
    }

    fn encode_avro(&self, status: &OrderStatus) -> Vec<u8> {
        let (name, reason) = (status.status.as_str(), status.status.reason().map(Reason::as_str));
        let begun = self
            .codec
            .begin()
            .string(&status.order_id.to_string())
            .string(name)
            .optional_string(reason);
        begun
            .string(&status.source)
            .long(status.occurred_at.timestamp_millis())
            .optional_string(status.reference.as_deref())
            .into_bytes()
    }

    /// What the headers of `CloudEvents` say about each value, if statuses carry them.
    pub(crate) fn headers(&self) -> Option<StatusHeaders> {
        let content_type = match self.format {
            StatusFormat::Avro => "application/avro",
            StatusFormat::Json => "application/json",
        };
        self.cloudevents.then_some(StatusHeaders { content_type })
    }

    /// The fields of a value, whatever their bounds. Fails as `decode` does, but never with
    /// `Invalid`.
    pub(crate) fn fields(&self, bytes: &[u8]) -> Result<Value, WireError> {
        if let Some(text) = json::object(bytes) {
            return serde_json::from_slice(text).map_err(WireError::BrokenJson);
        }
        let record: OrderStatusRecord = self.codec.decode(bytes)?;
        serde_json::to_value(record).map_err(WireError::BrokenJson)
    }

    /// Reads a status in Avro or as a JSON object. A status without a time occurred at
    /// `written_at`, the time of its message.
    ///
    /// Fails with every variant of [`WireError`]. It is `Invalid` too if the source may not report
    /// the status.
    pub fn decode(
        &self,
        bytes: &[u8],
        written_at: DateTime<Utc>,
    ) -> Result<OrderStatus, WireError> {
        if let Some(text) = json::object(bytes) {
            return order_status(status_object::read(text, written_at)?);
        }
        match self.codec.decode(bytes) {
            // Registries frame JSON as well. A JSON object needs no schema to be read.
            Err(error @ (WireError::UnregisteredSchema { .. } | WireError::PendingSchema(_))) => {
                match json::object(&bytes[REGISTRY_HEADER_BYTES..]) {
                    Some(text) => order_status(status_object::read(text, written_at)?),
                    None => Err(error),
                }
            }
            record => order_status(record?),
        }
    }
}

/// Fails with `Invalid` if a field is outside its bounds, or if the source may not report the
/// status.
fn order_status(record: OrderStatusRecord) -> Result<OrderStatus, WireError> {
    let order_id: OrderId = record.order_id.parse()?;
    let chars = record.source.chars().count();
    if !(1..=MAX_SOURCE_CHARS).contains(&chars) {
        return Err(Invalid(format!(
            "expected a source of 1 to {MAX_SOURCE_CHARS} characters, found {chars}"
        ))
        .into());
    }
    let status = ReportedStatus::parse(&record.status, record.reason.as_deref())?;
    let occurred_at = timestamp(record.occurred_at)?;
    let OrderStatusRecord { source, reference, .. } = record;
    let status = OrderStatus { order_id, status, source, occurred_at, reference };
    status.check_source()?;
    Ok(status)
}

/// Fails unless the hold has at least a second.
fn hold_seconds(seconds: i32) -> Result<u32, Invalid> {
    let positive = u32::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    positive.ok_or_else(|| Invalid(format!("hold_seconds is {seconds}, expected at least 1")))
}

/// Fails unless chrono can represent the time: some 262,000 years before and after 1970.
fn timestamp(millis: i64) -> Result<DateTime<Utc>, Invalid> {
    DateTime::from_timestamp_millis(millis)
        .ok_or_else(|| Invalid(format!("{millis} is not a time in milliseconds")))
}

#[cfg(test)]
mod tests;
