//! A length in a value costs no memory before its content is there. Needs no server. A binary of
//! its own, since it counts the bytes of all threads.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Mutex;

use peak_alloc::PeakAlloc;
use stocklock::{
    domain::OrderId,
    wire::{
        OrderEventCodec, OrderRequestCodec, OrderStatusCodec, StockAdjustmentCodec, WriterSchema,
    },
};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// The most that one hostile value may cost.
const MAX_BYTES: usize = 8 << 20;
const REGISTERED_ID: u8 = 17;
const GIB: i64 = 1 << 30;

/// Lengths and counts that no value of this size has.
const LENGTHS: [i64; 11] = [
    (1 << 20) - 1,
    1 << 21,
    (1 << 29) - 1,
    1 << 29,
    GIB,
    1 << 40,
    i64::MAX,
    -(1 << 20),
    -GIB,
    i64::MIN + 1,
    i64::MIN,
];

/// Held by a test while it counts, so that it counts no other test.
static COUNTS: Mutex<()> = Mutex::new(());

/// The most bytes that `read` holds at a time, beside those that were held before.
fn peak(read: impl FnOnce()) -> usize {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    read();
    ALLOCATED.peak_usage().saturating_sub(before)
}

/// A number in Avro's binary encoding.
fn long(value: i64) -> Vec<u8> {
    let (mut rest, mut bytes) = (((value << 1) ^ (value >> 63)).cast_unsigned(), Vec::new());
    while rest > 0x7F {
        bytes.push(u8::try_from(rest & 0x7F).unwrap() | 0x80);
        rest >>= 7;
    }
    bytes.push(u8::try_from(rest).unwrap());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [long(i64::try_from(text.len()).unwrap()), text.as_bytes().to_vec()].concat()
}

/// A count, and the size in bytes that follows a negative one.
fn count(value: i64) -> Vec<u8> {
    if value < 0 { [long(value), long(1)].concat() } else { long(value) }
}

/// The header of a value of this crate: the first bytes of any.
fn header(value: &[u8]) -> Vec<u8> {
    value[..10].to_vec()
}

fn own_event_header() -> Vec<u8> {
    header(&std::fs::read("tests/corpus/order_event/own_1").unwrap())
}

fn own_status_header() -> Vec<u8> {
    header(&std::fs::read("tests/corpus/order_status/own_1").unwrap())
}

#[test]
fn lengths_of_own_values_cost_no_memory() {
    let _alone = COUNTS.lock().unwrap();
    let event = OrderEventCodec::new().unwrap();
    let status = OrderStatusCodec::new().unwrap();
    let id = text(&OrderId::generate().to_string());
    for length in LENGTHS {
        let string = [own_event_header(), long(length), b"x".to_vec()].concat();
        let lines = [own_event_header(), id.clone(), text("PLACED"), count(length), text("a")];
        let reason =
            [own_status_header(), id.clone(), text("FAILED"), long(1), long(length), text("x")];

        let bytes = peak(|| {
            event.decode(&string).unwrap_err();
            event.decode(&lines.concat()).unwrap_err();
            status.decode(&reason.concat(), chrono::DateTime::UNIX_EPOCH).unwrap_err();
        });

        assert!(bytes < MAX_BYTES, "a length of {length} costs {bytes} bytes");
    }
}

#[test]
fn lengths_of_own_requests_cost_no_memory() {
    let _alone = COUNTS.lock().unwrap();
    let order = OrderRequestCodec::reading(&[]).unwrap();
    let adjustment = StockAdjustmentCodec::reading(&[]).unwrap();
    let own =
        |reader: &str| header(&std::fs::read(format!("tests/corpus/{reader}/own_1")).unwrap());
    let (of_order, of_adjustment) = (own("intake_order"), own("stock_adjustment"));
    let no_fields = [long(0), long(0), long(0), long(0)].concat();
    for length in LENGTHS {
        let id = [of_order.clone(), long(1), long(length), b"x".to_vec()].concat();
        let lines = [of_order.clone(), no_fields.clone(), count(length), text("a")].concat();
        let request_id = [of_adjustment.clone(), long(length), b"x".to_vec()].concat();
        let items = [of_adjustment.clone(), text("r"), count(length), text("a")].concat();

        let bytes = peak(|| {
            order.json(&id).unwrap_err();
            order.json(&lines).unwrap_err();
            adjustment.decode(&request_id).unwrap_err();
            adjustment.decode(&items).unwrap_err();
        });

        assert!(bytes < MAX_BYTES, "a length of {length} costs {bytes} bytes");
    }
}

/// A schema that has one more field than `order_status`, and a value up to that field.
fn extended(field: &str) -> (OrderStatusCodec, Vec<u8>) {
    let schema = std::fs::read_to_string("schemas/order_status.avsc").unwrap();
    let mut schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let field = format!(r#"{{"name": "more", "type": {field}}}"#);
    schema["fields"].as_array_mut().unwrap().push(serde_json::from_str(&field).unwrap());
    let writer =
        WriterSchema::parse("a test", Some(REGISTERED_ID.into()), &schema.to_string()).unwrap();
    let value = [
        vec![0, 0, 0, 0, REGISTERED_ID],
        text(&OrderId::generate().to_string()),
        text("FAILED"),
        long(0),
        text("payments"),
        long(0),
        long(0),
    ];
    (OrderStatusCodec::reading(&[writer]).unwrap(), value.concat())
}

#[test]
fn lengths_in_values_of_other_schemas_cost_no_memory() {
    let _alone = COUNTS.lock().unwrap();
    for (field, before) in [
        (r#""string""#, vec![]),
        (r#""bytes""#, vec![]),
        (r#"["null","string"]"#, long(1)),
        (r#"{"type":"array","items":"long"}"#, vec![]),
        (r#"{"type":"array","items":["null","long"]}"#, vec![]),
        (r#"{"type":"map","values":"null"}"#, vec![]),
        (r#"{"type":"array","items":{"type":"array","items":"int"}}"#, long(1)),
        (r#"{"type":"array","items":{"type":"map","values":"int"}}"#, long(GIB)),
    ] {
        let (codec, beginning) = extended(field);
        for length in LENGTHS {
            let hostile = [beginning.clone(), before.clone(), count(length), b"x".to_vec()];

            let bytes = peak(|| {
                codec.decode(&hostile.concat(), chrono::DateTime::UNIX_EPOCH).unwrap_err();
            });

            assert!(bytes < MAX_BYTES, "{field}: a length of {length} costs {bytes} bytes");
        }
    }
}
