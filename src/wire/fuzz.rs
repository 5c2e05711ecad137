//! Fuzzes the readers of the topics.

use chrono::{DateTime, Utc};

use super::{
    OrderEventCodec, OrderStatusCodec, StockAdjustmentCodec, WriterSchema,
    bounded_schema::check_bounded, fingerprint::fingerprint, writer_schema::SchemaError,
};
use crate::{domain::adjustment::MAX_ADJUSTMENTS, reader_fuzz::fuzz};

/// Schemas of other systems, whose ids in a registry are 17 and 18. They have fields of every type.
fn writers() -> Vec<WriterSchema> {
    let status = include_str!("../../tests/corpus/schema/extended_status.avsc");
    let event = include_str!("../../tests/corpus/schema/extended_event.avsc");
    [(17, status), (18, event)]
        .map(|(id, text)| WriterSchema::parse("a test", Some(id), text).unwrap())
        .into()
}

/// The result as a text, and what is left after it is written and read again.
fn shown<T: std::fmt::Debug, E: std::fmt::Display>(result: &Result<T, E>) -> String {
    match result {
        Ok(_) => "read".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn events_are_read_or_refused() {
    let codec = OrderEventCodec::reading(&writers()).unwrap();

    fuzz("order_event", |bytes| {
        let event = codec.decode(bytes);
        if let Ok(event) = &event {
            assert_eq!(codec.decode(&codec.encode(event)).as_ref().ok(), Some(event));
        }
        shown(&event)
    });
}

#[test]
fn statuses_are_read_or_refused() {
    let codec = OrderStatusCodec::reading(&writers()).unwrap();
    let written_at: DateTime<Utc> = DateTime::UNIX_EPOCH;

    fuzz("order_status", |bytes| {
        let status = codec.decode(bytes, written_at);
        if let Ok(status) = &status {
            let again = codec.decode(&codec.encode(status), written_at);
            assert_eq!(again.as_ref().ok(), Some(status));
        }
        shown(&status)
    });
}

#[test]
fn adjustments_of_the_topic_are_read_or_refused() {
    let schema = include_str!("../../tests/corpus/schema/extended_adjustment.avsc");
    let writer = WriterSchema::parse("a test", Some(20), schema).unwrap();
    let codec = StockAdjustmentCodec::reading(&[writer]).unwrap();

    fuzz("stock_adjustment", |bytes| {
        let request = codec.decode(bytes);
        if let Ok(request) = &request {
            assert!((1..=MAX_ADJUSTMENTS).contains(&request.adjustments().len()));
        }
        shown(&request)
    });
}

#[test]
fn schemas_are_read_or_refused() {
    fuzz("schema", |bytes| {
        let Ok(json) = serde_json::from_slice(bytes) else { return "no JSON".to_owned() };
        let parsed = apache_avro::Schema::parse(&json);
        if let Ok(schema) = &parsed {
            let _number = fingerprint(&json);
            let bounded: Result<(), SchemaError> = check_bounded("a test", schema);
            return shown(&bounded);
        }
        shown(&parsed)
    });
}
