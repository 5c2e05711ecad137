//! The values of the topic of order requests.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    RegisteredSchemas, SchemaError, WireError, WriterSchema,
    codec::{Codec, OwnSchema, REGISTRY_HEADER_BYTES},
    json,
};
use crate::{
    config::TopicsConfig,
    domain::{Invalid, Lines, MAX_LINES, OrderId},
};

const ORDER_REQUEST_TEXT: &str = include_str!("../../schemas/order_request.avsc");

pub(super) static ORDER_REQUEST: OwnSchema = OwnSchema::new(ORDER_REQUEST_TEXT, &[]);

/// A request as the schema has it. Its JSON is the body of a `POST`.
#[derive(Deserialize, Serialize)]
#[serde(rename = "order_request")]
struct OrderRequestRecord {
    order_id: Option<String>,
    reference: Option<String>,
    customer_id: Option<String>,
    hold_seconds: Option<i32>,
    lines: Vec<OrderRequestLine>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename = "order_request_line")]
struct OrderRequestLine {
    product_id: String,
    quantity: i64,
}

/// Reads the values of the topic of order requests. Only `stocklock bench` writes them.
pub struct OrderRequestCodec(Codec);

impl OrderRequestCodec {
    /// Reads values of this crate's schema, and of those `writers` that it can read.
    ///
    /// Fails with `Unresolved` if a schema does not resolve.
    pub fn reading(writers: &[WriterSchema]) -> Result<Self, SchemaError> {
        Codec::new(&ORDER_REQUEST, writers).map(Self)
    }

    /// Also reads the framing of a registry, if there is one.
    #[must_use]
    pub(crate) fn on(
        self,
        topics: &TopicsConfig,
        registry: Option<&Arc<RegisteredSchemas>>,
    ) -> Self {
        let topic = topics.order_requests.as_ref().map(|intake| intake.requests.as_str());
        Self(self.0.with_registry(registry, topic))
    }

    /// The value of a request that has only lines, and an id if the caller made one.
    pub(crate) fn encode(&self, order_id: Option<OrderId>, lines: &Lines) -> Vec<u8> {
        let id = order_id.map(|id| id.to_string());
        let begun = self.0.begin().optional_string(id.as_deref());
        let begun = begun.optional_string(None).optional_string(None).optional_long(None);
        begun
            .array(lines.as_slice(), |datum, line| {
                datum.string(line.product_id().as_str()).long(line.quantity())
            })
            .into_bytes()
    }

    /// The request as JSON text: the value itself if it begins as a JSON object, or the JSON of an
    /// Avro value. So one parser checks both, and names a wrong field in both in the same way.
    ///
    /// Fails with every variant of [`WireError`] except `BrokenJson`: the text is not parsed here.
    /// It is `Invalid` if an Avro value has too many lines.
    pub fn json<'v>(&self, value: &'v [u8]) -> Result<Cow<'v, [u8]>, WireError> {
        if let Some(text) = json::object(value) {
            return Ok(text.into());
        }
        match self.0.decode(value) {
            // Registries frame JSON as well. A JSON object needs no schema to be read.
            Err(error @ (WireError::UnregisteredSchema { .. } | WireError::PendingSchema(_))) => {
                json::object(&value[REGISTRY_HEADER_BYTES..]).map(Cow::from).ok_or(error)
            }
            record => text_of(&record?).map(Cow::from),
        }
    }
}

/// The JSON of a record. Fails with `Invalid` for too many lines, so that the text is bounded.
fn text_of(record: &OrderRequestRecord) -> Result<Vec<u8>, WireError> {
    let lines = record.lines.len();
    if lines > MAX_LINES {
        return Err(Invalid(format!("an order has 1 to {MAX_LINES} lines, not {lines}")).into());
    }
    serde_json::to_vec(record).map_err(WireError::BrokenJson)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Line, ProductId};

    fn codec() -> OrderRequestCodec {
        OrderRequestCodec::reading(&[]).unwrap()
    }

    /// The single-object encoding of a request of one line.
    fn avro(order_id: Option<&str>, quantities: &[i64]) -> Vec<u8> {
        let begun = codec().0.begin().optional_string(order_id);
        let begun = begun.optional_string(Some("r")).optional_string(None).optional_long(Some(60));
        begun.array(quantities, |datum, n| datum.string("a").long(*n)).into_bytes()
    }

    #[test]
    fn a_request_in_avro_becomes_the_json_of_a_post() {
        let id = "018f2e4c-7b1a-7c3d-8e4f-0123456789ab";

        let text = codec().json(&avro(Some(id), &[2])).unwrap().into_owned();

        let lines = r#""lines":[{"product_id":"a","quantity":2}]"#;
        let expected = format!(
            r#"{{"order_id":"{id}","reference":"r","customer_id":null,"hold_seconds":60,{lines}}}"#
        );
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn an_encoded_request_is_read_as_it_was() {
        let lines = Lines::new(vec![Line::new(ProductId::parse("a").unwrap(), 3).unwrap()]);
        let id = OrderId::generate();

        let value = codec().encode(Some(id), &lines.unwrap());

        let read: serde_json::Value =
            serde_json::from_slice(&codec().json(&value).unwrap()).unwrap();
        assert_eq!(read["order_id"], id.to_string());
        assert_eq!(read["lines"], serde_json::json!([{"product_id": "a", "quantity": 3}]));
        assert!(read["reference"].is_null() && read["hold_seconds"].is_null(), "{read}");
    }

    #[test]
    fn json_is_passed_on_also_in_the_framing_of_a_registry() {
        for value in
            [&b" {\"lines\":[]}"[..], b"\xEF\xBB\xBF{\"lines\":[]}", b"\0\0\0\0\x07{\"lines\":[]}"]
        {
            assert_eq!(&*codec().json(value).unwrap(), b"{\"lines\":[]}");
        }
    }

    #[test]
    fn what_is_no_request_has_a_class() {
        let too_many = avro(None, &[1; MAX_LINES + 1]);
        let mut cut = avro(None, &[1]);
        cut.truncate(cut.len() - 2);
        for (value, class) in [
            (&b""[..], "undecodable"),
            (b"[]", "undecodable"),
            (b"\0\0\0\0\x07\x02", "unregistered_schema"),
            (b"\xC3\x01\x01\x02\x03\x04\x05\x06\x07\x08\x02", "unknown_schema"),
            (&cut, "undecodable"),
            (&too_many, "invalid"),
        ] {
            assert_eq!(codec().json(value).unwrap_err().class(), class, "{value:02x?}");
        }
    }
}
