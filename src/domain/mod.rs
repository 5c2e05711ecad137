//! Orders, quantities and decisions. Pure: no I/O, no clock, no async.

pub mod fold;
mod horizon;
mod ids;
mod lines;
mod status;

pub use horizon::Horizon;
pub use ids::{OrderId, ProductId};
pub(crate) use lines::{Demand, MAX_LINES, MAX_QUANTITY};
pub use lines::{Line, Lines};
pub use status::{
    Effect, EventKind, OrderEvent, OrderState, OrderStatus, Reason, ReportedStatus, WORKER_SOURCE,
};

/// The most that a product may have available: the largest integer that JSON clients read exactly.
pub(crate) const MAX_AVAILABLE: i64 = (1 << 53) - 1;

/// A value that does not belong to the domain. The text says what is wrong and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);
