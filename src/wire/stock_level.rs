use std::sync::Arc;

use super::{
    RegisteredSchemas, SchemaError,
    codec::{Codec, OwnSchema},
};
use crate::{config::TopicsConfig, domain::StockLevel};

const STOCK_LEVEL_TEXT: &str = include_str!("../../schemas/stock_level.avsc");

static STOCK_LEVEL: OwnSchema = OwnSchema::new(STOCK_LEVEL_TEXT, &[]);

/// The values of the `stock-levels` topic. stocklock writes them and reads none.
pub struct StockLevelCodec {
    codec: Codec,
    /// Whether levels carry the headers of `CloudEvents`.
    cloudevents: bool,
}

impl StockLevelCodec {
    /// Fails if the schema does not resolve. A test rules that out.
    pub fn new() -> Result<Self, SchemaError> {
        Ok(Self { codec: Codec::new(&STOCK_LEVEL, &[])?, cloudevents: false })
    }

    /// Writes as the settings of the topic say, and in the framing of a registry, if there is one.
    #[must_use]
    pub(crate) fn on(
        self,
        topics: &TopicsConfig,
        registry: Option<&Arc<RegisteredSchemas>>,
    ) -> Self {
        let codec = self.codec.with_registry(registry, topics.stock_levels.as_deref());
        Self { codec, cloudevents: topics.cloudevents }
    }

    /// Whether each level carries the headers of `CloudEvents`.
    pub(crate) fn has_cloudevents(&self) -> bool {
        self.cloudevents
    }

    /// The value in single-object encoding, or in the framing of the registry. Cannot fail.
    pub fn encode(&self, level: &StockLevel) -> Vec<u8> {
        let begun = self.codec.begin().string(level.product_id.as_str());
        begun
            .long(level.available)
            .long(level.version)
            .long(level.as_of.timestamp_millis())
            .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use apache_avro::{reader::datum::GenericDatumReader, types::Value};
    use chrono::DateTime;

    use super::*;
    use crate::domain::ProductId;

    #[test]
    fn a_level_is_read_back_with_the_schema() {
        let level = StockLevel {
            product_id: ProductId::parse("sku-1").unwrap(),
            available: (1 << 53) - 1,
            version: 300,
            as_of: DateTime::from_timestamp_millis(1_764_000_000_123).unwrap(),
        };

        let bytes = StockLevelCodec::new().unwrap().encode(&level);

        let reader = GenericDatumReader::builder(STOCK_LEVEL.parsed()).build().unwrap();
        let value = reader.read_value(&mut &bytes[10..]).unwrap();
        let fields = [
            ("product_id", Value::String("sku-1".into())),
            ("available", Value::Long((1 << 53) - 1)),
            ("version", Value::Long(300)),
            ("as_of", Value::TimestampMillis(1_764_000_000_123)),
        ];
        assert_eq!(value, Value::Record(fields.map(|(name, value)| (name.into(), value)).to_vec()));
    }
}
