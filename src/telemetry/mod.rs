//! Logging, every metric's name, and the admin endpoints that show them.

mod admin;
mod dependency;
mod health;
mod logging;
mod measured;
mod metrics;
mod zeros;

pub(crate) use admin::serve_admin;
pub(crate) use dependency::{Dependency, Lack, Need};
pub(crate) use health::Component;
pub use health::Health;
pub(crate) use logging::init_logging;
pub(crate) use measured::MeasuredBy;
pub use metrics::Metrics;
