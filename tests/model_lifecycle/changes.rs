//! What an event does to the order store: the real function, `Cause::effect_on`, and what the store
//! writes for each effect.

use stocklock::domain::{Effect, OrderFacts, OrderState};

use super::{
    mutants::Mutant,
    protocol::{Protocol, Request},
    state::{Announcement, Faults, Hold, Message, Promise, State},
};

/// An event of the order in the order store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Reported(Message),
    Requested(Request),
    HoldDue,
}

impl Protocol {
    /// The compensator applies a message.
    pub(crate) fn apply(&self, state: &mut State, message: Message) {
        let effect = self.change(state, Event::Reported(message));
        if !Message::OF_OTHERS.contains(&message) {
            return;
        }
        state.publish(message);
        if self.faults != Faults::Broker {
            return;
        }
        state.compensator = match (message, effect) {
            (_, Effect::TooOld | Effect::Refused | Effect::UnknownOrder) => None,
            (Message::Confirmation, _) => Some(Promise::Confirmed),
            _ => Some(Promise::Ended),
        };
    }

    /// Ingest changes the order for a client.
    pub(crate) fn request(&self, state: &mut State, request: Request) {
        let effect = self.change(state, Event::Requested(request));
        if self.faults != Faults::Broker {
            return;
        }
        state.ingest = match (request, effect) {
            (Request::Extend, _) | (_, Effect::TooOld | Effect::Refused | Effect::UnknownOrder) => {
                None
            }
            (Request::Cancel, _) => Some(Promise::Cancelled),
            (Request::Confirm, _) if state.store.state == OrderState::Pending => {
                Some(Promise::Confirmed)
            }
            (Request::Confirm, _) => Some(Promise::Completed),
        };
    }

    /// A sweep locks the order. It looks at the hold again: it may have been extended or closed.
    pub(crate) fn end_hold(&self, state: &mut State) {
        let store = &state.store;
        let is_due = store.hold == Some(Hold::Due);
        let is_ended = store.is_expired && self.is(Mutant::DueTwice);
        let is_open = !store.is_final() && self.is(Mutant::SweepDecidesEarly);
        if is_due || is_ended || is_open {
            self.change(state, Event::HoldDue);
        }
    }

    /// A transaction of the order store that has locked the order.
    fn change(&self, state: &mut State, event: Event) -> Effect {
        let before = state.store;
        let order = OrderFacts {
            state: before.state,
            wants_hold: before.wants_hold()
                || (before.has_hold && self.is(Mutant::StruckOffIsIgnored)),
            is_releasable: !state.is_old,
        };
        let effect = self.cause(event, state.is_old).effect_on(Some(order));
        let effect = self.mutated(effect, event, order, before.has_hold);
        match effect {
            Effect::Move { to, owes_release, is_announced } => {
                self.move_to(state, to);
                state.store.is_owed |= owes_release;
                if is_announced {
                    announce(state);
                }
            }
            Effect::Expire => {
                if event == Event::HoldDue {
                    let wrongs = &mut state.wrongs;
                    wrongs.hold_releases = (wrongs.hold_releases + 1).min(2);
                    wrongs.ended_early |= before.hold == Some(Hold::Running);
                }
                self.move_to(state, OrderState::Cancelled);
                state.store.is_expired = true;
                state.store.is_owed = true;
                announce(state);
            }
            Effect::ConfirmHold => state.store.is_hold_confirmed = true,
            Effect::ExtendHold => state.store.hold = Some(Hold::Running),
            Effect::OweRelease => state.store.is_owed = true,
            Effect::EndRelease => state.store.is_owed = false,
            Effect::Nothing | Effect::TooOld | Effect::Refused | Effect::UnknownOrder => {}
        }
        state.wrongs.left_final |= before.is_final() && state.store.state != before.state;
        effect
    }

    fn move_to(&self, state: &mut State, to: OrderState) {
        let store = &mut state.store;
        store.state = to;
        if to == OrderState::Reserved {
            store.hold = Some(Hold::Running);
        } else if !store.is_final() || !self.is(Mutant::HoldStaysOpen) {
            store.hold = None;
        }
    }
}

/// Writes the announcement of the order's state. One that is written already stays as it is.
fn announce(state: &mut State) {
    let message = match state.store.state {
        OrderState::Completed => Message::AnnouncedCompleted,
        OrderState::Cancelled => Message::AnnouncedCancelled,
        // The message that causes such a move names it.
        OrderState::Pending | OrderState::Reserved | OrderState::Failed => return,
    };
    state.store.announcement(message).get_or_insert(Announcement::Written);
}
