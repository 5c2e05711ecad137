//! The order store and the stock store: all SQL, and the one runner of transactions. MySQL and
//! MariaDB get the same statements.
//!
//! | file | what it does |
//! | --- | --- |
//! | `database`, `sessions`, `session`, `in_use`, `ender`, `limits` | sessions of a server |
//! | `transaction` | runs a transaction: named, measured, repeated after a conflict |
//! | `error`, `tls_advice` | what a failure means to the caller, and to a person |
//! | `rows` | domain values ↔ columns and parameters |
//! | `placement`, `place`, `idempotency` | new orders, and repeated requests |
//! | `orders`, `outbox`, `pending`, `releases`, `holds`, `announcements` | the order store |
//! | `changes`, `statuses` | changes of orders that are in the order store |
//! | `stock`, `outcomes`, `products` | the stock store |
//! | `adjust`, `movements` | changes of stock that no order makes |
//! | `levels` | the stock as it is published, and notes of products to publish |
//! | `retention`, `verify`, `probe` | both stores: old rows, invariants, readiness |
//! | `migrate`, `charsets` | `stocklock setup` |
//! | `look` | `stocklock doctor`: the server, its settings, tables and rights |
//!
//! A batch travels as one JSON parameter, which `JSON_TABLE` turns into rows. So there is one
//! prepared statement for batches of all sizes. Its rows are joined to a table by the table's
//! primary key, as hints demand: without them, MariaDB scans, and locks, all of a small table.

mod adjust;
mod announcements;
mod bench;
mod changes;
mod charsets;
mod database;
mod deadline;
mod ender;
mod error;
mod holds;
mod idempotency;
mod in_use;
mod levels;
mod limits;
mod look;
mod migrate;
mod movements;
mod orders;
mod outbox;
mod outcomes;
mod pending;
mod place;
mod placement;
mod probe;
mod products;
mod releases;
mod requests;
mod retention;
mod rows;
mod session;
mod sessions;
mod statuses;
mod stock;
#[cfg(test)]
pub(crate) mod tables;
mod tls_advice;
mod transaction;
mod verify;

pub(crate) use adjust::Adjusted;
pub use changes::Change;
pub(crate) use changes::ChangeResult;
pub use changes::Changed;
pub use database::Database;
pub use database::StoreName;
pub use error::StoreError;
pub use holds::DueHold;
pub use idempotency::{IdempotencyKey, KeyedRequest};
pub(crate) use levels::LevelNote;
pub(crate) use look::StoreLook;
pub(crate) use migrate::{migrate_order_store, migrate_stock_store};
pub(crate) use movements::StoredMovement;
pub use orders::OrderStore;
pub use orders::OrderSummary;
pub use orders::StoredOrder;
pub(crate) use outbox::OutboxGroup;
pub use outbox::PublishedGroup;
pub use pending::UnscannedOrder;
pub use placement::Identity;
pub(crate) use placement::leaders;
pub use placement::{NewOrder, PlaceTerms, Placed, Placement};
pub(crate) use probe::StoreUse;
pub(crate) use products::{ImportSummary, Product, Restocked, VersionedProduct};
pub use releases::OwedRelease;
pub(crate) use releases::{ClaimedRelease, ReleaseSchedule};
pub(crate) use requests::RequestTimes;
pub use retention::Purged;
pub(crate) use statuses::Applied;
pub use stock::Guard;
pub use stock::StockStore;
pub use verify::IdRange;
pub use verify::StockSnapshot;
pub(crate) use verify::{
    CorruptOutcome, LateAnnouncement, OrderContent, OrderPage, OutcomeFault, OutcomePage,
    RepeatedAdjustment, SilentTransactions,
};
