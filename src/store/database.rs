use std::{ops::ControlFlow, str::FromStr, time::Duration};

use sqlx::{
    MySql, MySqlPool,
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
    pool::PoolConnection,
};
use tokio::time::{error::Elapsed, timeout};

use super::StoreError;
use crate::{config, telemetry::Metrics};

/// How long one attempt's statements may take. The server's own lock wait ends well before.
pub(super) const TRANSACTION_DEADLINE: Duration = Duration::from_secs(30);
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
        self.pool.acquire().await.map_err(|error| match StoreError::from(error) {
            StoreError::Unavailable(why) => StoreError::Unavailable(format!("{}: {why}", self.role.as_str())),
            other => other,
        })
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

    /// For [`transaction!`], which is how transactions are run.
    pub(super) fn attempts(&self, name: &'static str) -> Attempts<'_> {
        Attempts { database: self, name, made: 0 }
    }
}

/// Runs a block in a transaction and commits it: `transaction!(db, "name", |conn, attempt| { …; Ok(value) })`.
///
/// A conflict with another transaction runs the block again, up to 10 attempts, numbered from 0. Is
/// [`StoreError::CommitUnknown`] where the commit was not answered: it may have happened. (A macro, since a future that
/// borrows from an async closure cannot be shown to be `Send`.)
macro_rules! transaction {
    ($database:expr, $name:literal, |$conn:ident, $attempt:pat_param| $work:expr) => {{
        let mut attempts = $database.attempts($name);
        loop {
            let $attempt = attempts.made();
            let mut open = match attempts.begin().await {
                Ok(open) => open,
                Err(error) => break Err(error),
            };
            let worked = tokio::time::timeout($crate::store::database::TRANSACTION_DEADLINE, async {
                let $conn: &mut sqlx::MySqlConnection = &mut open;
                sqlx::raw_sql("START TRANSACTION").execute(&mut *$conn).await?;
                $work
            });
            let worked = worked.await;
            if let std::ops::ControlFlow::Break(done) = attempts.end(open, worked).await {
                break done;
            }
        }
    }};
}
pub(super) use transaction;

/// The attempts at one transaction.
pub(super) struct Attempts<'a> {
    database: &'a Database,
    name: &'static str,
    made: u32,
}

impl Attempts<'_> {
    pub fn made(&self) -> u32 {
        self.made
    }

    pub async fn begin(&self) -> Result<PoolConnection<MySql>, StoreError> {
        self.database.acquire().await
    }

    /// Commits or rolls back. `Continue` means that the attempt was in conflict and another is due.
    pub async fn end<T>(
        &mut self,
        conn: PoolConnection<MySql>,
        worked: Result<Result<T, StoreError>, Elapsed>,
    ) -> ControlFlow<Result<T, StoreError>> {
        match worked {
            Ok(Ok(value)) => ControlFlow::Break(commit(conn).await.map(|()| value)),
            Ok(Err(error)) => {
                roll_back(conn).await;
                self.made += 1;
                match error {
                    StoreError::Conflict(why) if self.made < MAX_ATTEMPTS => {
                        self.wait(&why).await;
                        ControlFlow::Continue(())
                    }
                    error => ControlFlow::Break(Err(error)),
                }
            }
            Err(elapsed) => ControlFlow::Break(Err(StoreError::Unavailable(hang_up(conn, &elapsed)))),
        }
    }

    async fn wait(&self, why: &str) {
        self.database.metrics.retries.with_label_values(&[self.database.role.as_str()]).inc();
        tracing::debug!(transaction = self.name, attempts = self.made, why, "conflict, running again");
        let bound = RETRY_DELAY.saturating_mul(1 << self.made.min(7));
        tokio::time::sleep(bound.mul_f64(fastrand::f64())).await;
    }
}

async fn commit(mut conn: PoolConnection<MySql>) -> Result<(), StoreError> {
    match timeout(COMMIT_DEADLINE, sqlx::raw_sql("COMMIT").execute(&mut *conn)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(StoreError::CommitUnknown(hang_up(conn, &error))),
        Err(elapsed) => Err(StoreError::CommitUnknown(hang_up(conn, &elapsed))),
    }
}

async fn roll_back(mut conn: PoolConnection<MySql>) {
    let rolled_back = timeout(COMMIT_DEADLINE, sqlx::raw_sql("ROLLBACK").execute(&mut *conn)).await;
    if !matches!(rolled_back, Ok(Ok(_))) {
        hang_up(conn, &"the rollback failed");
    }
}

/// Closes a connection whose state is not known, whereupon the server rolls back what it had open.
fn hang_up(conn: PoolConnection<MySql>, why: &dyn std::fmt::Display) -> String {
    drop(conn.detach());
    why.to_string()
}
