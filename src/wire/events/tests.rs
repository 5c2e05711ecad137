use apache_avro::schema_compatibility::SchemaCompatibility;

use uuid::Uuid;

use super::*;
use crate::domain::Reason;

const ORDER: &str = "0198f2a0-0000-7000-8000-000000000001";

fn event() -> OrderEvent {
    OrderEvent {
        order_id: ORDER.parse().unwrap(),
        kind: EventKind::Placed,
        lines: serde_json::from_str(r#"[["sku-1",2],["sku-2",1]]"#).unwrap(),
        accepted_at: DateTime::from_timestamp_millis(1_700_000_000_123).unwrap(),
    }
}

fn status(source: &str, status: ReportedStatus) -> OrderStatus {
    let occurred_at = DateTime::from_timestamp_millis(1_700_000_000_456).unwrap();
    OrderStatus { order_id: ORDER.parse().unwrap(), status, source: source.into(), occurred_at }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn an_order_event_keeps_its_golden_bytes() {
    let bytes = OrderEventCodec::new().unwrap().encode(&event()).unwrap();
    assert_eq!(
        hex(&bytes),
        "c3017e3fd380f9abede64830313938663261302d303030302d373030302d383030302d3030303030303030303030310c504c41434544040a736b752d31040a736b752d320200f6a1abfef962"
    );
    assert_eq!(OrderEventCodec::new().unwrap().decode(&bytes).unwrap(), event());
}

#[test]
fn an_order_status_keeps_its_golden_bytes() {
    let failed = status("payments", ReportedStatus::Failed(Reason::Reported("card declined".into())));
    let bytes = OrderStatusCodec::new().unwrap().encode(&failed).unwrap();
    assert_eq!(
        hex(&bytes),
        "c30159d92458c44303c94830313938663261302d303030302d373030302d383030302d3030303030303030303030310c4641494c4544021a63617264206465636c696e6564107061796d656e747390a7abfef962"
    );
    assert_eq!(OrderStatusCodec::new().unwrap().decode(&bytes).unwrap(), failed);
}

#[test]
fn what_is_no_message_of_ours_is_told_apart() {
    let codec = OrderEventCodec::new().unwrap();
    let good = codec.encode(&event()).unwrap();
    let class = |bytes: &[u8]| codec.decode(bytes).unwrap_err().class();
    assert_eq!(class(b""), "undecodable");
    assert_eq!(class(b"{\"order_id\":1}"), "undecodable");
    assert_eq!(class(&good[..good.len() - 1]), "undecodable");
    assert_eq!(class(&[&good[..], b"x"].concat()), "undecodable");
    let mut other_schema = good.clone();
    other_schema[2] ^= 1;
    assert_eq!(class(&other_schema), "unknown_schema");
}

#[test]
fn a_declared_length_allocates_nothing_that_is_not_there() {
    let codec = OrderEventCodec::new().unwrap();
    let mut bytes = codec.encode(&event()).unwrap()[..HEADER].to_vec();
    bytes.extend([0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]);
    assert_eq!(codec.decode(&bytes).unwrap_err().class(), "undecodable");
}

const HEADER: usize = 10;

#[test]
fn values_outside_the_domain_are_invalid() {
    let codec = OrderEventCodec::new().unwrap();
    let record = |kind: &str, product: &str, quantity: i64, times: usize| OrderEventRecord {
        order_id: ORDER.to_owned(),
        kind: kind.into(),
        lines: (0..times).map(|_| OrderLineRecord { product_id: product.into(), quantity }).collect(),
        accepted_at: 0,
    };
    let bad = [
        record("placed", "a", 1, 1),
        record("PLACED", "a b", 1, 1),
        record("PLACED", "a", 0, 1),
        record("PLACED", "a", i64::MIN, 1),
        record("PLACED", "a", 1, 0),
        record("PLACED", "a", 1, 101),
        OrderEventRecord { order_id: Uuid::nil().to_string(), ..record("PLACED", "a", 1, 1) },
    ];
    assert!(codec.decode(&codec.0.encode(&record("PLACED", "a", 1, 1)).unwrap()).is_ok());
    for record in bad {
        let bytes = codec.0.encode(&record).unwrap();
        assert_eq!(codec.decode(&bytes).unwrap_err().class(), "invalid");
    }
}

#[test]
fn only_a_worker_reports_a_completion_or_a_release() {
    let codec = OrderStatusCodec::new().unwrap();
    for reported in [ReportedStatus::Completed, ReportedStatus::Released] {
        let reported_by = |source: &str| codec.decode(&codec.encode(&status(source, reported.clone())).unwrap());
        assert!(reported_by("worker").is_ok());
        assert_eq!(reported_by("payments").unwrap_err().class(), "invalid");
    }
}

#[test]
fn every_status_is_read_as_it_was_written() {
    let codec = OrderStatusCodec::new().unwrap();
    let reason = || Reason::Reported("the customer's wish".into());
    for reported in [
        ReportedStatus::Completed,
        ReportedStatus::Failed(reason()),
        ReportedStatus::Cancelled(None),
        ReportedStatus::Cancelled(Some(reason())),
        ReportedStatus::Released,
    ] {
        let written = status("worker", reported);
        assert_eq!(codec.decode(&codec.encode(&written).unwrap()).unwrap(), written);
    }
}

/// The schemas of the first release. They never change; the present ones must read what they wrote.
const RELEASED: [(&str, &str); 2] = [
    (include_str!("../../../tests/schemas/order_event.v1.avsc"), ORDER_EVENT),
    (include_str!("../../../tests/schemas/order_status.v1.avsc"), ORDER_STATUS),
];

#[test]
fn the_schemas_read_what_every_release_wrote() {
    for (released, present) in RELEASED {
        let (writer, reader) = (Schema::parse_str(released).unwrap(), Schema::parse_str(present).unwrap());
        SchemaCompatibility::can_read(&writer, &reader).unwrap();
    }
}

#[test]
fn a_field_without_a_default_would_break_compatibility() {
    let mut schema: serde_json::Value = serde_json::from_str(ORDER_STATUS).unwrap();
    schema["fields"].as_array_mut().unwrap().push(serde_json::json!({"name": "added", "type": "long"}));
    let present = Schema::parse_str(ORDER_STATUS).unwrap();
    assert!(SchemaCompatibility::can_read(&present, &Schema::parse(&schema).unwrap()).is_err());
}
