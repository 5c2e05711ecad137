//! The steps of the protocol.

use chrono::DateTime;
use stateright::{Model, Property};
use stocklock::domain::{
    Cause, OrderId, OrderState, OrderStatus, Reason, ReportedStatus, WORKER_SOURCE,
};

use super::{
    changes::Event,
    mutants::Mutant,
    properties::properties,
    state::{Announcement, Failover, Faults, Hold, Ledger, Message, Outcome, State},
    worker::{Handled, Worker},
};

/// What a client requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    Cancel,
    Confirm,
    Extend,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Ingest publishes the order: from its outbox, or because it is pending for long.
    Place {
        message: Message,
        is_acknowledged: bool,
    },
    /// The compensator or ingest publishes the release while it is owed.
    Release,
    /// Ingest or the compensator publishes an announcement that is written.
    Announce(Message),
    /// It deletes the announcement that the broker has acknowledged.
    ForgetAnnouncement(Message),
    /// The broker forgets a message.
    Lose(Message),
    /// The worker decides an event. There is stock for the order, or not.
    Handle {
        event: Message,
        has_stock: bool,
        dies: bool,
    },
    /// The compensator applies a message of `order-status` in a transaction.
    Apply(Message),
    /// The offset of the last message of another system is stored.
    StoreOffset,
    /// The same before the transaction, and the compensator dies.
    StoreOffsetFirst(Message),
    CompensatorDies,
    /// A sweep finds the hold due, without a lock.
    FindDueHold,
    /// It locks the order, looks at the hold again, and ends it.
    EndHold,
    /// Ingest changes the order in a transaction.
    Request(Request),
    Answer,
    /// The same before the transaction, and ingest dies.
    AnswerFirst(Request),
    IngestDies,
    HoldFallsDue,
    /// The order becomes too old for a release.
    GetsOld,
    FailOver,
}

const ANNOUNCEMENTS: [Message; 2] = [Message::AnnouncedCompleted, Message::AnnouncedCancelled];
const MAX_SWEEPS: u8 = 2;
const MAX_RETURNED: u8 = 2;

/// The protocol, one way at most to get it wrong, and what may fail.
pub(crate) struct Protocol {
    mutant: Option<Mutant>,
    pub(crate) faults: Faults,
    statuses: Vec<OrderStatus>,
    worker: Worker,
}

