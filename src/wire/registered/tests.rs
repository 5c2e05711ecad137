use chrono::Utc;

use super::*;
use crate::{
    config::{Config, Layers},
    domain::{OrderStatus, ReportedStatus},
    wire::{OrderStatusCodec, WireError},
};

const TEXT: &str = include_str!("../../../schemas/order_status.avsc");
const SINGLE_OBJECT_HEADER_BYTES: usize = 10;

fn topics(settings: &[&str]) -> TopicsConfig {
    let set: Vec<_> = settings.iter().map(|word| (*word).to_owned()).collect();
    Config::resolve(&Layers::read(None, std::iter::empty(), &set)).unwrap().topics
}

fn status() -> OrderStatus {
    OrderStatus {
        order_id: "0198f2a0-0000-7000-8000-000000000001".parse().unwrap(),
        status: ReportedStatus::Completed,
        source: "worker".into(),
        occurred_at: chrono::DateTime::UNIX_EPOCH,
        reference: None,
    }
}

/// The value that a codec without a registry writes, in the framing of a registry.
fn framed(id: u32) -> Vec<u8> {
    let encoded = OrderStatusCodec::new().unwrap().encode(&status());
    [&[0][..], &id.to_be_bytes(), &encoded[SINGLE_OBJECT_HEADER_BYTES..]].concat()
}

fn codec(topics: &TopicsConfig, schemas: &Arc<RegisteredSchemas>) -> OrderStatusCodec {
    OrderStatusCodec::new().unwrap().on(topics, Some(schemas))
}

#[test]
fn the_id_of_the_own_schema_is_written_as_soon_as_it_is_known() {
    let topics = topics(&[]);
    let schemas = RegisteredSchemas::new(&topics);
    let codec = codec(&topics, &schemas);
    let before = codec.encode(&status());

    schemas.subject_of(&topics.order_status).unwrap().set_id(0x0102_0304);

    let after = codec.encode(&status());
    assert_eq!((&before[..2], &after[..5]), (&[0xC3, 0x01][..], &[0, 1, 2, 3, 4][..]));
    for value in [before, after] {
        assert_eq!(codec.decode(&value, Utc::now()).unwrap(), status());
    }
}

#[test]
fn a_value_waits_until_its_schema_is_looked_up() {
    let topics = topics(&[]);
    let schemas = RegisteredSchemas::new(&topics);
    let codec = codec(&topics, &schemas);

    assert!(codec.decode(&framed(7), Utc::now()).unwrap_err().is_pending());
    assert!(codec.decode(&framed(7), Utc::now()).unwrap_err().is_pending());
    assert_eq!(schemas.lock().wanted, BTreeSet::from([7]));
    schemas.add(7, TEXT);

    assert_eq!(codec.decode(&framed(7), Utc::now()).unwrap(), status());
    assert!(schemas.lock().wanted.is_empty());
}

#[test]
fn an_id_that_is_of_no_use_is_wanted_again_after_a_while() {
    let topics = topics(&[]);
    let schemas = RegisteredSchemas::new(&topics);
    let codec = codec(&topics, &schemas);

    schemas.add_absent(7, "gone".into());
    schemas.add(8, "no JSON");
    schemas.add(9, r#"{"type": "record", "name": "other", "fields": []}"#);

    for (id, why) in [(7, "gone"), (8, "no JSON"), (9, "cannot read its values")] {
        let error = codec.decode(&framed(id), Utc::now()).unwrap_err();
        assert_eq!(error.class(), "unregistered_schema");
        assert!(!error.is_pending() && error.to_string().contains(why), "{error}");
    }
    let aged = Instant::now().checked_sub(ABSENT_FOR).unwrap();
    schemas.lock().absent.get_mut(&7).unwrap().since = aged;
    assert!(codec.decode(&framed(7), Utc::now()).unwrap_err().is_pending());
}

#[test]
fn no_more_schemas_are_kept_than_the_limit() {
    let topics = topics(&[]);
    let schemas = RegisteredSchemas::new(&topics);

    for id in 0..=u32::try_from(MAX_SCHEMAS).unwrap() {
        schemas.add(id, r#""string""#);
    }

    assert_eq!(schemas.lock().schemas.len(), MAX_SCHEMAS);
    assert!(matches!(schemas.find(1_000), Registered::Absent(_)));
}

#[test]
fn a_framed_json_object_needs_no_schema() {
    let topics = topics(&["topics.status_format=json"]);
    let schemas = RegisteredSchemas::new(&topics);
    let codec = codec(&topics, &schemas);

    let object = codec.encode(&status());
    let framed = [&[0, 0, 0, 0, 9][..], &object].concat();

    assert!(object.starts_with(b"{"));
    assert_eq!(codec.decode(&framed, Utc::now()).unwrap(), status());
    assert!(!schemas.subject_of(&topics.order_status).unwrap().is_written);
}

#[test]
fn a_subject_knows_its_schema_by_its_canonical_form() {
    let subject = Subject::new("statuses", TEXT, true);
    let mut other: serde_json::Value = serde_json::from_str(TEXT).unwrap();

    other["doc"] = "another text".into();
    assert!(subject.is_own(&other.to_string()));
    assert!(subject.can_read(&other.to_string()).is_ok());

    other["fields"].as_array_mut().unwrap().remove(0);
    assert!(!subject.is_own(&other.to_string()));
    let error = error_text::with_causes(&subject.can_read(&other.to_string()).unwrap_err());
    assert!(error.contains("order_id"), "{error}");
    assert!(!subject.is_own("no JSON"));
    assert!(matches!(subject.can_read("no JSON"), Err(SchemaError::NoJson { .. })));
}

#[test]
fn a_codec_without_a_registry_says_what_to_set() {
    let error = OrderStatusCodec::new().unwrap().decode(&framed(7), Utc::now()).unwrap_err();

    assert!(matches!(error, WireError::UnregisteredSchema { id: 7, .. }));
    assert!(error.to_string().contains("schema_registry.url"), "{error}");
}
