use std::sync::LazyLock;

use apache_avro::Schema;
use apache_avro::schema_compatibility::SchemaCompatibility;

use super::{super::datum::DatumWriter, *};

const WRITTEN_AT: DateTime<Utc> = DateTime::UNIX_EPOCH;
const ORDER: &str = "0198f2a0-0000-7000-8000-000000000001";

fn event() -> OrderEvent {
    OrderEvent {
        order_id: ORDER.parse().unwrap(),
        kind: EventKind::Placed,
        lines: serde_json::from_str(r#"[["sku-1",2],["sku-2",1]]"#).unwrap(),
        accepted_at: DateTime::from_timestamp_millis(1_700_000_000_123).unwrap(),
        hold_seconds: Some(900),
        reference: Some("r-1".into()),
    }
}

fn status(source: &str, status: ReportedStatus) -> OrderStatus {
    let occurred_at = DateTime::from_timestamp_millis(1_700_000_000_456).unwrap();
    OrderStatus {
        order_id: ORDER.parse().unwrap(),
        status,
        source: source.into(),
        occurred_at,
        reference: Some("r-1".into()),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The datums that fastavro 1.13 writes for [`event`] and [`failed`] with the schemas of this
/// crate.
const EVENT_DATUM: &str = "4830313938663261302d303030302d373030302d383030302d303030303030303030\
    3030310c504c41434544040a736b752d31040a736b752d320200f6a1abfef96202880e0206722d31";
const STATUS_DATUM: &str = "4830313938663261302d303030302d373030302d383030302d303030303030303030\
    3030310c4641494c4544021a63617264206465636c696e6564107061796d656e747390a7abfef9620206722d31";

/// The same of the first version, which has neither a hold nor a reference.
const FIRST_EVENT_DATUM: &str = "4830313938663261302d303030302d373030302d383030302d303030303030303\
    0303030310c504c41434544040a736b752d31040a736b752d320200f6a1abfef962";
const FIRST_STATUS_DATUM: &str = "4830313938663261302d303030302d373030302d383030302d30303030303030\
    30303030310c4641494c4544021a63617264206465636c696e6564107061796d656e747390a7abfef962";

/// Their headers. fastavro and Java's `SchemaNormalization` compute the same fingerprints.
const EVENT_HEADER: &str = "c301365c219ddec7df2f";
const STATUS_HEADER: &str = "c301dd2ebaa85d446736";
const FIRST_EVENT_HEADER: &str = "c301fab1aa38ccb712d3";
const FIRST_STATUS_HEADER: &str = "c301bbc9dea415560218";

/// The headers of earlier versions of this crate, which wrote the fingerprint of `apache-avro`.
const FORMER_EVENT_HEADER: &str = "c3017e3fd380f9abede6";
const FORMER_STATUS_HEADER: &str = "c30159d92458c44303c9";

fn bytes(hex: &[&str]) -> Vec<u8> {
    let hex = hex.concat();
    (0..hex.len())
        .step_by(2)
        .map(|start| u8::from_str_radix(&hex[start..start + 2], 16).unwrap())
        .collect()
}

fn failed() -> OrderStatus {
    status("payments", ReportedStatus::Failed(Reason::Reported("card declined".into())))
}

fn read_status(bytes: &[u8]) -> Result<OrderStatus, WireError> {
    OrderStatusCodec::new().unwrap().decode(bytes, WRITTEN_AT)
}

#[test]
fn values_are_written_byte_for_byte_as_fastavro_writes_them() {
    let (events, statuses) = (OrderEventCodec::new().unwrap(), OrderStatusCodec::new().unwrap());

    assert_eq!(hex(&events.encode(&event())), [EVENT_HEADER, EVENT_DATUM].concat());
    assert_eq!(hex(&statuses.encode(&failed())), [STATUS_HEADER, STATUS_DATUM].concat());
}

#[test]
fn values_of_the_present_and_of_earlier_versions_are_read() {
    let events = OrderEventCodec::new().unwrap();
    let first_event = OrderEvent { hold_seconds: None, reference: None, ..event() };
    let first_status = OrderStatus { reference: None, ..failed() };

    assert_eq!(events.decode(&bytes(&[EVENT_HEADER, EVENT_DATUM])).unwrap(), event());
    assert_eq!(read_status(&bytes(&[STATUS_HEADER, STATUS_DATUM])).unwrap(), failed());
    for header in [FIRST_EVENT_HEADER, FORMER_EVENT_HEADER] {
        assert_eq!(events.decode(&bytes(&[header, FIRST_EVENT_DATUM])).unwrap(), first_event);
    }
    for header in [FIRST_STATUS_HEADER, FORMER_STATUS_HEADER] {
        assert_eq!(read_status(&bytes(&[header, FIRST_STATUS_DATUM])).unwrap(), first_status);
    }
}

#[test]
fn a_hold_of_less_than_a_second_is_refused() {
    let codec = OrderEventCodec::new().unwrap();
    let written = codec.encode(&OrderEvent { hold_seconds: Some(0), ..event() });

    assert_eq!(codec.decode(&written).unwrap_err().class(), "invalid");
}

#[test]
fn every_value_that_is_written_is_read_again() {
    let codec = OrderStatusCodec::new().unwrap();
    let long = "\u{1f600}".repeat(512);
    for millis in [0, -1, 63, 64, -64, -65, 1 << 20, 253_402_300_799_999] {
        for reason in ["", "x", &long] {
            let mut status =
                status(&"s".repeat(128), ReportedStatus::Failed(Reason::parse(reason)));
            status.occurred_at = DateTime::from_timestamp_millis(millis).unwrap();
            assert_eq!(codec.decode(&codec.encode(&status), WRITTEN_AT).unwrap(), status);
        }
    }
}

#[test]
fn each_kind_of_broken_value_has_its_class() {
    let codec = OrderEventCodec::new().unwrap();
    let good = codec.encode(&event());
    let class = |bytes: &[u8]| codec.decode(bytes).unwrap_err().class();
    assert_eq!(class(b""), "undecodable");
    assert_eq!(class(b"{\"order_id\":1}"), "undecodable");
    assert_eq!(class(&good[..good.len() - 1]), "undecodable");
    assert_eq!(class(&[&good[..], b"x"].concat()), "undecodable");
    assert_eq!(class(&[0, 0, 0, 1]), "undecodable");
    assert_eq!(class(&[&[0, 0, 0, 0, 1], &good[HEADER..]].concat()), "unregistered_schema");
    let mut other_schema = good.clone();
    other_schema[2] ^= 1;
    assert_eq!(class(&other_schema), "unknown_schema");
}

#[test]
fn an_unknown_fingerprint_is_named_as_other_languages_name_it() {
    let error = read_status(&bytes(&["c3017dea15133bfba412", STATUS_DATUM])).unwrap_err();

    assert_eq!(error.class(), "unknown_schema");
    assert!(error.to_string().contains("7dea15133bfba412"), "{error}");
    assert!(error.to_string().contains("topics.writer_schemas"), "{error}");
}

/// The schema of a writer that has one more field, with a default.
fn extended() -> String {
    let mut schema: serde_json::Value = serde_json::from_str(ORDER_STATUS_TEXT).unwrap();
    let field =
        serde_json::json!({"name": "terminal", "type": ["null", "string"], "default": null});
    schema["fields"].as_array_mut().unwrap().insert(0, field);
    schema.to_string()
}

#[test]
fn a_writer_with_one_more_field_is_read_by_fingerprint_and_by_id() {
    let writers = [WriterSchema::parse("payments.avsc", Some(17), &extended()).unwrap()];
    check_writer_schemas(&writers).unwrap();
    let codec = OrderStatusCodec::reading(&writers).unwrap();
    let fingerprint = hex(&writers[0].fingerprint);

    for header in [["c301", &fingerprint].concat().as_str(), "0000000011"] {
        for terminal in ["00", "02047437"] {
            let value = bytes(&[header, terminal, STATUS_DATUM]);
            assert_eq!(codec.decode(&value, WRITTEN_AT).unwrap(), failed());
            assert!(matches!(
                codec.decode(&[&value[..], b"x"].concat(), WRITTEN_AT),
                Err(WireError::TrailingBytes(1))
            ));
        }
    }
    assert_eq!(codec.decode(&codec.encode(&failed()), WRITTEN_AT).unwrap(), failed());
    let of_events = OrderEventCodec::reading(&writers).unwrap();
    assert_eq!(
        of_events.decode(&bytes(&["0000000011", "00", STATUS_DATUM])).unwrap_err().class(),
        "unregistered_schema"
    );
}

/// The schema has fields in another order, an int for a long, a union in reverse, and no logical
/// types.
#[test]
fn a_writers_own_types_are_resolved_by_the_rules_of_avro() {
    let schema = r#"{"type": "record", "name": "order_status", "fields": [
        {"name": "occurred_at", "type": "int"}, {"name": "status", "type": "string"},
        {"name": "source", "type": "string"}, {"name": "reason", "type": ["string", "null"]},
        {"name": "order_id", "type": "string"}]}"#;
    let writers = [WriterSchema::parse("w", Some(1), schema).unwrap()];
    check_writer_schemas(&writers).unwrap();
    let codec = OrderStatusCodec::reading(&writers).unwrap();

    let datum = DatumWriter::after(&[0, 0, 0, 0, 1]).long(7000).string("FAILED").string("payments");
    let value = datum.long(0).string("card declined").string(ORDER).into_bytes();

    let occurred_at = DateTime::from_timestamp_millis(7000).unwrap();
    let expected = OrderStatus { occurred_at, reference: None, ..failed() };
    assert_eq!(codec.decode(&value, WRITTEN_AT).unwrap(), expected);
}

#[test]
fn a_schema_that_no_topic_can_read_is_refused_with_the_reason() {
    let unreadable = WriterSchema::parse(
        "w.avsc",
        None,
        r#"{"type": "record", "name": "order_status", "fields": []}"#,
    );
    let error = check_writer_schemas(&[unreadable.unwrap()]).unwrap_err().to_string();
    assert!(error.contains("w.avsc") && error.contains("order_status"), "{error}");

    for (text, what) in [("{", "no JSON"), (r#"{"type": "what"}"#, "no Avro schema")] {
        let error = WriterSchema::parse("w.avsc", None, text).err().unwrap().to_string();
        assert!(error.contains("w.avsc") && error.contains(what), "{error}");
    }
}

#[test]
fn a_status_is_read_from_a_json_object() {
    let spoken = [
        r#"{"order_id":"ORDER","status":"FAILED","reason":"card declined","source":"payments",
            "occurred_at":1700000000456,"reference":"r-1"}"#,
        r#" {"reference":"r-1","occurred_at":"2023-11-14T23:13:20.456+01:00","source":"payments",
            "terminal":{"a":[1]},"status":"FAILED",
            "reason":"card declined","order_id":"ORDER"} "#,
        "\u{feff}{\"order_id\":\"ORDER\",\"status\":\"FAILED\",\"reason\":\"card declined\",\
            \"source\":\"payments\",\"occurred_at\":1700000000456,\"reference\":\"r-1\"}",
    ];
    for text in spoken {
        assert_eq!(
            read_status(text.replace("ORDER", ORDER).as_bytes()).unwrap(),
            failed(),
            "{text}"
        );
    }
    let framed = [b"\0\0\0\0\x09", spoken[0].replace("ORDER", ORDER).as_bytes()].concat();
    assert_eq!(read_status(&framed).unwrap(), failed());
}

