//! What operators see of a process: log lines, metrics, health, traces, and the admin
//! endpoints.
//!
//! | file | does |
//! | --- | --- |
//! | `logging` | writes log lines as text or JSON |
//! | `log_filter` | changes the filter of the log lines while the process runs |
//! | `order_log` | writes a log line for each step of each order |
//! | `metrics` | makes and registers every metric |
//! | `zeros` | creates the series of a role at 0 |
//! | `measured` | says which role exposes which metric |
//! | `health` | gathers what the loops of a process report |
//! | `dependency` | tries a server all the time, for `/readyz` |
//! | `admin` | serves `/livez`, `/readyz`, `/metrics` and `/log-filter` |
//! | `traces` | makes the spans of sampled orders, and sends them |

mod admin;
mod dead_letter_classes;
mod dependency;
mod health;
mod log_filter;
mod logging;
#[cfg(test)]
mod made;
mod measured;
mod metrics;
pub(crate) mod order_log;
mod traces;
mod zeros;

pub(crate) use admin::{Admin, serve_admin};
#[cfg(test)]
pub(crate) use dead_letter_classes::DEAD_LETTER_CLASSES;
pub(crate) use dependency::{Dependency, Lack, Need};
pub(crate) use health::Component;
pub use health::Health;
pub(crate) use log_filter::{LogFilter, check as check_log_filter};
pub(crate) use logging::init_logging;
#[cfg(test)]
pub(crate) use made::made_metrics;
pub(crate) use measured::MeasuredBy;
pub use metrics::Metrics;
pub use traces::ConsumerTraces;
pub use traces::Received;
pub use traces::Traces;
pub(crate) use traces::{
    BatchSpan, SharedTransaction, Span, SpanExport, TraceStarter, TracedRequest,
};
