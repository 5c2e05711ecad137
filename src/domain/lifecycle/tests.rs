use chrono::DateTime;

use super::*;
use crate::domain::OrderId;

const DOCUMENT: &str = include_str!("../../../docs/order-lifecycle.md");

/// The orders of the table's columns: each state, a pending order with a hold after the one
/// without, and no order.
const ORDERS: [Option<(OrderState, bool)>; 7] = [
    Some((OrderState::Pending, false)),
    Some((OrderState::Pending, true)),
    Some((OrderState::Reserved, true)),
    Some((OrderState::Completed, false)),
    Some((OrderState::Failed, false)),
    Some((OrderState::Cancelled, false)),
    None,
];

const SAME: Effect = Effect::Nothing;
const OWE: Effect = Effect::OweRelease;
const END: Effect = Effect::EndRelease;
const NO_ORDER: Effect = Effect::UnknownOrder;
const REFUSED: Effect = Effect::Refused;
const EXPIRE: Effect = Effect::Expire;
const CONFIRM: Effect = Effect::ConfirmHold;
const EXTEND: Effect = Effect::ExtendHold;
const COMPLETED: Effect = moved(OrderState::Completed, false, false);
const CONFIRMED: Effect = moved(OrderState::Completed, false, true);
const RESERVED: Effect = moved(OrderState::Reserved, false, false);
const FAILED_BY_WORKER: Effect = moved(OrderState::Failed, false, false);
const FAILED: Effect = moved(OrderState::Failed, true, false);
const CANCELLED: Effect = moved(OrderState::Cancelled, true, false);
const CANCELLED_ON_REQUEST: Effect = moved(OrderState::Cancelled, true, true);
const RELEASED: Effect = moved(OrderState::Cancelled, false, true);

const fn moved(to: OrderState, owes_release: bool, is_announced: bool) -> Effect {
    Effect::Move { to, owes_release, is_announced }
}

/// A row of the table: an event, its source, and what it does to each of [`ORDERS`] that can be
/// released.
type Row = (&'static str, &'static str, [Effect; 7]);

#[rustfmt::skip]
const TABLE: [Row; 19] = [
    ("COMPLETED", "worker", [COMPLETED, RESERVED, SAME, SAME, OWE, OWE, NO_ORDER]),
    ("COMPLETED", "ingest", [SAME; 7]),
    ("COMPLETED", "compensator", [SAME; 7]),
    ("RESERVED", "worker", [CONFIRMED, RESERVED, SAME, SAME, OWE, OWE, NO_ORDER]),
    ("FAILED", "worker",
        [FAILED_BY_WORKER, FAILED_BY_WORKER, FAILED, FAILED, SAME, SAME, NO_ORDER]),
    ("FAILED", "ingest", [FAILED, FAILED, FAILED, FAILED, SAME, SAME, NO_ORDER]),
    ("FAILED", "compensator", [FAILED, FAILED, FAILED, FAILED, SAME, SAME, NO_ORDER]),
    ("FAILED", "others", [FAILED, FAILED, FAILED, FAILED, SAME, SAME, NO_ORDER]),
    ("CANCELLED", "worker", [CANCELLED, CANCELLED, CANCELLED, CANCELLED, SAME, SAME, NO_ORDER]),
    ("CANCELLED", "ingest", [CANCELLED, CANCELLED, CANCELLED, CANCELLED, SAME, SAME, SAME]),
    ("CANCELLED", "compensator", [CANCELLED, CANCELLED, CANCELLED, CANCELLED, SAME, SAME, SAME]),
    ("CANCELLED", "others", [CANCELLED, CANCELLED, CANCELLED, CANCELLED, SAME, SAME, NO_ORDER]),
    ("CONFIRMED", "worker", [SAME, CONFIRM, CONFIRMED, SAME, REFUSED, REFUSED, NO_ORDER]),
    ("CONFIRMED", "others", [SAME, CONFIRM, CONFIRMED, SAME, REFUSED, REFUSED, NO_ORDER]),
    ("RELEASED", "worker", [RELEASED, RELEASED, RELEASED, RELEASED, END, END, END]),
    ("cancel", "client", [CANCELLED_ON_REQUEST, CANCELLED_ON_REQUEST, CANCELLED_ON_REQUEST,
        CANCELLED_ON_REQUEST, REFUSED, SAME, NO_ORDER]),
    ("confirm", "client", [SAME, CONFIRM, CONFIRMED, SAME, REFUSED, REFUSED, NO_ORDER]),
    ("extend", "client", [REFUSED, REFUSED, EXTEND, REFUSED, REFUSED, REFUSED, NO_ORDER]),
    ("hold due", "compensator", [SAME, SAME, EXPIRE, SAME, SAME, SAME, SAME]),
];

