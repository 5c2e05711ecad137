//! The values of the `stock-adjustments` topic.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    RegisteredSchemas, SchemaError, WireError, WriterSchema,
    codec::{Codec, OwnSchema, REGISTRY_HEADER_BYTES},
    json,
};
use crate::{
    config::TopicsConfig,
    domain::{
        Invalid, ProductId,
        adjustment::{Adjustment, AdjustmentRequest, MAX_ADJUSTMENTS, StockChange},
    },
};

const TEXT: &str = include_str!("../../schemas/stock_adjustment.avsc");

static STOCK_ADJUSTMENT: OwnSchema = OwnSchema::new(TEXT, &[]);

/// A request as the schema has it, and as a JSON object has it.
#[derive(Deserialize, Serialize)]
#[serde(rename = "stock_adjustment", deny_unknown_fields)]
struct RequestRecord {
    request_id: String,
    adjustments: Vec<AdjustmentRecord>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename = "adjustment", deny_unknown_fields)]
struct AdjustmentRecord {
    product_id: String,
    delta: Option<i64>,
    set: Option<i64>,
    if_version: Option<i64>,
    reason: String,
    reference: Option<String>,
}

/// Whether requests can be read that are written with this schema.
pub(super) fn reads(writer: &WriterSchema) -> bool {
    writer.is_read_by(STOCK_ADJUSTMENT.parsed())
}

/// Reads requests to adjust stock.
pub struct StockAdjustmentCodec(Codec);

impl StockAdjustmentCodec {
    /// Reads values of this crate's schema, and of those `writers` that it can read.
    ///
    /// Fails with `Unresolved` if a schema does not resolve.
    pub fn reading(writers: &[WriterSchema]) -> Result<Self, SchemaError> {
        Codec::new(&STOCK_ADJUSTMENT, writers).map(Self)
    }

    /// Also reads the framing of a registry, if there is one.
    #[must_use]
    pub(crate) fn on(
        self,
        topics: &TopicsConfig,
        registry: Option<&Arc<RegisteredSchemas>>,
    ) -> Self {
        let topic = topics.stock_adjustments.as_ref().map(|intake| intake.requests.as_str());
        Self(self.0.with_registry(registry, topic))
    }

    /// Reads a request in Avro or as a JSON object, which may be framed by a registry.
    ///
    /// Fails with every variant of [`WireError`].
    pub fn decode(&self, bytes: &[u8]) -> Result<AdjustmentRequest, WireError> {
        if let Some(text) = json::object(bytes) {
            return read_object(text);
        }
        match self.0.decode(bytes) {
            Err(error @ (WireError::UnregisteredSchema { .. } | WireError::PendingSchema(_))) => {
                match json::object(&bytes[REGISTRY_HEADER_BYTES..]) {
                    Some(text) => read_object(text),
                    None => Err(error),
                }
            }
            record => request(record?),
        }
    }

    /// The fields of a value, whatever their bounds. Fails as `decode` does, but never with
    /// `Invalid`.
    pub(crate) fn fields(&self, bytes: &[u8]) -> Result<Value, WireError> {
        if let Some(text) = json::object(bytes) {
            return serde_json::from_slice(text).map_err(WireError::BrokenJson);
        }
        let record: RequestRecord = self.0.decode(bytes)?;
        serde_json::to_value(record).map_err(WireError::BrokenJson)
    }
}

fn read_object(text: &[u8]) -> Result<AdjustmentRequest, WireError> {
    request(serde_json::from_slice(text).map_err(WireError::BrokenJson)?)
}

/// Fails with `Invalid` if a field is outside its bounds.
fn request(record: RequestRecord) -> Result<AdjustmentRequest, WireError> {
    if record.adjustments.len() > MAX_ADJUSTMENTS {
        let found = record.adjustments.len();
        let error = format!("a request has 1 to {MAX_ADJUSTMENTS} adjustments, not {found}");
        return Err(Invalid(error).into());
    }
    let adjustments = record.adjustments.into_iter().map(adjustment);
    let adjustments = adjustments.collect::<Result<Vec<_>, _>>()?;
    Ok(AdjustmentRequest::new(record.request_id, adjustments)?)
}

