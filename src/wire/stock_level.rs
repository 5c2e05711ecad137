use std::sync::LazyLock;

use apache_avro::Schema;

use super::{
    SchemaError,
    codec::{Codec, OwnSchema},
};
use crate::domain::StockLevel;

const STOCK_LEVEL_TEXT: &str = include_str!("../../schemas/stock_level.avsc");

#[expect(
    clippy::expect_used,
    reason = "the embedded schemas are constants, and a test parses them"
)]
static STOCK_LEVEL: OwnSchema = OwnSchema {
    text: STOCK_LEVEL_TEXT,
    parsed: LazyLock::new(|| Schema::parse_str(STOCK_LEVEL_TEXT).expect("stock_level.avsc")),
    earlier: &[],
};

/// The values of the `stock-levels` topic. stocklock writes them and reads none.
pub struct StockLevelCodec(Codec);

impl StockLevelCodec {
    /// Fails if the schema does not resolve. A test rules that out.
    pub fn new() -> Result<Self, SchemaError> {
        Codec::new(&STOCK_LEVEL, &[]).map(Self)
    }

    /// The value in single-object encoding. Cannot fail.
    pub fn encode(&self, level: &StockLevel) -> Vec<u8> {
        let begun = self.0.begin().string(level.product_id.as_str());
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

        let reader = GenericDatumReader::builder(&STOCK_LEVEL.parsed).build().unwrap();
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
