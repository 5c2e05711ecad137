//! Orders, quantities and decisions. Pure: no I/O, no clock, no randomness, no async.
//!
//! | file | what it has |
//! | --- | --- |
//! | `ids.rs` | [`OrderId`] and [`ProductId`] |
//! | `lines.rs` | an order's lines, and their sum |
//! | `level.rs` | the available units of a product, as they are published |
//! | `status.rs` | the messages of the topics: events and statuses |
//! | `lifecycle.rs` | an order's states, and what each event does to them |
//! | `fold.rs` | what a batch of events does to stock and outcomes |
//! | `horizon.rs` | how old an order may be |
//! | `adjustment.rs` | requests to adjust stock, and what they do to it |
//! | `trace_context.rs` | the trace that an order belongs to |

pub(crate) mod adjustment;
pub mod fold;
mod horizon;
mod ids;
mod level;
mod lifecycle;
mod lines;
mod status;
mod trace_context;

pub use horizon::Horizon;
pub use ids::OrderId;
pub use ids::ProductId;
pub use level::StockLevel;
pub use lifecycle::Cause;
pub use lifecycle::Effect;
pub use lifecycle::OrderFacts;
pub use lifecycle::OrderState;
pub use lines::Line;
pub use lines::Lines;
pub(crate) use lines::{Demand, MAX_LINES, MAX_QUANTITY};
pub use status::EventKind;
pub use status::OrderEvent;
pub use status::OrderStatus;
pub use status::Reason;
pub use status::ReportedStatus;
pub use status::WORKER_SOURCE;
pub(crate) use status::{COMPENSATOR_SOURCE, INGEST_SOURCE};
pub use trace_context::TraceContext;
pub(crate) use trace_context::TraceParent;
pub use trace_context::TracedOrders;

/// The most units available of a product: the largest integer that JSON clients read exactly.
pub(crate) const MAX_AVAILABLE: i64 = (1 << 53) - 1;

/// A value outside the domain. The text says what was found and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);
