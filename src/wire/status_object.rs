//! A status as a JSON object. It has the field names of `schemas/order_status.avsc`.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Deserialize;
use serde_json::json;

use super::{WireError, events::OrderStatusRecord, json::JsonTime};
use crate::domain::{OrderStatus, Reason};

/// The `source` of a status that names none.
const UNNAMED_SOURCE: &str = "unnamed";

/// Source and time may be missing.
#[derive(Deserialize)]
struct OrderStatusObject {
    order_id: String,
    status: String,
    reason: Option<String>,
    source: Option<String>,
    occurred_at: Option<JsonTime>,
    reference: Option<String>,
}

/// Reads the text of an object. A status without a time occurred at `written_at`.
///
/// Fails with `BrokenJson`.
pub(super) fn read(text: &[u8], written_at: DateTime<Utc>) -> Result<OrderStatusRecord, WireError> {
    let object: OrderStatusObject = serde_json::from_slice(text).map_err(WireError::BrokenJson)?;
    Ok(OrderStatusRecord {
        order_id: object.order_id,
        status: object.status,
        reason: object.reason,
        source: object.source.unwrap_or_else(|| UNNAMED_SOURCE.to_owned()),
        occurred_at: object
            .occurred_at
            .map_or(written_at.timestamp_millis(), |JsonTime { millis }| millis),
        reference: object.reference,
    })
}

/// The text of an object with all fields. The time is RFC 3339 in UTC, with milliseconds.
pub(super) fn write(status: &OrderStatus) -> Vec<u8> {
    let object = json!({
        "order_id": status.order_id.to_string(),
        "status": status.status.as_str(),
        "reason": status.status.reason().map(Reason::as_str),
        "source": status.source,
        "occurred_at": status.occurred_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        "reference": status.reference,
    });
    object.to_string().into_bytes()
}
