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
    /// Seconds for which the order holds its stock once it is decided. `None`: the order is
    /// completed then.
    pub hold_seconds: Option<u32>,
    /// The caller's own name of the order.
    pub reference: Option<String>,
}

/// Why an order failed or was cancelled: a reason of stocklock's own, or the reporter's words, at
/// most `Reason::MAX_CHARS` characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reason {
    InsufficientStock,
    UnknownProduct,
    /// The order held its stock, and was not confirmed in time.
    Expired,
    Reported(String),
}

impl Reason {
    pub(crate) const MAX_CHARS: usize = 512;

    /// Cuts words beyond `Reason::MAX_CHARS` off.
    pub fn parse(text: &str) -> Self {
        match text {
            "INSUFFICIENT_STOCK" => Self::InsufficientStock,
            "UNKNOWN_PRODUCT" => Self::UnknownProduct,
            "EXPIRED" => Self::Expired,
            words => Self::Reported(words.chars().take(Self::MAX_CHARS).collect()),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::InsufficientStock => "INSUFFICIENT_STOCK",
            Self::UnknownProduct => "UNKNOWN_PRODUCT",
            Self::Expired => "EXPIRED",
            Self::Reported(words) => words,
        }
    }
}

/// A status that may be reported on the `order-status` topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportedStatus {
    Completed,
    /// The order's stock is deducted, and the order holds it until it is confirmed.
    Reserved,
    Failed(Reason),
    Cancelled(Option<Reason>),
    /// The caller keeps what the order holds.
    Confirmed,
    /// The worker handled a RELEASE of the order: its stock is released, or will never be
    /// deducted.
    Released,
}

impl ReportedStatus {
    /// Fails for any text but a status's own name. A `FAILED` without a reason gets `UNSPECIFIED`.
    pub(crate) fn parse(name: &str, reason: Option<&str>) -> Result<Self, Invalid> {
        match name {
            "COMPLETED" => Ok(Self::Completed),
            "RESERVED" => Ok(Self::Reserved),
            "CONFIRMED" => Ok(Self::Confirmed),
            "FAILED" => Ok(Self::Failed(Reason::parse(reason.unwrap_or("UNSPECIFIED")))),
            "CANCELLED" => Ok(Self::Cancelled(reason.map(Reason::parse))),
            "RELEASED" => Ok(Self::Released),
            other => Err(Invalid(format!(
                "status {other:?} is none of COMPLETED, RESERVED, FAILED, CANCELLED, CONFIRMED, \
                 RELEASED"
            ))),
        }
    }

    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Completed => "COMPLETED",
            Self::Reserved => "RESERVED",
            Self::Confirmed => "CONFIRMED",
            Self::Failed(_) => "FAILED",
            Self::Cancelled(_) => "CANCELLED",
            Self::Released => "RELEASED",
        }
    }

    pub(crate) fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Failed(reason) => Some(reason),
            Self::Cancelled(reason) => reason.as_ref(),
            Self::Completed | Self::Reserved | Self::Confirmed | Self::Released => None,
        }
    }
}

/// A message of the `order-status` topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderStatus {
    pub order_id: OrderId,
    pub status: ReportedStatus,
    pub source: String,
    /// When the reported change happened. The time of a worker's decision is the same each time
    /// that the worker reports it.
    pub occurred_at: DateTime<Utc>,
    /// The caller's own name of the order, as far as the reporter knows it.
    pub reference: Option<String>,
}

impl OrderStatus {
    /// Whether a worker of stocklock reports it.
    pub fn is_from_worker(&self) -> bool {
        self.source == WORKER_SOURCE
    }

    /// Whether ingest or the compensator announces what the order store holds already.
    pub(super) fn is_announced(&self) -> bool {
        [INGEST_SOURCE, COMPENSATOR_SOURCE].contains(&self.source.as_str())
    }

    /// Fails if the source may not report this status: only a worker deducts stock and releases it.
    pub(crate) fn check_source(&self) -> Result<(), Invalid> {
        let is_allowed = match self.status {
            ReportedStatus::Completed => self.is_from_worker() || self.is_announced(),
            ReportedStatus::Reserved | ReportedStatus::Released => self.is_from_worker(),
            ReportedStatus::Failed(_)
            | ReportedStatus::Cancelled(_)
            | ReportedStatus::Confirmed => true,
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
}

#[cfg(test)]
mod tests;