impl Protocol {
    pub(crate) fn new(mutant: Option<Mutant>, faults: Faults) -> Self {
        let messages = Message::OURS.into_iter().chain(Message::OF_OTHERS);
        let statuses = messages.map(status).collect();
        Self { mutant, faults, statuses, worker: Worker::new() }
    }

    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(crate) fn cause(&self, event: Event, is_old: bool) -> Cause<'_> {
        match event {
            Event::Reported(message) => Cause::Reported(&self.statuses[message as usize]),
            Event::Requested(Request::Cancel) => Cause::Cancel,
            Event::Requested(Request::Confirm) => Cause::Confirm,
            Event::Requested(Request::Extend) => Cause::Extend { is_in_time: !is_old },
            Event::HoldDue => Cause::HoldDue,
        }
    }

    /// Whether no process will change anything, unless another system or a client wants something,
    /// time passes, or something is lost.
    pub(crate) fn is_quiet(&self, state: &State) -> bool {
        let is_idle = state.ingest.is_none() && state.compensator.is_none() && state.sweeps == 0;
        let mut actions = Vec::new();
        self.add_own_actions(state, &mut actions);
        is_idle && actions.into_iter().all(|action| self.next_state(state, action).is_none())
    }

    /// What the processes do without a request.
    fn add_own_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let store = &state.store;
        if store.is_owed {
            actions.push(Action::Release);
        }
        if store.hold == Some(Hold::Due) && state.sweeps < MAX_SWEEPS {
            actions.push(Action::FindDueHold);
        }
        if state.sweeps > 0 {
            actions.push(Action::EndHold);
        }
        for message in ANNOUNCEMENTS {
            match store.clone().announcement(message) {
                Some(Announcement::Written) => {
                    actions.push(Action::Announce(message));
                    if self.is(Mutant::DeletedFirst) {
                        actions.push(Action::ForgetAnnouncement(message));
                    }
                }
                Some(Announcement::Published) => {
                    actions
                        .extend([Action::Announce(message), Action::ForgetAnnouncement(message)]);
                }
                None => {}
            }
        }
        add_placing(state, actions);
        for message in Message::OURS.into_iter().filter(|message| state.has(*message)) {
            if !message.is_event() {
                actions.push(Action::Apply(message));
                continue;
            }
            for dies in [false, true] {
                actions.push(Action::Handle { event: message, has_stock: true, dies });
                if state.ledger.outcome.is_none() {
                    actions.push(Action::Handle { event: message, has_stock: false, dies });
                }
            }
        }
    }

    /// What clients, other systems, time and faults do.
    fn add_other_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.ingest.is_none() {
            let requests = [Request::Cancel, Request::Confirm, Request::Extend];
            actions.extend(requests.map(Action::Request));
            if self.is(Mutant::AnsweredFirst) {
                actions.extend(requests.map(Action::AnswerFirst));
            }
        } else {
            actions.extend([Action::Answer, Action::IngestDies]);
        }
        if state.compensator.is_none() {
            actions.extend(Message::OF_OTHERS.map(Action::Apply));
            if self.is(Mutant::OffsetFirst) {
                actions.extend(Message::OF_OTHERS.map(Action::StoreOffsetFirst));
            }
        } else {
            actions.push(Action::StoreOffset);
        }
        if state.compensator.is_some() || state.sweeps > 0 || self.is(Mutant::AnnouncedFromMemory) {
            actions.push(Action::CompensatorDies);
        }
        match state.store.hold {
            Some(Hold::Running) => actions.push(Action::HoldFallsDue),
            // No hold lasts until its order is too old for a release.
            Some(Hold::Due) | None => actions.push(Action::GetsOld),
        }
        if self.faults == Faults::Broker {
            // No process of ours needs an announcement, so its loss would change nothing.
            let ours = Message::OURS.into_iter().filter(|message| state.has(*message));
            let lost = ours.filter(|message| !ANNOUNCEMENTS.contains(message));
            actions.extend(lost.map(Action::Lose));
        }
        if state.failover != Failover::Never {
            actions.push(Action::FailOver);
        }
    }

    fn handle(&self, state: &mut State, event: Message, has_stock: bool, dies: bool) {
        let before = state.ledger.outcome;
        let is_release = event == Message::Release;
        if is_release && dies && self.is(Mutant::ReportedFirst) {
            state.publish(Message::Released);
            return;
        }
        let Handled { outcome, deducted, returned, report } =
            self.worker.handle(event, before, has_stock);
        let ledger = &mut state.ledger;
        let returns_again =
            is_release && before == Some(Outcome::Released) && self.is(Mutant::ReturnedEachTime);
        ledger.deducted += deducted;
        ledger.returned = (ledger.returned + returned + u8::from(returns_again)).min(MAX_RETURNED);
        if before.is_some() || !is_release || !self.is(Mutant::NoOutcomeWithoutOrder) {
            ledger.outcome = outcome;
        }
        let is_silent = is_release && returned == 0 && self.is(Mutant::SilentWithoutUnits);
        if !dies && !is_silent {
            state.publish(report);
        }
    }

    fn fail_over(state: &mut State) {
        match state.failover {
            Failover::OrderStoreTo(before) => state.store = before,
            Failover::StockStore if state.ledger.is_decided_without_units() => {
                state.ledger = Ledger::default();
            }
            Failover::StockStore | Failover::Never => return,
        }
        state.failover = Failover::Never;
    }

    fn announce(state: &mut State, message: Message) {
        let is_true = match (message, state.store.state) {
            (_, OrderState::Pending | OrderState::Reserved) => false,
            (Message::AnnouncedCancelled, now) => now == OrderState::Cancelled,
            _ => true,
        };
        state.wrongs.announced_wrongly |= !is_true;
        state.publish(message);
        *state.store.announcement(message) = Some(Announcement::Published);
    }

    /// The memory of a process goes, and with it what was written there alone.
    fn forget_memory(&self, state: &mut State) {
        if self.is(Mutant::AnnouncedFromMemory) {
            (state.store.completion, state.store.cancellation) = (None, None);
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        [false, true].map(|has_hold| State::initial(has_hold, self.faults)).to_vec()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.add_own_actions(state, actions);
        self.add_other_actions(state, actions);
    }

    /// Returns `None` if the action changes nothing.
    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Place { message, is_acknowledged } => {
                state.publish(message);
                state.store.is_in_outbox &= !is_acknowledged;
            }
            Action::Release => {
                state.publish(Message::Release);
                state.store.is_owed = !self.is(Mutant::AcknowledgedIsDone);
            }
            Action::Announce(message) => Self::announce(&mut state, message),
            Action::ForgetAnnouncement(message) => *state.store.announcement(message) = None,
            Action::Lose(message) => state.topics.remove(message as usize),
            Action::Handle { event, has_stock, dies } => {
                self.handle(&mut state, event, has_stock, dies);
            }
            Action::Apply(message) => self.apply(&mut state, message),
            Action::StoreOffset => {
                state.compensator.take().into_iter().for_each(|promise| state.promise(promise));
            }
            Action::StoreOffsetFirst(message) => {
                let mut applied = last.clone();
                self.apply(&mut applied, message);
                applied.compensator.into_iter().for_each(|promise| state.promise(promise));
            }
            Action::CompensatorDies => {
                (state.compensator, state.sweeps) = (None, 0);
                self.forget_memory(&mut state);
            }
            Action::FindDueHold => state.sweeps += 1,
            Action::EndHold => {
                state.sweeps -= 1;
                self.end_hold(&mut state);
            }
            Action::Request(request) => self.request(&mut state, request),
            Action::Answer => {
                state.ingest.take().into_iter().for_each(|promise| state.promise(promise));
            }
            Action::AnswerFirst(request) => {
                let mut changed = last.clone();
                self.request(&mut changed, request);
                changed.ingest.into_iter().for_each(|promise| state.promise(promise));
            }
            Action::IngestDies => {
                state.ingest = None;
                self.forget_memory(&mut state);
            }
            Action::HoldFallsDue => state.store.hold = Some(Hold::Due),
            Action::GetsOld => state.is_old = true,
            Action::FailOver => Self::fail_over(&mut state),
        }
        if let Failover::OrderStoreTo(before) = &mut state.failover
            && state.store != last.store
        {
            *before = last.store;
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties(self.faults)
    }
}

