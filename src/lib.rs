pub mod domain;
pub mod wire;
pub mod config;
pub mod lifecycle;
pub mod telemetry;
pub mod store;
