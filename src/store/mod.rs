//! All SQL, and the one runner of transactions. MySQL and MariaDB get the same statements.
//!
//! A batch travels as one JSON parameter that `JSON_TABLE` turns into rows: one prepared statement whatever the batch's size.
//! The tables it joins are always read by their primary key: left to itself, MariaDB scans, and locks, all of a small table.

mod bench;
mod charsets;
mod database;
mod ender;
mod error;
mod in_use;
mod limits;
mod migrate;
mod orders;
mod outbox;
mod outcomes;
mod pending;
mod probe;
mod products;
mod releases;
mod retention;
mod rows;
mod sessions;
mod statuses;
mod stock;
#[cfg(test)]
pub(crate) mod tables;
mod verify;

pub(crate) use bench::SiblingDatabase;
pub use database::{Database, Role};
pub use error::StoreError;
pub(crate) use migrate::{migrate_order_store, migrate_stock_store};
pub use orders::{NewOrder, OrderStore, StoredOrder};
pub(crate) use probe::Work;
pub(crate) use products::{ImportSummary, Product};
pub use releases::OwedRelease;
pub(crate) use releases::Schedule;
pub use retention::Purge;
pub(crate) use statuses::Applied;
pub use stock::{Guard, StockStore};
pub use verify::StockSnapshot;
pub(crate) use verify::{Found, OrderRow};
