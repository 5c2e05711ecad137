//! Retention: what is too old to matter is deleted, a little at a time, so that history costs the present nothing.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::{
    config,
    crash_point::crash_point,
    domain::OrderId,
    lifecycle::Shutdown,
    lock::Lease,
    store::{OrderStore, Purge, StockStore, StoreError},
    telemetry::{Component, Metrics},
};

/// Rows of a table that a turn deletes in one transaction.
const BATCH: u32 = 4_000;
/// Between turns that find nothing more to delete, or fail.
const TURN_EVERY: Duration = Duration::from_secs(60);
/// Between tries for the lease, whose holder may be dead.
const LEASED_EVERY: Duration = Duration::from_secs(10);
/// How much longer than its last turn a purge rests while it is behind, so that it takes a fifth of the time at most.
const REST: u32 = 4;

/// A store whose old rows are deleted.
#[derive(Debug, Clone)]
pub enum Kept {
    Orders(Box<OrderStore>),
    Stock(Box<StockStore>),
}

/// Deletes what is old in a store. Any number of processes may do so at once: of those at one store, one gets to work.
#[derive(Debug, Clone)]
pub struct Retention {
    pub store: Kept,
    pub ages: config::RetentionConfig,
    pub lease: Lease,
    pub metrics: Metrics,
}

impl Retention {
    /// Takes turns until a stop is requested; a turn that has begun is finished.
    pub(crate) async fn run(self, health: Component, shutdown: Shutdown) {
        let mut delay = Duration::from_secs(1);
        loop {
            // Processes do not come in step.
            let jittered = delay.mul_f64(0.5 + fastrand::f64());
            health.ready();
            tokio::select! {
                () = tokio::time::sleep(jittered) => {}
                () = shutdown.requested() => return,
            }
            let begun = Instant::now();
            delay = match self.lease.hold(self.turn(Utc::now())).await {
                Some(Ok(true)) => (begun.elapsed() * REST).min(TURN_EVERY),
                Some(Ok(false)) => TURN_EVERY,
                None => LEASED_EVERY,
                Some(Err(error)) => {
                    tracing::warn!(store = self.store.name(), %error, "nothing was purged");
                    self.metrics.retries.with_label_values(&[self.store.name()]).inc();
                    TURN_EVERY
                }
            };
        }
    }

    /// One turn: a batch of each table that has rows too old, also where another table cannot be purged. Answers whether there is
    /// more to delete.
    pub async fn turn(&self, now: DateTime<Utc>) -> Result<bool, StoreError> {
        let ages = &self.ages;
        let more = match &self.store {
            Kept::Stock(stock) => {
                let outcomes = stock.purge_outcomes(ages.horizon.forgotten_below(now), BATCH).await;
                let movements = stock.purge_movements(now - ages.movements, BATCH).await;
                self.tell("order_outcomes", outcomes?) | self.tell("stock_movements", movements?)
            }
            Kept::Orders(orders) => {
                let purged = orders.purge_orders(OrderId::first_of(now - ages.orders), BATCH).await;
                let keys = orders.purge_idempotency_keys(now - ages.idempotency_keys, BATCH).await;
                self.tell("orders", purged?) | self.tell("idempotency_keys", keys?)
            }
        };
        crash_point("retention.committed");
        Ok(more)
    }

    fn tell(&self, table: &'static str, purge: Purge) -> bool {
        let Purge::Done { rows, more } = purge else { return false };
        self.metrics.retention_deleted.with_label_values(&[table]).inc_by(rows);
        match (more, rows) {
            (true, _) => tracing::debug!(table, rows, "purged, and there is more"),
            (false, 1..) => tracing::info!(table, rows, "purged"),
            (false, 0) => {}
        }
        more
    }
}

impl Kept {
    fn name(&self) -> &'static str {
        match self {
            Self::Orders(_) => "order_store",
            Self::Stock(_) => "stock_store",
        }
    }
}