/// Adds the messages that place the order. Ingest may have made the message before the order was
/// confirmed.
fn add_placing(state: &State, actions: &mut Vec<Action>) {
    let store = &state.store;
    let place =
        |message| [true, false].map(|is_acknowledged| Action::Place { message, is_acknowledged });
    if store.is_in_outbox || store.state == OrderState::Pending {
        if !store.wants_hold() {
            actions.extend(place(Message::Placed));
        }
        if store.has_hold && (store.is_in_outbox || store.wants_hold()) {
            actions.extend(place(Message::PlacedWithHold));
        }
    }
}

/// The message as the compensator reads it. It reads no events of `orders`: those get any status.
fn status(message: Message) -> OrderStatus {
    let (status, source) = match message {
        Message::Completed => (ReportedStatus::Completed, WORKER_SOURCE),
        Message::Reserved => (ReportedStatus::Reserved, WORKER_SOURCE),
        Message::Refused => (ReportedStatus::Failed(Reason::InsufficientStock), WORKER_SOURCE),
        Message::Released => (ReportedStatus::Released, WORKER_SOURCE),
        Message::AnnouncedCompleted => (ReportedStatus::Completed, "ingest"),
        Message::AnnouncedCancelled => (ReportedStatus::Cancelled(None), "compensator"),
        Message::Failure => (ReportedStatus::Failed(Reason::parse("payment")), "payments"),
        Message::Cancellation => (ReportedStatus::Cancelled(None), "payments"),
        Message::Placed | Message::PlacedWithHold | Message::Release | Message::Confirmation => {
            (ReportedStatus::Confirmed, "payments")
        }
    };
    OrderStatus {
        order_id: OrderId::first_of(DateTime::UNIX_EPOCH),
        status,
        source: source.to_owned(),
        occurred_at: DateTime::UNIX_EPOCH,
        reference: None,
    }
}
