use super::*;

const DOCUMENT: &str = include_str!("../../../docs/order-lifecycle.md");

/// Each state of an order, and then no order.
const STATES: [Option<OrderState>; 5] = [
    Some(OrderState::Pending),
    Some(OrderState::Completed),
    Some(OrderState::Failed),
    Some(OrderState::Cancelled),
    None,
];

const NOTHING: Effect = Effect::Nothing;
const OWE: Effect = Effect::OweRelease;
const END: Effect = Effect::EndRelease;
const TOO_LATE: Effect = Effect::TooLate;
const UNKNOWN: Effect = Effect::UnknownOrder;
const COMPLETED: Effect = Effect::Move { to: OrderState::Completed, owes_release: false };
const REFUSED: Effect = Effect::Move { to: OrderState::Failed, owes_release: false };
const FAILED: Effect = Effect::Move { to: OrderState::Failed, owes_release: true };
const CANCELLED: Effect = Effect::Move { to: OrderState::Cancelled, owes_release: true };

const RELEASED_BEFORE: Effect = Effect::Move { to: OrderState::Cancelled, owes_release: false };

/// A row of the table: a status, who reports it, and what it does in each of [`STATES`] to an order
/// that can be released.
type Row = (&'static str, &'static str, [Effect; 5]);

const TABLE: [Row; 12] = [
    ("COMPLETED", "worker", [COMPLETED, NOTHING, OWE, OWE, UNKNOWN]),
    ("COMPLETED", "ingest", [NOTHING, NOTHING, NOTHING, NOTHING, NOTHING]),
    ("COMPLETED", "compensator", [NOTHING, NOTHING, NOTHING, NOTHING, NOTHING]),
    ("FAILED", "worker", [REFUSED, FAILED, NOTHING, NOTHING, UNKNOWN]),
    ("FAILED", "ingest", [FAILED, FAILED, NOTHING, NOTHING, UNKNOWN]),
    ("FAILED", "compensator", [FAILED, FAILED, NOTHING, NOTHING, UNKNOWN]),
    ("FAILED", "payments", [FAILED, FAILED, NOTHING, NOTHING, UNKNOWN]),
    ("CANCELLED", "worker", [CANCELLED, CANCELLED, NOTHING, NOTHING, UNKNOWN]),
    ("CANCELLED", "ingest", [CANCELLED, CANCELLED, NOTHING, NOTHING, NOTHING]),
    ("CANCELLED", "compensator", [CANCELLED, CANCELLED, NOTHING, NOTHING, NOTHING]),
    ("CANCELLED", "payments", [CANCELLED, CANCELLED, NOTHING, NOTHING, UNKNOWN]),
    ("RELEASED", "worker", [RELEASED_BEFORE, END, END, END, END]),
];

fn report(name: &str, source: &str) -> OrderStatus {
    let status = ReportedStatus::parse(name, None).unwrap();
    OrderStatus {
        order_id: OrderId::first_of(DateTime::UNIX_EPOCH),
        status,
        source: source.into(),
        occurred_at: DateTime::UNIX_EPOCH,
    }
}

#[test]
fn the_effect_of_each_status_source_and_state_is_that_of_the_table() {
    for (name, source, effects) in TABLE {
        for (state, expected) in STATES.into_iter().zip(effects) {
            let effect = report(name, source).effect_on(state, true);
            assert_eq!(effect, expected, "{name} of {source} meets {state:?}");
        }
    }
}

#[test]
fn the_table_has_every_state() {
    for state in OrderState::ALL {
        assert!(STATES.contains(&Some(state)), "{state} has no column");
    }
}

#[test]
fn only_a_completed_order_may_be_too_old_for_a_release() {
    for (name, source, effects) in TABLE {
        for (state, expected) in STATES.into_iter().zip(effects) {
            let is_announced = ["ingest", "compensator"].contains(&source);
            let late = match (state, expected) {
                (Some(OrderState::Completed), CANCELLED) if is_announced => NOTHING,
                (Some(OrderState::Completed), FAILED | CANCELLED) => TOO_LATE,
                _ => expected,
            };
            assert_eq!(
                report(name, source).effect_on(state, false),
                late,
                "{name} of {source} meets {state:?}"
            );
        }
    }
}

#[test]
fn no_effect_moves_an_order_out_of_a_final_state() {
    for (name, source, effects) in TABLE {
        let moves = |effect: &Effect| matches!(effect, Effect::Move { .. });
        assert!(!effects[2..].iter().any(moves), "{name} of {source}");
    }
}

#[test]
fn a_move_to_failed_or_cancelled_owes_a_release_if_stock_may_be_held() {
    for (name, source, effects) in TABLE {
        for effect in effects {
            let Effect::Move { to, owes_release } = effect else { continue };
            let holds_nothing =
                [("FAILED", "worker", REFUSED), ("RELEASED", "worker", RELEASED_BEFORE)];
            let may_hold =
                to != OrderState::Completed && !holds_nothing.contains(&(name, source, effect));
            assert_eq!(owes_release, may_hold, "{name} of {source}");
        }
    }
}

#[test]
fn only_a_worker_deducts_and_releases_stock() {
    let sources = ["worker", "ingest", "compensator", "payments"];
    let may_report = |name| sources.map(|source| report(name, source).check_source().is_ok());
    assert_eq!(may_report("COMPLETED"), [true, true, true, false]);
    assert_eq!(may_report("RELEASED"), [true, false, false, false]);
    assert_eq!((may_report("FAILED"), may_report("CANCELLED")), ([true; 4], [true; 4]));
}

#[test]
fn a_status_keeps_its_name_and_its_reason() {
    for name in ["COMPLETED", "FAILED", "CANCELLED", "RELEASED"] {
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

/// A cell of the document's table.
fn cell(effect: Effect) -> &'static str {
    match effect {
        Effect::Nothing => "–",
        Effect::Move { to: OrderState::Completed, .. } => "→ `COMPLETED`",
        Effect::Move { to: OrderState::Failed, owes_release: true } => "→ `FAILED`, release",
        Effect::Move { to: OrderState::Failed, owes_release: false } => "→ `FAILED`",
        Effect::Move { owes_release: true, .. } => "→ `CANCELLED`, release",
        Effect::Move { owes_release: false, .. } => "→ `CANCELLED`",
        Effect::OweRelease => "release",
        Effect::EndRelease => "end of the release",
        Effect::TooLate => "`expired`",
        Effect::UnknownOrder => "`unknown_order`",
    }
}

#[test]
fn the_document_has_the_same_table() {
    for (name, source, effects) in TABLE {
        let source = if source == "payments" { "others" } else { source };
        let cells: Vec<_> = effects.into_iter().map(cell).collect();
        let row = format!("| `{name}` | {source} | {} |", cells.join(" | "));
        assert!(DOCUMENT.lines().any(|line| line == row), "the document lacks the row\n{row}");
    }
}
