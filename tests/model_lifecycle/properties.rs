//! What must hold in every state, and what must be reachable.

use stateright::Property;
use stocklock::domain::OrderState;

use super::{
    protocol::Protocol,
    state::{Faults, Hold, Message, Outcome, Promise, State},
};

pub(crate) const RETURNED_ONCE: &str = "units are deducted once and returned once";
pub(crate) const FINAL_STATES_STAY: &str = "final states stay";
pub(crate) const RESERVED_HAS_HOLD: &str = "a hold is open exactly while the order is reserved";
pub(crate) const QUIET_IS_RIGHT: &str = "a quiet state is right";
pub(crate) const RELEASES_ARE_OWED: &str = "a release that may return units is owed";
pub(crate) const STATES_ARE_NAMED: &str = "a message has named the state of a quiet order";
pub(crate) const ANNOUNCED_TRULY: &str = "no state is announced that the order has not reached";
pub(crate) const COMPLETED_NEVER_EXPIRES: &str =
    "an order whose confirmation was answered COMPLETED never expires";
pub(crate) const STRUCK_OFF_STAYS: &str = "a hold that was struck off never begins";
pub(crate) const CANCELLED_RETURNS: &str = "an order answered CANCELLED returns its units";
pub(crate) const READ_IS_APPLIED: &str = "an order whose end was read and not refused has ended";
pub(crate) const ENDS_WHEN_DUE: &str = "a hold ends only when it is due";
pub(crate) const ENDS_ONCE: &str = "a hold that ends begins one release";

type Condition = fn(&Protocol, &State) -> bool;

fn always(name: &'static str, condition: Condition) -> Property<Protocol> {
    Property::always(name, condition)
}

fn sometimes(name: &'static str, condition: Condition) -> Property<Protocol> {
    Property::sometimes(name, condition)
}

pub(crate) fn properties(faults: Faults) -> Vec<Property<Protocol>> {
    let mut properties = of_stock();
    match faults {
        Faults::Broker => {
            properties.extend(of_owed_releases());
            properties.extend(of_promises());
            properties.extend(reachable());
        }
        Faults::StockStore => {
            properties.extend(of_promises());
            properties.push(sometimes(
                "a deduction meets an order whose release is done",
                |_, state| {
                    let is_settled = state.store.is_final() && !state.store.is_owed;
                    is_settled && state.ledger.holds_units() && state.has(Message::Released)
                },
            ));
        }
        Faults::OrderStore => {
            properties.extend(of_owed_releases());
            properties.push(sometimes("an order is released that is not final", |_, state| {
                let is_released = state.ledger.outcome == Some(Outcome::Released);
                state.store.state == OrderState::Reserved && is_released
            }));
        }
    }
    properties
}

fn of_stock() -> Vec<Property<Protocol>> {
    vec![
        always(RETURNED_ONCE, |_, state| {
            state.ledger.deducted <= 1 && state.ledger.returned <= state.ledger.deducted
        }),
        always(FINAL_STATES_STAY, |_, state| !state.wrongs.left_final),
        always(RESERVED_HAS_HOLD, |_, state| {
            state.store.hold.is_some() == (state.store.state == OrderState::Reserved)
        }),
        always(ENDS_WHEN_DUE, |_, state| !state.wrongs.ended_early),
        always(QUIET_IS_RIGHT, |protocol, state| is_right(state) || !protocol.is_quiet(state)),
    ]
}

fn of_owed_releases() -> Vec<Property<Protocol>> {
    vec![always(RELEASES_ARE_OWED, |_, state| {
        let is_done = matches!(state.ledger.outcome, Some(Outcome::Failed | Outcome::Released));
        !state.store.is_final() || is_done || state.store.is_owed
    })]
}

