use std::time::Duration;

use super::{
    StoreError, in_use::InUse, limits::Limits, sessions::Sessions, transaction::TransactionName,
};
use crate::{config, telemetry::Metrics};

/// The longest time for the statements of one [`on_connection!`].
pub(super) const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);

/// One of the two stores. Its name is a label in logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreName {
    OrderStore,
    StockStore,
}

impl StoreName {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::OrderStore => "order_store",
            Self::StockStore => "stock_store",
        }
    }
}

/// The connections of a process to one store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database {
    sessions: Sessions,
    store: StoreName,
    metrics: Metrics,
}

impl Database {
    /// Makes a pool that has no connection yet. A session is READ COMMITTED, UTC and strict,
    /// whatever the server's defaults are.
    ///
    /// No session keeps a row locked for longer than `lock_limit`, which counts in whole seconds
    /// and as 2 s at least. The server ends a session that is silent for as long. The caller gives
    /// up an attempt at a transaction that takes longer, and tells the server to end its session.
    ///
    /// Fails with [`StoreError::Unavailable`] if the URL cannot be parsed.
    pub fn open(
        config: &config::StoreConfig,
        store: StoreName,
        lock_limit: Duration,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        Ok(Self { sessions: Sessions::new(config, store.as_str(), lock_limit)?, store, metrics })
    }

    /// A session for the caller alone. [`on_connection!`] and `transaction!` bound the work in it.
    ///
    /// Fails with [`StoreError::Unavailable`] within 5 s.
    pub(super) async fn acquire(&self) -> Result<InUse, StoreError> {
        self.sessions.acquire().await
    }

    pub(super) fn limits(&self) -> Limits {
        self.sessions.limits()
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Updates the gauges of the pool's connections.
    pub(crate) fn observe_pool(&self) {
        let count = self.sessions.count();
        let gauge = &self.metrics.pool_connections;
        for (state, sessions) in [("idle", count.idle), ("used", count.used)] {
            gauge
                .with_label_values(&[self.store.as_str(), state])
                .set(i64::try_from(sessions).unwrap_or(i64::MAX));
        }
    }

    /// Counts one more attempt at a transaction.
    pub(super) fn count_retry(&self) {
        self.metrics.retries.with_label_values(&[self.store.as_str()]).inc();
    }

    /// Records how long a transaction took.
    pub(super) fn observe_transaction(&self, name: TransactionName, took: Duration) {
        let histogram = &self.metrics.transaction_seconds;
        histogram.with_label_values(&[name.as_str()]).observe(took.as_secs_f64());
    }

    /// Creates the histograms of these transactions at 0, so that `rate()` sees the first one.
    pub(super) fn begin_transactions(&self, names: &[TransactionName]) {
        for name in names {
            self.metrics.transaction_seconds.with_label_values(&[name.as_str()]);
        }
    }

    /// Closes the pool. Waits up to 5 s for connections that are in use.
    pub(crate) async fn close(&self) {
        self.sessions.close().await;
    }
}

/// Runs statements that need no transaction: `on_connection!(db, |conn| …)`. The block is the body
/// of a future and ends in a `Result`.
///
/// Fails with [`StoreError::Unavailable`] if there is no connection within 5 s, or if the
/// statements take longer than 30 s. Other errors are those of the block.
macro_rules! on_connection {
    ($database:expr, |$conn:ident| $work:expr) => {{
        let limit = $crate::store::database::STATEMENT_DEADLINE;
        let mut in_use = $database.acquire().await?;
        let worked = tokio::time::timeout(limit, async {
            let $conn: &mut sqlx::MySqlConnection = in_use.conn();
            $work
        });
        match worked.await {
            Ok(worked) => in_use.end(worked.map_err(StoreError::from)),
            Err(_) => Err(StoreError::Unavailable(in_use.give_up(limit))),
        }
    }};
}
pub(super) use on_connection;