fn adjustment(record: AdjustmentRecord) -> Result<Adjustment, Invalid> {
    let AdjustmentRecord { product_id, delta, set, if_version, reason, reference } = record;
    let product_id = ProductId::parse(&product_id)?;
    let of_product = |Invalid(error)| Invalid(format!("adjustment of {product_id}: {error}"));
    let change = StockChange::new(delta, set).map_err(of_product)?;
    Adjustment::check_reason(&reason).map_err(of_product)?;
    if let Some(reference) = &reference {
        Adjustment::check_reference(reference).map_err(of_product)?;
    }
    Ok(Adjustment { product_id, change, if_version, reason, reference })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Result<AdjustmentRequest, WireError> {
        StockAdjustmentCodec::reading(&[]).unwrap().decode(text.as_bytes())
    }

    /// A value in single-object encoding.
    fn avro(codec: &StockAdjustmentCodec, id: &str, product: &str, delta: i64) -> Vec<u8> {
        let begun = codec.0.begin().string(id);
        let with_items = begun.array(&[()], |datum, ()| {
            let datum = datum.string(product).optional_long(Some(delta));
            let datum = datum.optional_long(None).optional_long(Some(3));
            datum.string("count").optional_string(None)
        });
        with_items.into_bytes()
    }

    #[test]
    fn a_request_reads_the_same_in_avro_and_in_json() {
        let codec = StockAdjustmentCodec::reading(&[]).unwrap();
        let item = r#"{"product_id":"sku-1","delta":-2,"if_version":3,"reason":"count"}"#;
        let text = format!(r#"{{"request_id":"r-1","adjustments":[{item}]}}"#);

        let from_avro = codec.decode(&avro(&codec, "r-1", "sku-1", -2)).unwrap();
        let from_json = decode(&text).unwrap();
        let framed = codec.decode(&[&[0, 0, 0, 0, 7], text.as_bytes()].concat()).unwrap();

        assert_eq!(from_avro, from_json);
        assert_eq!(framed, from_json);
        assert_eq!(from_json.adjustments()[0].change, StockChange::Delta(-2));
    }

    #[test]
    fn a_bad_request_is_undecodable_or_invalid() {
        let codec = StockAdjustmentCodec::reading(&[]).unwrap();
        let good = avro(&codec, "r", "a", 1);
        let item = |rest: &str| {
            let item = format!(r#"{{"product_id":"a","reason":"r"{rest}}}"#);
            format!(r#"{{"request_id":"x","adjustments":[{item}]}}"#)
        };

        for (text, class) in [
            (String::new(), "undecodable"),
            ("{".to_owned(), "undecodable"),
            ("{}".to_owned(), "undecodable"),
            (item(r#","delta":1,"x":1"#), "undecodable"),
            (item(r#","delta":"1""#), "undecodable"),
            (item(""), "invalid"),
            (item(r#","delta":1,"set":1"#), "invalid"),
            (item(r#","delta":0"#), "invalid"),
            (item(r#","set":-1"#), "invalid"),
            (r#"{"request_id":"x","adjustments":[]}"#.to_owned(), "invalid"),
        ] {
            assert_eq!(decode(&text).unwrap_err().class(), class, "{text}");
        }
        assert_eq!(codec.decode(&good[..good.len() - 2]).unwrap_err().class(), "undecodable");
        assert_eq!(codec.decode(&avro(&codec, "", "a", 1)).unwrap_err().class(), "invalid");
        assert_eq!(codec.decode(&avro(&codec, "r", "a b", 1)).unwrap_err().class(), "invalid");
    }
}