/// The effect of a row's event on an order.
fn effect(name: &str, source: &str, order: Option<OrderFacts>) -> Effect {
    let cause = match name {
        "cancel" => Cause::Cancel,
        "confirm" => Cause::Confirm,
        "extend" => Cause::Extend { is_in_time: true },
        "hold due" => Cause::HoldDue,
        status => {
            return Cause::Reported(&OrderStatus {
                order_id: OrderId::first_of(DateTime::UNIX_EPOCH),
                status: ReportedStatus::parse(status, None).unwrap(),
                source: source.into(),
                occurred_at: DateTime::UNIX_EPOCH,
                reference: None,
            })
            .effect_on(order);
        }
    };
    cause.effect_on(order)
}

fn facts(order: Option<(OrderState, bool)>, is_releasable: bool) -> Option<OrderFacts> {
    order.map(|(state, wants_hold)| OrderFacts { state, wants_hold, is_releasable })
}

#[test]
fn each_event_has_the_effect_of_its_cell() {
    for (name, source, effects) in TABLE {
        for (order, expected) in ORDERS.into_iter().zip(effects) {
            let effect = effect(name, source, facts(order, true));
            assert_eq!(effect, expected, "{name} of {source} meets {order:?}");
        }
    }
}

#[test]
fn the_table_has_every_state() {
    for state in OrderState::ALL {
        let has_column = ORDERS.iter().flatten().any(|(column, _)| *column == state);
        assert!(has_column, "{state} has no column");
    }
}

#[test]
fn an_order_too_old_for_a_release_neither_fails_late_nor_begins_a_hold() {
    for (name, source, effects) in TABLE {
        for (order, expected) in ORDERS.into_iter().zip(effects) {
            let is_announced = ["ingest", "compensator"].contains(&source);
            let is_completed = order.is_some_and(|(state, _)| state == OrderState::Completed);
            let late = match expected {
                RESERVED => EXPIRE,
                CANCELLED if is_completed && is_announced => SAME,
                FAILED | CANCELLED | CANCELLED_ON_REQUEST if is_completed => Effect::TooOld,
                _ => expected,
            };
            let effect = effect(name, source, facts(order, false));
            assert_eq!(effect, late, "{name} of {source} meets {order:?}");
        }
    }
}

#[test]
fn a_hold_is_not_extended_beyond_the_time_that_its_release_needs() {
    let reserved = facts(Some((OrderState::Reserved, true)), true);

    let effect = Cause::Extend { is_in_time: false }.effect_on(reserved);

    assert_eq!(effect, Effect::Refused);
}

#[test]
fn no_event_moves_an_order_out_of_a_final_state() {
    for (name, source, effects) in TABLE {
        for (order, effect) in ORDERS.into_iter().zip(effects) {
            if order.is_some_and(|(state, _)| state.is_final()) {
                let moves = matches!(effect, Effect::Move { .. } | EXPIRE | CONFIRM | EXTEND);
                assert!(!moves, "{name} of {source} meets {order:?}");
            }
        }
    }
}

#[test]
fn an_order_that_ends_owes_a_release_if_stock_may_be_held() {
    for (name, source, effects) in TABLE {
        for effect in effects {
            let Effect::Move { to, owes_release, .. } = effect else { continue };
            let holds_nothing = [("FAILED", FAILED_BY_WORKER), ("RELEASED", RELEASED)];
            let may_hold = to.is_final() && !holds_nothing.contains(&(name, effect));
            assert_eq!(owes_release, may_hold, "{name} of {source}");
        }
    }
}

#[test]
fn a_move_is_announced_unless_its_message_names_the_new_state() {
    for (name, source, effects) in TABLE {
        for effect in effects {
            let Effect::Move { to, is_announced, .. } = effect else { continue };
            // An order that waits for its confirmation is not announced.
            let is_named = name == to.as_str() || to == OrderState::Reserved;
            assert_eq!(is_announced, !is_named, "{name} of {source}");
        }
    }
}

/// A cell of the document's table.
fn cell(effect: Effect) -> String {
    let text = match effect {
        Effect::Nothing => "–",
        Effect::Move { to, owes_release, is_announced } => {
            let release = if owes_release { ", release" } else { "" };
            let announced = if is_announced { ", announced" } else { "" };
            return format!("→ `{to}`{release}{announced}");
        }
        Effect::Expire => "→ `CANCELLED` (`EXPIRED`), release, announced",
        Effect::ConfirmHold => "no hold any more",
        Effect::ExtendHold => "the hold ends later",
        Effect::OweRelease => "release",
        Effect::EndRelease => "end of the release",
        Effect::TooOld => "`expired`",
        Effect::Refused => "refused",
        Effect::UnknownOrder => "unknown order",
    };
    text.to_owned()
}

#[test]
fn the_document_has_the_same_table() {
    for (name, source, effects) in TABLE {
        let name = if name.to_uppercase() == name { format!("`{name}`") } else { name.to_owned() };
        let cells: Vec<_> = effects.into_iter().map(cell).collect();
        let row = format!("| {name} | {source} | {} |", cells.join(" | "));
        assert!(DOCUMENT.lines().any(|line| line == row), "the document lacks the row\n{row}");
    }
}
