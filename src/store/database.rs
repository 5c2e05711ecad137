use std::{str::FromStr, time::Duration};

use sqlx::{
    MySql, MySqlConnection, MySqlPool,
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
    pool::PoolConnection,
};
use tokio::time::timeout;

use super::StoreError;
use crate::{config, telemetry::Metrics};

/// How long one attempt's statements may take. The server's own lock wait ends well before.
const TRANSACTION_DEADLINE: Duration = Duration::from_secs(30);
const COMMIT_DEADLINE: Duration = Duration::from_secs(30);
const LOCK_WAIT_SECONDS: u64 = 5;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ATTEMPTS: u32 = 10;
const RETRY_DELAY: Duration = Duration::from_millis(2);

/// Which of the two stores a connection serves; a label in logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    OrderStore,
    StockStore,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrderStore => "order_store",
            Self::StockStore => "stock_store",
        }
    }
}

/// A pool of connections to one store, and the runner of its transactions.
#[derive(Debug, Clone)]
pub struct Database {
    pool: MySqlPool,
    role: Role,
    metrics: Metrics,
}

impl Database {
    /// Opens no connection yet. A connection's session is READ COMMITTED, UTC and strict; the server ends it when it is silent for
    /// `idle_limit` (so the locks of a process that hangs do not outlive it for long).
    pub fn open(store: &config::Store, role: Role, idle_limit: Duration, metrics: Metrics) -> Result<Self, StoreError> {
        let options = MySqlConnectOptions::from_str(store.url.expose())?.statement_cache_capacity(64);
        let session = format!(
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
             SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', \
             innodb_lock_wait_timeout = {LOCK_WAIT_SECONDS}, wait_timeout = {}",
            idle_limit.as_secs().max(2),
        );
        let pool = MySqlPoolOptions::new()
            .max_connections(store.pool_max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(idle_limit / 2)
            .test_before_acquire(false)
            .before_acquire(|conn, meta| {
                Box::pin(async move {
                    let may_be_stale = meta.idle_for > Duration::from_millis(500);
                    Ok(!may_be_stale || sqlx::Connection::ping(conn).await.is_ok())
                })
            })
            .after_connect(move |conn, _| {
                let session = session.clone();
                Box::pin(async move { sqlx::raw_sql(sqlx::AssertSqlSafe(session)).execute(conn).await.map(drop) })
            })
            .connect_lazy_with(options);
        Ok(Self { pool, role, metrics })
    }

    /// For statements that stand alone.
    pub async fn acquire(&self) -> Result<PoolConnection<MySql>, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// Whether the server answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::raw_sql("SELECT 1").execute(&mut *self.acquire().await?).await?;
        Ok(())
    }

    /// Updates the gauges of the pool's connections.
    pub fn observe_pool(&self) {
        let idle = i64::try_from(self.pool.num_idle()).unwrap_or(i64::MAX);
        let gauge = &self.metrics.pool_connections;
        gauge.with_label_values(&[self.role.as_str(), "idle"]).set(idle);
        gauge.with_label_values(&[self.role.as_str(), "used"]).set(i64::from(self.pool.size()) - idle);
    }

    /// Closes the pool; waits for connections in use.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Runs `work` in a transaction and commits it. A conflict with another transaction runs all of it again, up to
    /// 10 attempts; `work` is told the attempt's number, from 0.
    ///
    /// Fails with [`StoreError::CommitUnknown`] where the commit was not answered: it may have happened.
    pub async fn transaction<T, F>(&self, name: &'static str, work: F) -> Result<T, StoreError>
    where
        F: AsyncFn(&mut MySqlConnection, u32) -> Result<T, StoreError>,
    {
        let mut attempt = 0;
        loop {
            match self.attempt(&work, attempt).await {
                Err(StoreError::Conflict(why)) if attempt + 1 < MAX_ATTEMPTS => {
                    attempt += 1;
                    self.metrics.retries.with_label_values(&[self.role.as_str()]).inc();
                    tracing::debug!(transaction = name, attempt, why, "conflict, running again");
                    let longest = RETRY_DELAY.as_secs_f64() * f64::from(1 << attempt.min(7));
                    tokio::time::sleep(Duration::from_secs_f64(longest * fastrand::f64())).await;
                }
                done => return done,
            }
        }
    }

    async fn attempt<T, F>(&self, work: &F, attempt: u32) -> Result<T, StoreError>
    where
        F: AsyncFn(&mut MySqlConnection, u32) -> Result<T, StoreError>,
    {
        let mut conn = self.acquire().await?;
        let worked = timeout(TRANSACTION_DEADLINE, async {
            sqlx::raw_sql("START TRANSACTION").execute(&mut *conn).await?;
            work(&mut conn, attempt).await
        });
        match worked.await {
            Ok(Ok(value)) => match timeout(COMMIT_DEADLINE, sqlx::raw_sql("COMMIT").execute(&mut *conn)).await {
                Ok(Ok(_)) => Ok(value),
                Ok(Err(error)) => Err(StoreError::CommitUnknown(hang_up(conn, &error))),
                Err(elapsed) => Err(StoreError::CommitUnknown(hang_up(conn, &elapsed))),
            },
            Ok(Err(error)) => {
                let rolled_back = timeout(COMMIT_DEADLINE, sqlx::raw_sql("ROLLBACK").execute(&mut *conn)).await;
                if !matches!(rolled_back, Ok(Ok(_))) {
                    hang_up(conn, &error);
                }
                Err(error)
            }
            Err(elapsed) => Err(StoreError::Unavailable(hang_up(conn, &elapsed))),
        }
    }
}

/// Closes a connection whose state is not known, whereupon the server rolls back what it had open.
fn hang_up(conn: PoolConnection<MySql>, why: &dyn std::fmt::Display) -> String {
    drop(conn.detach());
    why.to_string()
}
