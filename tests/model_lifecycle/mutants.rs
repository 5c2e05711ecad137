//! Ways to get the protocol wrong.

use stocklock::domain::{Effect, OrderFacts, OrderState};

use super::{
    changes::Event,
    protocol::{Protocol, Request},
    state::Message,
};

/// A way to get the protocol wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A release is no longer owed when the broker has acknowledged its event.
    AcknowledgedIsDone,
    /// The worker reports only releases that returned units.
    SilentWithoutUnits,
    /// The worker reports a release before its transaction is committed.
    ReportedFirst,
    /// A release of an order that the worker never saw leaves no outcome.
    NoOutcomeWithoutOrder,
    /// An order that fails or is cancelled while it is pending owes no release.
    PendingOwesNothing,
    /// A release returns the units each time.
    ReturnedEachTime,
    /// A deduction that meets a failed or cancelled order owes no release.
    FinalOwesNothing,
    /// A confirmation completes a cancelled order.
    LateConfirmRevives,
    /// A sweep ends a hold that another sweep has ended already.
    DueTwice,
    /// A sweep decides on what it read before it locked the order.
    SweepDecidesEarly,
    /// A repeated `RESERVED` opens a hold again that was confirmed.
    ReservedReopensConfirmed,
    /// A repeated `RESERVED` opens a hold again that was cancelled or has ended.
    ReservedReopensCancelled,
    /// A confirmation of a pending order is forgotten.
    StruckOffIsIgnored,
    /// Moves are announced from memory, without a row.
    AnnouncedFromMemory,
    /// The row of an announcement is deleted before the broker has the announcement.
    DeletedFirst,
    /// The hold of an order that is cancelled or fails stays open.
    HoldStaysOpen,
    /// Ingest answers a request before its transaction is committed.
    AnsweredFirst,
    /// The compensator stores the offset of a message before its transaction is committed.
    OffsetFirst,
    /// A `RELEASED` that meets an order that is not final ends the release alone.
    ReleasedMovesNothing,
}

impl Protocol {
    /// Whether a repeated `RESERVED` reserves the order again.
    fn reopens(&self, closed: OrderState) -> bool {
        match closed {
            OrderState::Completed => self.is(Mutant::ReservedReopensConfirmed),
            OrderState::Cancelled => self.is(Mutant::ReservedReopensCancelled),
            OrderState::Pending | OrderState::Reserved | OrderState::Failed => false,
        }
    }

    /// The effect as a wrong protocol has it.
    pub(crate) fn mutated(
        &self,
        effect: Effect,
        event: Event,
        order: OrderFacts,
        has_hold: bool,
    ) -> Effect {
        let is_confirmation = matches!(
            event,
            Event::Requested(Request::Confirm) | Event::Reported(Message::Confirmation)
        );
        let is_late = order.state == OrderState::Cancelled;
        match effect {
            Effect::Move { to, is_announced, .. }
                if order.state == OrderState::Pending && self.is(Mutant::PendingOwesNothing) =>
            {
                Effect::Move { to, owes_release: false, is_announced }
            }
            Effect::Move { to: OrderState::Cancelled, owes_release: false, .. }
                if self.is(Mutant::ReleasedMovesNothing) =>
            {
                Effect::EndRelease
            }
            Effect::Refused
                if is_confirmation && is_late && self.is(Mutant::LateConfirmRevives) =>
            {
                Effect::Move { to: OrderState::Completed, owes_release: false, is_announced: true }
            }
            Effect::Nothing | Effect::OweRelease
                if event == Event::Reported(Message::Reserved)
                    && has_hold
                    && self.reopens(order.state) =>
            {
                Effect::Move { to: OrderState::Reserved, owes_release: false, is_announced: false }
            }
            Effect::OweRelease if self.is(Mutant::FinalOwesNothing) => Effect::Nothing,
            Effect::Nothing
                if event == Event::HoldDue
                    && (self.is(Mutant::DueTwice) || self.is(Mutant::SweepDecidesEarly)) =>
            {
                Effect::Expire
            }
            effect => effect,
        }
    }
}
