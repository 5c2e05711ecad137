//! An exhaustive check of the protocol by which workers lock, decide, report and store offsets.
//!
//! It visits every interleaving of two workers, four orders and two products. A worker may:
//!
//! - be paused for longer than its locks live,
//! - die at any step,
//! - get a partition that another worker still believes to own,
//! - have a partition revoked,
//! - get orders again,
//! - defer the orders whose products it cannot lock.
//!
//! A lock may be lost at any time, and no worker checks whether it still holds its own. So what
//! must be true rests on the database alone. The model is the protocol of docs/locking.md.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "model/checks.rs"]
mod checks;
#[path = "model/properties.rs"]
mod properties;
#[path = "model/protocol.rs"]
mod protocol;
#[path = "model/state.rs"]
mod state;
#[path = "model/transaction.rs"]
mod transaction;

use checks::{breaks, holds_in_all_states};
use properties::{NO_LOST_ORDER, NO_OVERSELL, NO_OVERTAKING, NO_WRONG_REFUSAL, NOTHING_TWICE};
use protocol::{Mutant, Protocol};

fn with(mutant: Mutant) -> Protocol {
    Protocol(Some(mutant))
}

#[test]
fn the_protocol_holds_in_all_reachable_states() {
    holds_in_all_states(Protocol(None), 10_000);
}

#[test]
fn without_the_version_guard_more_is_sold_than_there_is() {
    breaks(with(Mutant::NoVersionGuard), NO_OVERSELL);
}

#[test]
fn without_the_guard_on_refusals_orders_are_refused_wrongly() {
    breaks(with(Mutant::NoGuardOnRefusals), NO_WRONG_REFUSAL);
}

#[test]
fn without_the_key_of_the_outcomes_an_order_is_deducted_twice() {
    breaks(with(Mutant::NoOutcomeKey), NOTHING_TWICE);
}

#[test]
fn with_offsets_stored_first_an_order_is_lost() {
    breaks(with(Mutant::OffsetsFirst), NO_LOST_ORDER);
}

#[test]
fn with_offsets_stored_past_deferred_orders_an_order_is_lost() {
    breaks(with(Mutant::OffsetsPassDeferred), NO_LOST_ORDER);
}

#[test]
fn with_deferred_orders_forgotten_at_a_revocation_an_order_is_lost() {
    breaks(with(Mutant::RevocationForgetsDeferred), NO_LOST_ORDER);
}

#[test]
fn with_orders_deferred_one_by_one_another_order_overtakes() {
    breaks(with(Mutant::OthersOvertakeDeferred), NO_OVERTAKING);
}
