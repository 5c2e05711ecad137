//! The life of an order: its states, and what each event does to them.

use std::fmt;

use super::{Invalid, OrderStatus, ReportedStatus};

/// Declares the states and their names in one list, so that [`OrderState::ALL`] has each of them.
macro_rules! order_states {
    ($($state:ident => $name:literal,)+) => {
        /// The state of an order in the order store.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum OrderState {
            $($state,)+
        }

        impl OrderState {
            pub(crate) const ALL: [Self; [$($name),+].len()] = [$(Self::$state),+];

            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$state => $name,)+
                }
            }
        }
    };
}

order_states! {
    Pending => "PENDING",
    Completed => "COMPLETED",
    Reserved => "RESERVED",
    Failed => "FAILED",
    Cancelled => "CANCELLED",
}

impl OrderState {
    /// Whether no later event moves an order out of this state.
    pub(crate) fn is_final(self) -> bool {
        match self {
            Self::Failed | Self::Cancelled => true,
            Self::Pending | Self::Completed | Self::Reserved => false,
        }
    }

    /// Fails for any text but a state's own name.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| Invalid(format!("{text:?} is not an order's status")))
    }
}

impl fmt::Display for OrderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The parts of an order on which the effect of an event depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OrderFacts {
    pub state: OrderState,
    /// The order was placed with a hold, and nobody has confirmed it. Counts while it is pending.
    pub wants_hold: bool,
    /// A release of the order still has the time to reach a worker.
    pub is_releasable: bool,
}

/// An event of an order in the order store.
#[derive(Debug, Clone, Copy)]
pub enum Cause<'a> {
    /// A message of the `order-status` topic.
    Reported(&'a OrderStatus),
    /// A client requests it.
    Cancel,
    /// A client requests it.
    Confirm,
    /// A client requests it. `is_in_time`: the new end of the hold leaves a release its time.
    Extend { is_in_time: bool },
    /// The hold of the order has ended.
    HoldDue,
}

/// What an event does to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// The order moves. If it owes a release, its stock must be released. If the move is announced,
    /// `order-status` reports the new state, since the message that caused it does not.
    Move {
        to: OrderState,
        owes_release: bool,
        is_announced: bool,
    },
    /// The hold ends unconfirmed: the order is cancelled as `EXPIRED`, owes a release, and is
    /// announced.
    Expire,
    /// The pending order wants no hold any more: it is completed once it is decided.
    ConfirmHold,
    /// The hold ends later.
    ExtendHold,
    /// The order keeps its state, and its stock must be released.
    OweRelease,
    /// The release of the order is done and no longer owed.
    EndRelease,
    /// The order is completed and too old for a release: it stays completed.
    TooOld,
    /// The state of the order does not allow it.
    Refused,
    /// The order store does not have the order.
    UnknownOrder,
}

impl Cause<'_> {
    /// What this event does to an order: the table of `docs/order-lifecycle.md`. `None` is an order
    /// that the order store does not have.
    ///
    /// A release too many does no harm: the worker releases what its ledger holds, once.
    pub fn effect_on(self, order: Option<OrderFacts>) -> Effect {
        match self {
            Self::Reported(status) => effect_of_report(status, order),
            Self::Cancel => order.map_or(Effect::UnknownOrder, effect_of_cancel),
            Self::Confirm => order.map_or(Effect::UnknownOrder, effect_of_confirm),
            Self::Extend { is_in_time } => match order.map(|order| order.state) {
                Some(OrderState::Reserved) if is_in_time => Effect::ExtendHold,
                Some(_) => Effect::Refused,
                None => Effect::UnknownOrder,
            },
            Self::HoldDue => match order.map(|order| order.state) {
                Some(OrderState::Reserved) => Effect::Expire,
                Some(_) | None => Effect::Nothing,
            },
        }
    }
}

fn effect_of_report(status: &OrderStatus, order: Option<OrderFacts>) -> Effect {
    let is_from_worker = status.is_from_worker();
    let Some(order) = order else {
        return match status.status {
            ReportedStatus::Released => Effect::EndRelease,
            ReportedStatus::Completed | ReportedStatus::Cancelled(_) if status.is_announced() => {
                Effect::Nothing
            }
            ReportedStatus::Completed
            | ReportedStatus::Reserved
            | ReportedStatus::Failed(_)
            | ReportedStatus::Cancelled(_)
            | ReportedStatus::Confirmed => Effect::UnknownOrder,
        };
    };
    match status.status {
        // Ingest and the compensator announce what the order store holds already.
        ReportedStatus::Completed if status.is_announced() => Effect::Nothing,
        ReportedStatus::Completed | ReportedStatus::Reserved => effect_of_deduction(status, order),
        ReportedStatus::Failed(_) => {
            let is_refused = is_from_worker && order.state == OrderState::Pending;
            effect_of_end(OrderState::Failed, !is_refused, order)
        }
        ReportedStatus::Cancelled(_) => match effect_of_end(OrderState::Cancelled, true, order) {
            Effect::TooOld if status.is_announced() => Effect::Nothing,
            effect => effect,
        },
        ReportedStatus::Confirmed => effect_of_confirm(order),
        ReportedStatus::Released => match order.state {
            // A release is published after its order has moved, so the store lost that move.
            OrderState::Pending | OrderState::Reserved | OrderState::Completed => {
                Effect::Move { to: OrderState::Cancelled, owes_release: false, is_announced: true }
            }
            OrderState::Failed | OrderState::Cancelled => Effect::EndRelease,
        },
    }
}

/// A worker has deducted the stock of the order. The order's own row says whether it holds it.
fn effect_of_deduction(status: &OrderStatus, order: OrderFacts) -> Effect {
    match order.state {
        OrderState::Pending if order.wants_hold && !order.is_releasable => Effect::Expire,
        OrderState::Pending if order.wants_hold => {
            Effect::Move { to: OrderState::Reserved, owes_release: false, is_announced: false }
        }
        OrderState::Pending => Effect::Move {
            to: OrderState::Completed,
            owes_release: false,
            is_announced: status.status != ReportedStatus::Completed,
        },
        OrderState::Reserved | OrderState::Completed => Effect::Nothing,
        OrderState::Failed | OrderState::Cancelled => Effect::OweRelease,
    }
}

/// Somebody reports that the order has failed or is cancelled.
fn effect_of_end(to: OrderState, owes_release: bool, order: OrderFacts) -> Effect {
    match order.state {
        OrderState::Completed if !order.is_releasable => Effect::TooOld,
        OrderState::Pending | OrderState::Reserved | OrderState::Completed => {
            Effect::Move { to, owes_release, is_announced: false }
        }
        OrderState::Failed | OrderState::Cancelled => Effect::Nothing,
    }
}

fn effect_of_cancel(order: OrderFacts) -> Effect {
    match effect_of_end(OrderState::Cancelled, true, order) {
        Effect::Move { to, owes_release, .. } => {
            Effect::Move { to, owes_release, is_announced: true }
        }
        Effect::Nothing if order.state == OrderState::Failed => Effect::Refused,
        effect => effect,
    }
}

fn effect_of_confirm(order: OrderFacts) -> Effect {
    match order.state {
        OrderState::Pending if order.wants_hold => Effect::ConfirmHold,
        OrderState::Pending | OrderState::Completed => Effect::Nothing,
        OrderState::Reserved => {
            Effect::Move { to: OrderState::Completed, owes_release: false, is_announced: true }
        }
        OrderState::Failed | OrderState::Cancelled => Effect::Refused,
    }
}

#[cfg(test)]
mod tests;
