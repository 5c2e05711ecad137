use super::*;

fn report(name: &str, source: &str) -> OrderStatus {
    let status = ReportedStatus::parse(name, None).unwrap();
    OrderStatus {
        order_id: OrderId::first_of(DateTime::UNIX_EPOCH),
        status,
        source: source.into(),
        occurred_at: DateTime::UNIX_EPOCH,
        reference: None,
    }
}

#[test]
fn only_a_worker_deducts_and_releases_stock() {
    let sources = ["worker", "ingest", "compensator", "payments"];
    let may_report = |name| sources.map(|source| report(name, source).check_source().is_ok());
    assert_eq!(may_report("COMPLETED"), [true, true, true, false]);
    for name in ["RESERVED", "RELEASED"] {
        assert_eq!(may_report(name), [true, false, false, false], "{name}");
    }
    for name in ["FAILED", "CANCELLED", "CONFIRMED"] {
        assert_eq!(may_report(name), [true; 4], "{name}");
    }
}

#[test]
fn a_status_keeps_its_name_and_its_reason() {
    for name in ["COMPLETED", "RESERVED", "FAILED", "CANCELLED", "CONFIRMED", "RELEASED"] {
        assert_eq!(ReportedStatus::parse(name, None).unwrap().as_str(), name);
    }
    let reason = |name, reason| {
        ReportedStatus::parse(name, reason).unwrap().reason().map(|r| r.as_str().to_owned())
    };
    assert_eq!(reason("FAILED", None).as_deref(), Some("UNSPECIFIED"));
    assert_eq!(reason("CANCELLED", None), None);
    assert_eq!(reason("CANCELLED", Some("EXPIRED")).as_deref(), Some("EXPIRED"));
    assert!(ReportedStatus::parse("completed", None).is_err());
}
