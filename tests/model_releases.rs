//! An exhaustive check of the protocol of releases: one order, its messages on both topics, the
//! order store and the ledger. Any message may be lost, read late, read out of order, or read
//! again. A worker may die between its commit and its report.
//!
//! What a status does to the order is the real function, `Cause::effect_on`. The steps of the
//! worker are those of `domain::fold`. Beyond the horizon other rules hold, and this model does not
//! have it.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

#[path = "model/checks.rs"]
mod checks;

use chrono::DateTime;
use stateright::{Model, Property};
use stocklock::domain::{
    Cause, Effect, OrderFacts, OrderId, OrderState, OrderStatus, Reason, ReportedStatus,
    WORKER_SOURCE,
};

use checks::{breaks, holds_in_all_states};

const RETURNED_ONCE: &str = "units are deducted once and returned once";
const RELEASES_ARE_OWED: &str = "a release that may return units is owed";
const QUIET_IS_RIGHT: &str = "a quiet state is right";

/// A way to get the protocol wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// A release is no longer owed when the broker has acknowledged its event.
    AcknowledgedIsDone,
    /// The worker reports only releases that returned units.
    SilentWithoutUnits,
    /// The worker reports a release before its transaction is committed.
    ReportedFirst,
    /// A release of an order that the worker never saw leaves no outcome.
    NoOutcomeWithoutOrder,
    /// A failure of an order that is pending owes no release.
    PendingOwesNothing,
    /// A release returns the units each time.
    ReturnedEachTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Completed,
    Failed,
    Released,
}

/// A message that may be on a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Message {
    Placed,
    Release,
    /// Statuses of the worker.
    Completed,
    Refused,
    Released,
    /// Somebody's report of a failure.
    Failure,
}

const MESSAGES: [Message; 6] = [
    Message::Placed,
    Message::Release,
    Message::Completed,
    Message::Refused,
    Message::Released,
    Message::Failure,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    order: OrderState,
    is_owed: bool,
    outcome: Option<Outcome>,
    /// Which messages the broker has, in the order of [`MESSAGES`].
    on_topic: [bool; MESSAGES.len()],
    is_failure_reported: bool,
    deducted: u8,
    returned: u8,
    /// Whether the order left a final state.
    left_final: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    /// Ingest publishes the order while it is pending.
    Place,
    /// The compensator or ingest publishes the release while it is owed.
    Release,
    ReportFailure,
    /// The broker forgets a message.
    Lose(Message),
    /// The worker decides the order: there is stock for it, or not.
    Decide {
        has_stock: bool,
        dies: bool,
    },
    HandleRelease {
        dies: bool,
    },
    /// The compensator applies a status.
    Apply(Message),
}

impl State {
    fn has(&self, message: Message) -> bool {
        self.on_topic[message as usize]
    }

    fn set(&mut self, message: Message, is_there: bool) {
        self.on_topic[message as usize] = is_there;
    }

    fn is_failed(&self) -> bool {
        self.order == OrderState::Failed
    }

    fn held(&self) -> u8 {
        self.deducted - self.returned.min(self.deducted)
    }
}

struct Protocol {
    mutant: Option<Mutant>,
    order_id: OrderId,
}

