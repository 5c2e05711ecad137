use std::sync::LazyLock;

use apache_avro::Schema;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Codec, WireError};
use crate::domain::{
    EventKind, Invalid, Line, Lines, MAX_LINES, OrderEvent, OrderId, OrderStatus, ProductId, ReportedStatus,
};

const ORDER_EVENT: &str = include_str!("../../schemas/order_event.avsc");
const ORDER_STATUS: &str = include_str!("../../schemas/order_status.avsc");

#[expect(clippy::expect_used, reason = "the embedded schemas are constants, and a test parses them")]
static ORDER_EVENT_SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::parse_str(ORDER_EVENT).expect("order_event.avsc"));
#[expect(clippy::expect_used, reason = "the embedded schemas are constants, and a test parses them")]
static ORDER_STATUS_SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| Schema::parse_str(ORDER_STATUS).expect("order_status.avsc"));

const MAX_SOURCE_CHARS: usize = 128;

#[derive(Serialize, Deserialize)]
#[serde(rename = "order_event")]
struct OrderEventRecord {
    order_id: String,
    kind: String,
    lines: Vec<OrderLineRecord>,
    accepted_at: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "order_line")]
struct OrderLineRecord {
    product_id: String,
    quantity: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "order_status")]
struct OrderStatusRecord {
    order_id: String,
    status: String,
    reason: Option<String>,
    source: String,
    occurred_at: i64,
}

/// The values of the `orders` topic.
pub struct OrderEventCodec(Codec);

impl OrderEventCodec {
    pub fn new() -> Result<Self, Box<apache_avro::Error>> {
        Codec::new(&ORDER_EVENT_SCHEMA).map(Self)
    }

    pub fn encode(&self, event: &OrderEvent) -> Result<Vec<u8>, WireError> {
        let lines = event
            .lines
            .as_slice()
            .iter()
            .map(|line| OrderLineRecord { product_id: line.product_id().to_string(), quantity: line.quantity() });
        self.0.encode(&OrderEventRecord {
            order_id: event.order_id.to_string(),
            kind: event.kind.as_str().into(),
            lines: lines.collect(),
            accepted_at: event.accepted_at.timestamp_millis(),
        })
    }

    pub fn decode(&self, bytes: &[u8]) -> Result<OrderEvent, WireError> {
        let record: OrderEventRecord = self.0.decode(bytes)?;
        if record.lines.len() > MAX_LINES {
            return Err(Invalid(format!("an order has 1 to {MAX_LINES} lines, not {}", record.lines.len())).into());
        }
        let lines = record.lines.into_iter().map(|l| Line::new(ProductId::parse(&l.product_id)?, l.quantity));
        Ok(OrderEvent {
            order_id: record.order_id.parse()?,
            kind: EventKind::parse(&record.kind)?,
            lines: Lines::new(lines.collect::<Result<_, _>>()?)?,
            accepted_at: timestamp(record.accepted_at)?,
        })
    }
}

/// The values of the `order-status` topic.
pub struct OrderStatusCodec(Codec);

impl OrderStatusCodec {
    pub fn new() -> Result<Self, Box<apache_avro::Error>> {
        Codec::new(&ORDER_STATUS_SCHEMA).map(Self)
    }

    pub fn encode(&self, status: &OrderStatus) -> Result<Vec<u8>, WireError> {
        self.0.encode(&OrderStatusRecord {
            order_id: status.order_id.to_string(),
            status: status.status.as_str().into(),
            reason: status.status.reason().map(|reason| reason.as_str().to_owned()),
            source: status.source.clone(),
            occurred_at: status.occurred_at.timestamp_millis(),
        })
    }

    /// Besides a malformed value, refuses a status that its source may not report.
    pub fn decode(&self, bytes: &[u8]) -> Result<OrderStatus, WireError> {
        let record: OrderStatusRecord = self.0.decode(bytes)?;
        let order_id: OrderId = record.order_id.parse()?;
        if !(1..=MAX_SOURCE_CHARS).contains(&record.source.chars().count()) {
            return Err(Invalid(format!("source has 1 to {MAX_SOURCE_CHARS} characters")).into());
        }
        let status = ReportedStatus::parse(&record.status, record.reason.as_deref())?;
        let occurred_at = timestamp(record.occurred_at)?;
        let status = OrderStatus { order_id, status, source: record.source, occurred_at };
        status.check_source()?;
        Ok(status)
    }
}

fn timestamp(millis: i64) -> Result<DateTime<Utc>, Invalid> {
    DateTime::from_timestamp_millis(millis).ok_or_else(|| Invalid(format!("{millis} is not a time in milliseconds")))
}

#[cfg(test)]
mod tests;