#[test]
fn a_json_object_may_lack_its_source_and_time() {
    for rest in ["", r#","source":null,"occurred_at":null,"reason":null"#] {
        let read =
            read_status(format!(r#"{{"order_id":"{ORDER}","status":"FAILED"{rest}}}"#).as_bytes())
                .unwrap();

        assert_eq!((read.source.as_str(), read.occurred_at), ("unnamed", WRITTEN_AT));
        assert_eq!(read.status, ReportedStatus::Failed(Reason::Reported("UNSPECIFIED".into())));
    }
}

#[test]
fn a_wrong_json_object_is_refused_with_the_place_of_the_error() {
    let wrong = [
        (r#"{"order_id":1,"status":"FAILED"}"#, "undecodable", "line 1 column 13"),
        ("{\"order_id\":\"x\",\n\"status\":\"FAILED\",}", "undecodable", "line 2 column 19"),
        (r#"{"status":"FAILED"}"#, "undecodable", "missing field `order_id`"),
        (
            r#"{"order_id":"x","order_id":"y","status":"FAILED"}"#,
            "undecodable",
            "duplicate field `order_id`",
        ),
        (
            r#"{"order_id":"x","status":"FAILED"} more"#,
            "undecodable",
            "trailing characters at line 1 column 36",
        ),
        (
            r#"{"order_id":"x","status":"FAILED","occurred_at":"yesterday"}"#,
            "undecodable",
            "a time: milliseconds",
        ),
        (r#"{"order_id":"x","status":"FAILED","occurred_at":1e400}"#, "undecodable", "line 1"),
        (r#"{"order_id":"x","status":"FAILED"}"#, "invalid", "x"),
        (r#"{"order_id":"ORDER","status":"FAILED","source":""}"#, "invalid", "source"),
        (r#"{"order_id":"ORDER","status":"LOST"}"#, "invalid", "LOST"),
        (r#"{"order_id":"ORDER","status":"COMPLETED"}"#, "invalid", "only a worker"),
        (
            r#"{"order_id":"ORDER","status":"FAILED","occurred_at":9223372036854775807}"#,
            "invalid",
            "time",
        ),
        (r#"[{"order_id":"ORDER","status":"FAILED"}]"#, "undecodable", "begins with"),
    ];
    for (text, class, place) in wrong {
        let error = read_status(text.replace("ORDER", ORDER).as_bytes()).unwrap_err();
        assert_eq!(error.class(), class, "{text}: {error}");
        assert!(error.to_string().contains(place), "{text}: {error}");
    }
}

#[test]
fn a_false_length_allocates_nothing() {
    let codec = OrderEventCodec::new().unwrap();
    let mut bytes = codec.encode(&event())[..HEADER].to_vec();
    bytes.extend([0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]);
    assert_eq!(codec.decode(&bytes).unwrap_err().class(), "undecodable");
}

const HEADER: usize = 10;

#[test]
fn values_outside_the_domain_are_invalid() {
    let codec = OrderEventCodec::new().unwrap();
    let record = |order_id: &str, kind: &str, product: &str, quantity: i64, times: usize| {
        let lines = vec![(product, quantity); times];
        let begun = codec.0.begin().string(order_id).string(kind);
        begun
            .array(&lines, |datum, (product, quantity)| datum.string(product).long(*quantity))
            .long(0)
            .optional_long(None)
            .optional_string(None)
            .into_bytes()
    };
    let bad = [
        record(ORDER, "placed", "a", 1, 1),
        record(ORDER, "PLACED", "a b", 1, 1),
        record(ORDER, "PLACED", "a", 0, 1),
        record(ORDER, "PLACED", "a", i64::MIN, 1),
        record(ORDER, "PLACED", "a", 1, 0),
        record(ORDER, "PLACED", "a", 1, 101),
        record("00000000-0000-0000-0000-000000000000", "PLACED", "a", 1, 1),
    ];
    assert!(codec.decode(&record(ORDER, "PLACED", "a", 1, 1)).is_ok());
    for bytes in bad {
        assert_eq!(codec.decode(&bytes).unwrap_err().class(), "invalid");
    }
}

#[test]
fn only_a_worker_reports_a_completion_or_a_release() {
    let codec = OrderStatusCodec::new().unwrap();
    for reported in [ReportedStatus::Completed, ReportedStatus::Released] {
        let reported_by = |source: &str| {
            codec.decode(&codec.encode(&status(source, reported.clone())), WRITTEN_AT)
        };
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
        ReportedStatus::Reserved,
        ReportedStatus::Failed(reason()),
        ReportedStatus::Cancelled(None),
        ReportedStatus::Cancelled(Some(reason())),
        ReportedStatus::Confirmed,
        ReportedStatus::Released,
    ] {
        let written = status("worker", reported);
        assert_eq!(codec.decode(&codec.encode(&written), WRITTEN_AT).unwrap(), written);
    }
}

#[test]
fn the_schemas_read_what_every_earlier_version_wrote() {
    for own in [&ORDER_EVENT, &ORDER_STATUS] {
        assert!(!own.earlier.is_empty());
        for earlier in own.earlier {
            SchemaCompatibility::can_read(&Schema::parse_str(earlier).unwrap(), own.parsed())
                .unwrap();
        }
    }
}

#[test]
fn a_schema_that_has_grown_reads_values_of_the_version_before() {
    static GROWN_TEXT: LazyLock<String> = LazyLock::new(extended);
    static GROWN: LazyLock<OwnSchema> =
        LazyLock::new(|| OwnSchema::new(&GROWN_TEXT, &[ORDER_STATUS_TEXT]));
    let codec = Codec::new(&GROWN, &[]).unwrap();

    let read: OrderStatusRecord =
        codec.decode(&OrderStatusCodec::new().unwrap().encode(&failed())).unwrap();

    assert_eq!((read.order_id.as_str(), read.reason.as_deref()), (ORDER, Some("card declined")));
}

#[test]
fn a_field_without_a_default_would_break_compatibility() {
    let mut schema: serde_json::Value = serde_json::from_str(ORDER_STATUS_TEXT).unwrap();
    schema["fields"]
        .as_array_mut()
        .unwrap()
        .push(serde_json::json!({"name": "added", "type": "long"}));
    let present = Schema::parse_str(ORDER_STATUS_TEXT).unwrap();
    assert!(SchemaCompatibility::can_read(&present, &Schema::parse(&schema).unwrap()).is_err());
}
