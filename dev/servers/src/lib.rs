//! The one supervisor of processes for development and tests.
//!
//! It starts, awaits and stops real servers ([`Kafka`], [`Sql`], [`Redis`]) and roles of stocklock
//! ([`Role`]). Each of them is a [`Service`]: a description that says how to prepare the data,
//! which command becomes the process, and how to see that it answers. [`Running`] is a service with
//! its process.
//!
//! Nothing stays behind. A process with [`Lifetime::OfParent`] ends when its handle is dropped,
//! also in a panic. The kernel kills it when the parent dies in any other way, also by SIGKILL.
//! Only `stack up` starts processes with [`Lifetime::Detached`], and records them for `stack down`.
//!
//! All calls block. Within an async runtime, call them on a thread for blocking work.

mod identity;
mod interrupt;
mod kafka;
mod lifetime;
mod ports;
pub mod probe;
mod process;
mod programs;
mod prometheus;
mod redis;
mod registry;
mod role;
mod service;
mod sql;

pub use identity::{Identity, descendants, is_in_foreground};
pub use interrupt::{Interrupt, Patience};
pub use kafka::Kafka;
pub use lifetime::Lifetime;
pub use ports::free_address;
pub use process::Process;
pub use programs::Programs;
pub use prometheus::Prometheus;
pub use redis::Redis;
pub use registry::SchemaRegistry;
pub use role::{Role, stocklock_command};
pub use service::{Running, Service};
pub use sql::{Flavour, Sql, sql_url};
