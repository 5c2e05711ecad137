//! Retention: deletes old rows, a few at a time, so that they do not slow down the present orders.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::{
    backoff::jittered,
    config,
    crash_point::crash_point,
    domain::OrderId,
    lifecycle::Shutdown,
    lock::Lease,
    store::{OrderStore, Purged, StockStore, StoreError},
    telemetry::{Component, Metrics},
};

/// The most rows of a table that a pass deletes, in one transaction.
const MAX_ROWS_PER_PASS: u32 = 4_000;
/// The pause after a pass that left nothing to delete, or failed.
const PASS_INTERVAL: Duration = Duration::from_secs(60);
/// The pause before the next try for the lease. Its holder may be dead.
const LEASE_INTERVAL: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The pause after a pass that left rows to delete, in times of the pass. So passes take a fifth of
/// the time at most.
const PAUSE_FACTOR: u32 = 4;

/// A store, and the tables that a pass purges in it.
#[derive(Debug, Clone)]
pub enum PurgedStore {
    /// Orders and idempotency keys.
    Orders(Box<OrderStore>),
    /// Outcomes, movements and requests to adjust stock.
    Stock(Box<StockStore>),
}

/// Deletes the old rows of a store. Any number of processes may run it: one of them at a time works
/// at a store.
#[derive(Debug, Clone)]
pub struct Purger {
    pub store: PurgedStore,
    pub ages: config::RetentionConfig,
    pub lease: Lease,
    pub metrics: Metrics,
}

impl Purger {
    /// Makes passes until a stop is requested. A pass that has begun is finished.
    pub(crate) async fn run(self, health: Component, shutdown: Shutdown) {
        let mut delay = FIRST_PAUSE;
        loop {
            health.ready();
            if shutdown.sleep(jittered(delay, 0.5..1.5)).await.is_err() {
                return;
            }
            let begun = Instant::now();
            delay = match self.lease.hold(self.pass(Utc::now())).await {
                Some(Ok(true)) => {
                    self.count_pass("partial");
                    (begun.elapsed() * PAUSE_FACTOR).min(PASS_INTERVAL)
                }
                Some(Ok(false)) => {
                    self.count_pass("complete");
                    PASS_INTERVAL
                }
                None => LEASE_INTERVAL,
                Some(Err(error)) => {
                    self.count_pass("failed");
                    tracing::warn!(store = self.store.name(), %error, "purge failed");
                    self.metrics.retries.with_label_values(&[self.store.name()]).inc();
                    PASS_INTERVAL
                }
            };
        }
    }

    fn count_pass(&self, result: &'static str) {
        self.metrics.retention_passes.with_label_values(&[self.store.name(), result]).inc();
    }

    /// Deletes a batch of old rows of each table, also if the purge of another table fails. Returns
    /// whether a table has more.
    ///
    /// Fails with the first error of a purge: [`StoreError::Corrupt`] if an outcome cannot be read,
    /// or an error of a transaction.
    pub async fn pass(&self, now: DateTime<Utc>) -> Result<bool, StoreError> {
        let ages = &self.ages;
        let has_more = match &self.store {
            PurgedStore::Stock(stock) => {
                let below = ages.horizon.forgotten_below(now);
                let outcomes = stock.purge_outcomes(below, MAX_ROWS_PER_PASS).await;
                let before = now - ages.movements;
                let movements = stock.purge_movements(before, MAX_ROWS_PER_PASS).await;
                let requests = stock.purge_adjustment_requests(before, MAX_ROWS_PER_PASS).await;
                self.count("order_outcomes", outcomes?)
                    | self.count("stock_movements", movements?)
                    | self.count("adjustment_requests", requests?)
            }
            PurgedStore::Orders(orders) => {
                let below = OrderId::first_of(now - ages.orders);
                let purged = orders.purge_orders(below, MAX_ROWS_PER_PASS).await;
                let before = now - ages.idempotency_keys;
                let keys = orders.purge_idempotency_keys(before, MAX_ROWS_PER_PASS).await;
                self.count("orders", purged?) | self.count("idempotency_keys", keys?)
            }
        };
        crash_point("retention.committed");
        Ok(has_more)
    }

    /// Counts and logs the deleted rows of a table. Returns whether it has more.
    fn count(&self, table: &'static str, purged: Purged) -> bool {
        let Purged::Done { rows, has_more } = purged else { return false };
        self.metrics.retention_deleted.with_label_values(&[table]).inc_by(rows);
        match (has_more, rows) {
            (true, _) => tracing::debug!(table, rows, "old rows purged, the table has more"),
            (false, 1..) => tracing::info!(table, rows, "old rows purged"),
            (false, 0) => {}
        }
        has_more
    }
}

impl PurgedStore {
    /// The name of the store in metrics and log lines.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Orders(_) => "order_store",
            Self::Stock(_) => "stock_store",
        }
    }
}
