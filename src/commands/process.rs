//! What every command that opens a store or a broker needs.

use anyhow::Context as _;

use crate::{
    config::Config,
    store::{Database, OrderStore, Role, StockStore},
    telemetry::Metrics,
};

pub fn metrics() -> anyhow::Result<Metrics> {
    Metrics::new().context("metrics")
}

/// No session keeps a row locked for longer than the lock TTL.
pub fn open_order_store(config: &Config, metrics: &Metrics) -> anyhow::Result<OrderStore> {
    let database = Database::open(&config.order_store, Role::OrderStore, config.lock.ttl, metrics.clone());
    Ok(OrderStore::new(database.context("order_store.url")?))
}

/// No session keeps a row locked for longer than the lock TTL.
pub fn open_stock_store(config: &Config, metrics: &Metrics) -> anyhow::Result<StockStore> {
    let database = Database::open(&config.stock_store, Role::StockStore, config.lock.ttl, metrics.clone());
    Ok(StockStore::new(database.context("stock_store.url")?, metrics.clone(), config.retention.horizon))
}
