use std::fmt;

use chrono::{DateTime, Utc};

use super::{Invalid, Lines, OrderId};

/// The `source` of statuses that stocklock's workers report.
pub const WORKER_SOURCE: &str = "worker";
/// The `source` of statuses that ingest announces: moves of orders that no message caused.
pub(crate) const INGEST_SOURCE: &str = "ingest";
/// The `source` of statuses that the compensator announces.
pub(crate) const COMPENSATOR_SOURCE: &str = "compensator";

/// What an event of the `orders` topic asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// The order was placed: deduct its stock.
    Placed,
    /// The order failed or was cancelled after all: release its stock, or never deduct it.
    Release,
}

impl EventKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "PLACED",
            Self::Release => "RELEASE",
        }
    }

    /// Fails for any text but a kind's own name.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
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

/// Why an order failed or was cancelled: a reason of stocklock's own, or the reporter's words, at
/// most `Reason::MAX_CHARS` characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reason {
    InsufficientStock,
    UnknownProduct,
    Reported(String),
}

impl Reason {
    pub(crate) const MAX_CHARS: usize = 512;

    /// Cuts words beyond `Reason::MAX_CHARS` off.
    pub fn parse(text: &str) -> Self {
        match text {
            "INSUFFICIENT_STOCK" => Self::InsufficientStock,
            "UNKNOWN_PRODUCT" => Self::UnknownProduct,
            words => Self::Reported(words.chars().take(Self::MAX_CHARS).collect()),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
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
    Cancelled(Option<Reason>),
    /// The worker handled a RELEASE of the order: its stock is released, or will never be
    /// deducted.
    Released,
}

impl ReportedStatus {
    /// Fails for any text but a status's own name. A `FAILED` without a reason gets `UNSPECIFIED`.
    pub(crate) fn parse(name: &str, reason: Option<&str>) -> Result<Self, Invalid> {
        match name {
            "COMPLETED" => Ok(Self::Completed),
            "FAILED" => Ok(Self::Failed(Reason::parse(reason.unwrap_or("UNSPECIFIED")))),
            "CANCELLED" => Ok(Self::Cancelled(reason.map(Reason::parse))),
            "RELEASED" => Ok(Self::Released),
            other => Err(Invalid(format!(
                "status {other:?} is none of COMPLETED, FAILED, CANCELLED, RELEASED"
            ))),
        }
    }

    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Completed => "COMPLETED",
            Self::Failed(_) => "FAILED",
            Self::Cancelled(_) => "CANCELLED",
            Self::Released => "RELEASED",
        }
    }

    pub(crate) fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Failed(reason) => Some(reason),
            Self::Cancelled(reason) => reason.as_ref(),
            Self::Completed | Self::Released => None,
        }
    }
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
    /// Whether a worker of stocklock reports it.
    pub fn is_from_worker(&self) -> bool {
        self.source == WORKER_SOURCE
    }

    /// Whether ingest or the compensator announces what the order store holds already.
    fn is_announced(&self) -> bool {
        [INGEST_SOURCE, COMPENSATOR_SOURCE].contains(&self.source.as_str())
    }

    /// Fails if the source may not report this status: only a worker deducts stock and releases it.
    pub(crate) fn check_source(&self) -> Result<(), Invalid> {
        let is_allowed = match self.status {
            ReportedStatus::Completed => self.is_from_worker() || self.is_announced(),
            ReportedStatus::Released => self.is_from_worker(),
            ReportedStatus::Failed(_) | ReportedStatus::Cancelled(_) => true,
        };
        if is_allowed {
            return Ok(());
        }
        Err(Invalid(format!(
            "{:?} reports {}, which only a worker may",
            self.source,
            self.status.as_str()
        )))
    }

    /// What this status does to its order: the table of `docs/order-lifecycle.md`.
    ///
    /// - `state`: the order's present state, `None` if the order store does not have the order.
    /// - `is_releasable`: a release of the order still has the time to reach a worker.
    ///
    /// A release too many does no harm: the worker releases what its ledger holds, once.
    pub fn effect_on(&self, state: Option<OrderState>, is_releasable: bool) -> Effect {
        use OrderState::{Cancelled, Completed, Failed, Pending};
        match &self.status {
            ReportedStatus::Completed if self.is_announced() => Effect::Nothing,
            ReportedStatus::Completed => match state {
                Some(Pending) => Effect::Move { to: Completed, owes_release: false },
                Some(Completed) => Effect::Nothing,
                Some(Failed | Cancelled) => Effect::OweRelease,
                None => Effect::UnknownOrder,
            },
            ReportedStatus::Failed(_) => match state {
                Some(Pending) => Effect::Move { to: Failed, owes_release: !self.is_from_worker() },
                Some(Completed) if is_releasable => Effect::Move { to: Failed, owes_release: true },
                Some(Completed) => Effect::TooLate,
                Some(Failed | Cancelled) => Effect::Nothing,
                None => Effect::UnknownOrder,
            },
            ReportedStatus::Cancelled(_) => match state {
                Some(Pending) => Effect::Move { to: Cancelled, owes_release: true },
                Some(Completed) if is_releasable => {
                    Effect::Move { to: Cancelled, owes_release: true }
                }
                Some(Completed) | None if self.is_announced() => Effect::Nothing,
                Some(Completed) => Effect::TooLate,
                Some(Failed | Cancelled) => Effect::Nothing,
                None => Effect::UnknownOrder,
            },
            ReportedStatus::Released => match state {
                // A release is published after its order has moved, so the store lost that move.
                Some(Pending) => Effect::Move { to: Cancelled, owes_release: false },
                Some(Completed | Failed | Cancelled) | None => Effect::EndRelease,
            },
        }
    }
}

/// What a status does to an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// The order moves. If it owes a release, its stock must be released.
    Move {
        to: OrderState,
        owes_release: bool,
    },
    /// The order keeps its state, and its stock must be released.
    OweRelease,
    /// The release of the order is done and no longer owed.
    EndRelease,
    /// The order is completed and too old for a release: it stays completed.
    TooLate,
    /// The order store does not have the order.
    UnknownOrder,
}

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
    Failed => "FAILED",
    Cancelled => "CANCELLED",
}

impl OrderState {
    /// Whether no message moves an order out of this state.
    pub(crate) fn is_final(self) -> bool {
        match self {
            Self::Failed | Self::Cancelled => true,
            Self::Pending | Self::Completed => false,
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

#[cfg(test)]
mod tests;
