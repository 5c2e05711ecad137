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
#[path = "model_lifecycle/mutants.rs"]
mod mutants;
#[path = "model_lifecycle/properties.rs"]
mod properties;
#[path = "model_lifecycle/protocol.rs"]
mod protocol;
#[path = "model_lifecycle/state.rs"]
mod state;
#[path = "model_lifecycle/worker.rs"]
mod worker;

use checks::{breaks, holds_in_all_states};
use mutants::Mutant;
use properties::{
    CANCELLED_RETURNS, COMPLETED_NEVER_EXPIRES, ENDS_ONCE, ENDS_WHEN_DUE, FINAL_STATES_STAY,
    QUIET_IS_RIGHT, READ_IS_APPLIED, RELEASES_ARE_OWED, RESERVED_HAS_HOLD, RETURNED_ONCE,
    STATES_ARE_NAMED, STRUCK_OFF_STAYS,
};
use protocol::Protocol;
use state::Faults;

fn with(mutant: Mutant) -> Protocol {
    Protocol::new(Some(mutant), Faults::Broker)
}

#[test]
fn an_order_is_right_in_all_reachable_states() {
    holds_in_all_states(Protocol::new(None, Faults::Broker), 4_050_000);
}

#[test]
fn an_order_is_right_after_the_stock_store_lost_its_outcome() {
    holds_in_all_states(Protocol::new(None, Faults::StockStore), 40_000);
}

#[test]
fn an_order_is_right_after_the_order_store_lost_its_last_move() {
    holds_in_all_states(Protocol::new(None, Faults::OrderStore), 50_000);
}

#[test]
fn a_release_that_is_done_once_acknowledged_is_lost_with_its_topic() {
    breaks(with(Mutant::AcknowledgedIsDone), RELEASES_ARE_OWED);
    breaks(with(Mutant::AcknowledgedIsDone), QUIET_IS_RIGHT);
    breaks(with(Mutant::AcknowledgedIsDone), CANCELLED_RETURNS);
}

#[test]
fn a_worker_that_reports_only_what_it_returned_leaves_releases_owed() {
    breaks(with(Mutant::SilentWithoutUnits), QUIET_IS_RIGHT);
}

#[test]
fn a_release_reported_before_its_commit_is_lost() {
    breaks(with(Mutant::ReportedFirst), QUIET_IS_RIGHT);
}

#[test]
fn a_release_without_an_outcome_lets_the_order_take_its_units_later() {
    breaks(with(Mutant::NoOutcomeWithoutOrder), QUIET_IS_RIGHT);
}

#[test]
fn an_order_that_ends_while_it_is_pending_must_owe_its_release() {
    breaks(with(Mutant::PendingOwesNothing), QUIET_IS_RIGHT);
}

#[test]
fn a_release_that_returns_units_each_time_returns_too_many() {
    breaks(with(Mutant::ReturnedEachTime), RETURNED_ONCE);
}

#[test]
fn a_reserved_that_meets_a_cancelled_order_must_owe_its_release() {
    let protocol = || Protocol::new(Some(Mutant::FinalOwesNothing), Faults::StockStore);
    breaks(protocol(), QUIET_IS_RIGHT);
}

#[test]
fn a_released_that_meets_an_open_order_must_cancel_it() {
    let protocol = || Protocol::new(Some(Mutant::ReleasedMovesNothing), Faults::OrderStore);
    breaks(protocol(), QUIET_IS_RIGHT);
}

#[test]
fn a_late_confirmation_that_revives_a_cancelled_order_is_found() {
    breaks(with(Mutant::LateConfirmRevives), FINAL_STATES_STAY);
    breaks(with(Mutant::LateConfirmRevives), CANCELLED_RETURNS);
}

#[test]
fn a_hold_that_is_due_twice_and_releases_twice_is_found() {
    breaks(with(Mutant::DueTwice), ENDS_ONCE);
}

#[test]
fn a_sweep_that_decides_before_it_locks_ends_an_extended_hold() {
    breaks(with(Mutant::SweepDecidesEarly), ENDS_WHEN_DUE);
}

#[test]
fn a_sweep_that_decides_before_it_locks_expires_a_confirmed_order() {
    breaks(with(Mutant::SweepDecidesEarly), COMPLETED_NEVER_EXPIRES);
}

#[test]
fn a_repeated_reserved_that_reopens_a_hold_expires_a_confirmed_order() {
    breaks(with(Mutant::ReservedReopensConfirmed), COMPLETED_NEVER_EXPIRES);
}

#[test]
fn a_repeated_reserved_that_reopens_a_hold_revives_a_cancelled_order() {
    breaks(with(Mutant::ReservedReopensCancelled), FINAL_STATES_STAY);
}

#[test]
fn a_confirmation_of_a_pending_order_that_is_forgotten_lets_it_expire() {
    breaks(with(Mutant::StruckOffIsIgnored), STRUCK_OFF_STAYS);
}

#[test]
fn an_announcement_from_memory_is_lost_in_a_crash() {
    breaks(with(Mutant::AnnouncedFromMemory), STATES_ARE_NAMED);
}

#[test]
fn an_announcement_deleted_before_it_is_published_is_lost() {
    breaks(with(Mutant::DeletedFirst), STATES_ARE_NAMED);
}

#[test]
fn a_hold_of_an_order_that_ends_must_be_closed() {
    breaks(with(Mutant::HoldStaysOpen), RESERVED_HAS_HOLD);
}

#[test]
fn a_request_answered_before_its_commit_is_lost() {
    breaks(with(Mutant::AnsweredFirst), CANCELLED_RETURNS);
    breaks(with(Mutant::AnsweredFirst), STRUCK_OFF_STAYS);
}

#[test]
fn an_offset_stored_before_the_commit_loses_a_failure() {
    breaks(with(Mutant::OffsetFirst), READ_IS_APPLIED);
}
