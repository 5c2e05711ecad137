//! Logging, every metric's name, and the admin endpoints that show them.

mod admin;
mod dead_letter_classes;
mod dependency;
mod health;
mod logging;
#[cfg(test)]
mod made;
mod measured;
mod metrics;
mod zeros;

pub(crate) use admin::serve_admin;
#[cfg(test)]
pub(crate) use dead_letter_classes::DEAD_LETTER_CLASSES;
pub(crate) use dependency::{Dependency, Lack, Need};
pub(crate) use health::Component;
pub use health::Health;
pub(crate) use logging::init_logging;
#[cfg(test)]
pub(crate) use made::made_metrics;
pub(crate) use measured::MeasuredBy;
pub use metrics::Metrics;
