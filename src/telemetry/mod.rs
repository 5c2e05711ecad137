//! Logging, every metric's name, and the admin endpoints that show them.

mod admin;
mod dependency;
mod health;
mod logging;
mod measured;
mod metrics;
mod zeros;

pub use admin::serve_admin;
pub use dependency::{Dependency, Lack, Need};
pub use health::{Component, Health};
pub use logging::init_logging;
pub use measured::MeasuredBy;
pub use metrics::Metrics;
