//! Logging, every metric's name, and the admin endpoints that show them.

mod admin;
mod health;
mod logging;
mod metrics;
mod zeros;

pub use admin::serve_admin;
pub use health::{Component, Health};
pub use logging::init_logging;
pub use metrics::Metrics;
