use std::fmt;

use chrono::{DateTime, Utc};

use super::{Invalid, Lines, OrderId};

/// The `source` of statuses that our own workers report.
pub const WORKER_SOURCE: &str = "worker";

/// What the `orders` topic says of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// It was placed: deduct its stock.
    Placed,
    /// It failed or was cancelled after all: give its stock back, or never take it.
    Release,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "PLACED",
            Self::Release => "RELEASE",
        }
    }

    /// Fails for any text but a kind's own name.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        match text {
            "PLACED" => Ok(Self::Placed),
            "RELEASE" => Ok(Self::Release),
            _ => Err(Invalid(format!("kind {text:?} is neither PLACED nor RELEASE"))),
        }
    }
}

/// A message of the `orders` topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderEvent {
    pub order_id: OrderId,
    pub kind: EventKind,
    pub lines: Lines,
    pub accepted_at: DateTime<Utc>,
}

/// Why an order failed: one of ours, or the reporter's own words (at most [`Reason::MAX_CHARS`] characters).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reason {
    InsufficientStock,
    UnknownProduct,
    Reported(String),
}

impl Reason {
    pub const MAX_CHARS: usize = 512;

    /// Words beyond [`Reason::MAX_CHARS`] are cut off.
    pub fn parse(text: &str) -> Self {
        match text {
            "INSUFFICIENT_STOCK" => Self::InsufficientStock,
            "UNKNOWN_PRODUCT" => Self::UnknownProduct,
            words => Self::Reported(words.chars().take(Self::MAX_CHARS).collect()),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::InsufficientStock => "INSUFFICIENT_STOCK",
            Self::UnknownProduct => "UNKNOWN_PRODUCT",
            Self::Reported(words) => words,
        }
    }
}

/// A status that may be reported on the `order-status` topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportedStatus {
    Completed,
    Failed(Reason),
}

/// A message of the `order-status` topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderStatus {
    pub order_id: OrderId,
    pub status: ReportedStatus,
    pub source: String,
    pub occurred_at: DateTime<Utc>,
}

impl OrderStatus {
    /// Whether one of our workers says so.
    pub fn is_from_worker(&self) -> bool {
        self.source == WORKER_SOURCE
    }
}

/// Where an order stands in the order store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OrderState {
    Pending,
    Completed,
    Failed,
    Cancelled,
}

impl OrderState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Fails for any text but a state's own name.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        [Self::Pending, Self::Completed, Self::Failed, Self::Cancelled]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| Invalid(format!("{text:?} is not an order's status")))
    }

    /// What a report does to an order in this state.
    ///
    /// Whatever brings an order to `FAILED` but the worker's own refusal releases its stock, and so does a `COMPLETED` that
    /// comes too late. A release too many does no harm: the worker gives back what its ledger holds, and that once.
    pub fn on(self, report: &OrderStatus) -> Transition {
        let ours = report.is_from_worker();
        match (self, &report.status) {
            (Self::Pending, ReportedStatus::Completed) => Transition::to(Self::Completed, false),
            (Self::Pending, ReportedStatus::Failed(_)) => Transition::to(Self::Failed, !ours),
            (Self::Completed, ReportedStatus::Failed(_)) => Transition::to(Self::Failed, true),
            (Self::Failed | Self::Cancelled, ReportedStatus::Completed) => Transition { next: None, release: true },
            (Self::Completed, ReportedStatus::Completed)
            | (Self::Failed | Self::Cancelled, ReportedStatus::Failed(_)) => Transition { next: None, release: false },
        }
    }
}

impl fmt::Display for OrderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state an order moves to, if it moves, and whether its stock must be released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    pub next: Option<OrderState>,
    pub release: bool,
}

impl Transition {
    fn to(next: OrderState, release: bool) -> Self {
        Self { next: Some(next), release }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(status: ReportedStatus, source: &str) -> OrderStatus {
        OrderStatus { order_id: OrderId::generate(), status, source: source.into(), occurred_at: DateTime::UNIX_EPOCH }
    }

    #[test]
    fn only_the_workers_own_refusal_fails_an_order_without_a_release() {
        let failed = || ReportedStatus::Failed(Reason::InsufficientStock);
        let refused = OrderState::Pending.on(&report(failed(), WORKER_SOURCE));
        assert_eq!(refused, Transition { next: Some(OrderState::Failed), release: false });
        for state in [OrderState::Pending, OrderState::Completed] {
            let late = state.on(&report(failed(), "payments"));
            assert_eq!(late, Transition { next: Some(OrderState::Failed), release: true });
        }
    }

    #[test]
    fn final_states_stay_and_a_completion_that_meets_them_is_released() {
        for state in [OrderState::Failed, OrderState::Cancelled] {
            let completed = state.on(&report(ReportedStatus::Completed, WORKER_SOURCE));
            assert_eq!(completed, Transition { next: None, release: true });
            let failed = state.on(&report(ReportedStatus::Failed(Reason::InsufficientStock), "payments"));
            assert_eq!(failed, Transition { next: None, release: false });
        }
    }

    #[test]
    fn a_repeated_completion_changes_nothing() {
        let repeat = OrderState::Completed.on(&report(ReportedStatus::Completed, WORKER_SOURCE));
        assert_eq!(repeat, Transition { next: None, release: false });
    }
}
