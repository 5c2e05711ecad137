//! An exhaustive check of the life of one order: its messages on both topics, the order store, the
//! ledger, the requests of clients, and the time of its hold.
//!
//! Any message may be read late, read out of order, or read again, and the broker may lose it. The
//! worker may die between its commit and its report. Ingest may die between its commit and its
//! answer, and the compensator between its commit and the offset. Whatever is committed may be
//! published late, twice, or after a crash.
//!
//! What an event does to the order is the real function, `Cause::effect_on`. What the worker does
//! with a message is the real function `domain::fold::fold`.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "model_lifecycle/changes.rs"]
mod changes;
#[path = "model/checks.rs"]
mod checks;
#[path = "model_lifecycle/properties.rs"]
mod properties;
#[path = "model_lifecycle/protocol.rs"]
mod protocol;
#[path = "model_lifecycle/state.rs"]
mod state;
#[path = "model_lifecycle/worker.rs"]
mod worker;

use checks::{breaks, holds_in_all_states};
use properties::*;
use protocol::{Mutant, Protocol};
use state::Faults;

fn with(mutant: Mutant) -> Protocol {
    Protocol::new(Some(mutant), Faults::OfBroker)
}

#[test]
fn an_order_is_right_in_all_reachable_states() {
    holds_in_all_states(Protocol::new(None, Faults::OfBroker), 200);
}

#[test]
fn an_order_is_right_after_the_stock_store_lost_its_outcome() {
    holds_in_all_states(Protocol::new(None, Faults::OfStockStore), 200);
}

#[test]
fn an_order_is_right_after_the_order_store_lost_its_last_move() {
    holds_in_all_states(Protocol::new(None, Faults::OfOrderStore), 200);
}
