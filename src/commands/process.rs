//! What every command that opens a store or a broker needs.

use std::time::Duration;

use anyhow::Context as _;

use crate::{
    config::Config,
    store::{Database, OrderStore, Role, StockStore},
    telemetry::Metrics,
};

/// How long a server keeps a silent session of a client that holds no locks.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

pub fn metrics() -> anyhow::Result<Metrics> {
    Metrics::new().context("metrics")
}

pub fn open_order_store(config: &Config, metrics: &Metrics) -> anyhow::Result<OrderStore> {
    let database = Database::open(&config.order_store, Role::OrderStore, IDLE_LIMIT, metrics.clone());
    Ok(OrderStore::new(database.context("order_store.url")?))
}

/// A session that is silent for longer than the lock TTL is ended by the server, and its row locks with it.
pub fn open_stock_store(config: &Config, metrics: &Metrics) -> anyhow::Result<StockStore> {
    let database = Database::open(&config.stock_store, Role::StockStore, config.lock.ttl, metrics.clone());
    Ok(StockStore::new(database.context("stock_store.url")?, metrics.clone(), config.retention.horizon))
}