impl Protocol {
    fn new(mutant: Option<Mutant>) -> Self {
        Self { mutant, order_id: OrderId::first_of(DateTime::UNIX_EPOCH) }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn status(&self, message: Message) -> Option<OrderStatus> {
        let (status, source) = match message {
            Message::Completed => (ReportedStatus::Completed, WORKER_SOURCE),
            Message::Refused => (ReportedStatus::Failed(Reason::InsufficientStock), WORKER_SOURCE),
            Message::Released => (ReportedStatus::Released, WORKER_SOURCE),
            Message::Failure => (ReportedStatus::Failed(Reason::parse("payment")), "payments"),
            Message::Placed | Message::Release => return None,
        };
        let order_id = self.order_id;
        Some(OrderStatus {
            order_id,
            status,
            source: source.to_owned(),
            occurred_at: DateTime::UNIX_EPOCH,
            reference: None,
        })
    }

    fn decide(state: &mut State, has_stock: bool, dies: bool) {
        if state.outcome.is_none() {
            state.outcome = Some(if has_stock { Outcome::Completed } else { Outcome::Failed });
            state.deducted += u8::from(has_stock);
        }
        match state.outcome {
            Some(Outcome::Completed) if !dies => state.set(Message::Completed, true),
            Some(Outcome::Failed) if !dies => state.set(Message::Refused, true),
            _ => {}
        }
    }

    fn handle_release(&self, state: &mut State, dies: bool) {
        let before = state.outcome;
        if dies && self.is(Mutant::ReportedFirst) {
            state.set(Message::Released, true);
            return;
        }
        let returns = before == Some(Outcome::Completed)
            || (before == Some(Outcome::Released) && self.is(Mutant::ReturnedEachTime));
        state.returned += u8::from(returns && state.returned < 2);
        state.outcome = match before {
            Some(Outcome::Completed) => Some(Outcome::Released),
            None if !self.is(Mutant::NoOutcomeWithoutOrder) => Some(Outcome::Released),
            other => other,
        };
        if !dies && (returns || !self.is(Mutant::SilentWithoutUnits)) {
            state.set(Message::Released, true);
        }
    }

    fn apply(&self, state: &mut State, message: Message) {
        let Some(status) = self.status(message) else { return };
        let order = OrderFacts { state: state.order, wants_hold: false, is_releasable: true };
        match Cause::Reported(&status).effect_on(Some(order)) {
            Effect::Move { to, owes_release, .. } => {
                let is_exempt =
                    state.order == OrderState::Pending && self.is(Mutant::PendingOwesNothing);
                let is_final = matches!(state.order, OrderState::Failed | OrderState::Cancelled);
                state.left_final |= is_final;
                state.order = to;
                state.is_owed |= owes_release && !is_exempt;
            }
            Effect::OweRelease => state.is_owed = true,
            Effect::EndRelease => state.is_owed = false,
            Effect::Nothing
            | Effect::Expire
            | Effect::ConfirmHold
            | Effect::ExtendHold
            | Effect::TooOld
            | Effect::Refused
            | Effect::UnknownOrder => {}
        }
    }

    /// Whether nothing changes any more, unless somebody reports something or the broker loses
    /// something.
    fn is_quiet(&self, state: &State) -> bool {
        let mut actions = Vec::new();
        self.actions(state, &mut actions);
        let mut own = actions
            .into_iter()
            .filter(|action| !matches!(action, Action::Lose(_) | Action::ReportFailure));
        own.all(|action| self.next_state(state, action).is_none_or(|next| next == *state))
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            order: OrderState::Pending,
            is_owed: false,
            outcome: None,
            on_topic: [false; MESSAGES.len()],
            is_failure_reported: false,
            deducted: 0,
            returned: 0,
            left_final: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.order == OrderState::Pending {
            actions.push(Action::Place);
        }
        if state.is_owed {
            actions.push(Action::Release);
        }
        if !state.is_failure_reported {
            actions.push(Action::ReportFailure);
        }
        for dies in [false, true] {
            if state.has(Message::Placed) {
                actions.extend([false, true].map(|has_stock| Action::Decide { has_stock, dies }));
            }
            if state.has(Message::Release) {
                actions.push(Action::HandleRelease { dies });
            }
        }
        for message in MESSAGES.into_iter().filter(|message| state.has(*message)) {
            actions.push(Action::Lose(message));
            if self.status(message).is_some() {
                actions.push(Action::Apply(message));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Place => state.set(Message::Placed, true),
            Action::Release => {
                state.set(Message::Release, true);
                state.is_owed = !self.is(Mutant::AcknowledgedIsDone);
            }
            Action::ReportFailure => {
                state.is_failure_reported = true;
                state.set(Message::Failure, true);
            }
            Action::Lose(message) => state.set(message, false),
            Action::Decide { has_stock, dies } => Self::decide(&mut state, has_stock, dies),
            Action::HandleRelease { dies } => self.handle_release(&mut state, dies),
            Action::Apply(message) => self.apply(&mut state, message),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(RETURNED_ONCE, |_, state: &State| {
                state.deducted <= 1 && state.returned <= state.deducted
            }),
            Property::always("final states stay", |_, state: &State| !state.left_final),
            Property::always(RELEASES_ARE_OWED, |_, state: &State| {
                let is_done = matches!(state.outcome, Some(Outcome::Failed | Outcome::Released));
                !state.is_failed() || is_done || state.is_owed
            }),
            Property::always(QUIET_IS_RIGHT, |protocol: &Self, state: &State| {
                let is_right = match state.order {
                    OrderState::Completed => state.held() == 1 && !state.is_owed,
                    OrderState::Failed => state.held() == 0 && !state.is_owed,
                    OrderState::Pending | OrderState::Reserved | OrderState::Cancelled => false,
                };
                is_right || !protocol.is_quiet(state)
            }),
            Property::sometimes(
                "a completed order is failed, released and quiet",
                |protocol, state: &State| {
                    state.is_failed() && state.returned == 1 && protocol.is_quiet(state)
                },
            ),
            Property::sometimes(
                "an order that was never seen is released and quiet",
                |protocol, state: &State| {
                    let was_never_seen =
                        state.outcome == Some(Outcome::Released) && state.deducted == 0;
                    state.is_failed() && was_never_seen && protocol.is_quiet(state)
                },
            ),
            Property::sometimes("a completion meets a failed order", |_, state: &State| {
                state.is_failed()
                    && state.has(Message::Completed)
                    && state.outcome == Some(Outcome::Released)
            }),
        ]
    }
}

fn with(mutant: Mutant) -> Protocol {
    Protocol::new(Some(mutant))
}

#[test]
fn the_protocol_of_releases_holds_in_all_reachable_states() {
    holds_in_all_states(Protocol::new(None), 200);
}

#[test]
fn a_release_that_is_done_once_acknowledged_is_lost_with_its_topic() {
    breaks(with(Mutant::AcknowledgedIsDone), RELEASES_ARE_OWED);
    breaks(with(Mutant::AcknowledgedIsDone), QUIET_IS_RIGHT);
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
fn a_failure_of_a_pending_order_must_owe_its_release() {
    breaks(with(Mutant::PendingOwesNothing), QUIET_IS_RIGHT);
}

#[test]
fn a_release_that_returns_units_each_time_returns_too_many() {
    breaks(with(Mutant::ReturnedEachTime), RETURNED_ONCE);
}