fn of_promises() -> Vec<Property<Protocol>> {
    vec![
        always(ENDS_ONCE, |_, state| state.wrongs.hold_releases <= 1),
        always(STATES_ARE_NAMED, |protocol, state| {
            state.has_named(state.store.state) || !protocol.is_quiet(state)
        }),
        always(ANNOUNCED_TRULY, |_, state| !state.wrongs.announced_wrongly),
        always(COMPLETED_NEVER_EXPIRES, |_, state| {
            !state.has_promised(Promise::Completed) || !state.store.is_expired
        }),
        always(STRUCK_OFF_STAYS, |_, state| {
            let has_ended = state.store.is_expired || state.store.state == OrderState::Reserved;
            !state.has_promised(Promise::Confirmed) || !has_ended
        }),
        always(CANCELLED_RETURNS, |protocol, state| {
            let is_kept = state.store.state == OrderState::Cancelled
                && (!state.ledger.holds_units() || !protocol.is_quiet(state));
            !state.has_promised(Promise::Cancelled) || is_kept
        }),
        always(READ_IS_APPLIED, |_, state| {
            !state.has_promised(Promise::Ended) || state.store.is_final()
        }),
    ]
}

/// Whether the order store and the ledger agree, and nothing is left to do.
fn is_right(state: &State) -> bool {
    let store = &state.store;
    let holds_units = match store.state {
        OrderState::Completed => true,
        OrderState::Reserved if store.hold == Some(Hold::Running) => true,
        OrderState::Failed | OrderState::Cancelled => false,
        OrderState::Reserved | OrderState::Pending => return false,
    };
    let has_announcement = store.completion.is_some() || store.cancellation.is_some();
    state.ledger.holds_units() == holds_units && !store.is_owed && !has_announcement
}

fn reachable() -> Vec<Property<Protocol>> {
    vec![
        sometimes("a completed order fails, is released and quiet", |protocol, state| {
            let is_returned = state.ledger.returned == 1;
            is_in(state, OrderState::Failed) && is_returned && protocol.is_quiet(state)
        }),
        sometimes("an order that no worker saw is released and quiet", |protocol, state| {
            let is_released = state.ledger.outcome == Some(Outcome::Released);
            let was_never_seen = is_released && state.ledger.deducted == 0;
            state.store.is_final() && was_never_seen && protocol.is_quiet(state)
        }),
        sometimes("a deduction meets a cancelled order", |_, state| {
            is_in(state, OrderState::Cancelled) && state.has(Message::Reserved)
        }),
        sometimes("a hold ends, is released and quiet", |protocol, state| {
            let is_returned = state.ledger.returned == 1;
            state.store.is_expired && is_returned && protocol.is_quiet(state)
        }),
        sometimes("a hold is extended before a sweep ends it", |_, state| {
            state.sweeps > 0 && state.store.hold == Some(Hold::Running)
        }),
        sometimes("a hold is confirmed before a sweep ends it", |_, state| {
            state.sweeps > 0 && is_in(state, OrderState::Completed)
        }),
        sometimes("two sweeps find one hold", |_, state| state.sweeps == 2),
        sometimes("a confirmed hold is quiet", |protocol, state| {
            let is_confirmed = state.has_promised(Promise::Completed) && state.store.has_hold;
            is_in(state, OrderState::Completed) && is_confirmed && protocol.is_quiet(state)
        }),
        sometimes("a hold that was struck off is completed", |_, state| {
            is_in(state, OrderState::Completed) && state.store.is_hold_confirmed
        }),
        sometimes("a pending order is too old for its hold", |_, state| {
            state.store.is_expired && state.wrongs.hold_releases == 0
        }),
        sometimes("a completed order is too old to be cancelled", |_, state| {
            state.is_old && is_in(state, OrderState::Completed)
        }),
        sometimes("two announcements of one order wait", |_, state| {
            state.store.completion.is_some() && state.store.cancellation.is_some()
        }),
    ]
}

fn is_in(state: &State, order: OrderState) -> bool {
    state.store.state == order
}
