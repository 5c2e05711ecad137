use std::{ops::ControlFlow, str::FromStr, time::Duration};

use sqlx::{
    Executor as _, MySql, MySqlConnection, MySqlPool,
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
    pool::PoolConnection,
};
use tokio::time::{error::Elapsed, timeout};

use super::StoreError;
use crate::{config, telemetry::Metrics};

/// How long a statement that stands alone, or one attempt at a transaction, may take. The server's own lock wait ends well before.
pub(super) const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);
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
                Box::pin(async move { conn.execute(&*session).await.map(drop) })
            })
            .connect_lazy_with(options);
        Ok(Self { pool, role, metrics })
    }

    /// For [`on_connection!`] and [`transaction!`].
    pub(super) async fn acquire(&self) -> Result<InUse, StoreError> {
        match self.pool.acquire().await {
            Ok(conn) => Ok(InUse { conn, is_clean: false }),
            Err(error) => Err(match StoreError::from(error) {
                StoreError::Unavailable(why) => StoreError::Unavailable(format!("{}: {why}", self.role.as_str())),
                other => other,
            }),
        }
    }

    /// For the probe, which tells why the pool has no connection.
    pub(super) fn pool(&self) -> &MySqlPool {
        &self.pool
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

/// A connection at work. Unless its work came to an end it is closed, not given to the next, when it is dropped: half a transaction
/// or half an answer may be left in it.
pub(super) struct InUse {
    conn: PoolConnection<MySql>,
    is_clean: bool,
}

impl InUse {
    pub fn conn(&mut self) -> &mut MySqlConnection {
        &mut self.conn
    }

    /// Back to the pool.
    pub fn give_back(mut self) {
        self.is_clean = true;
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if !self.is_clean {
            self.conn.close_on_drop();
        }
    }
}

/// Runs statements that need no transaction: `on_connection!(db, |conn| …)`, where the block is a future's and ends in a
/// `Result`. [`StoreError::Unavailable`] where they take longer than 30 s.
macro_rules! on_connection {
    ($database:expr, |$conn:ident| $work:expr) => {{
        let mut in_use = $database.acquire().await?;
        let worked = tokio::time::timeout($crate::store::database::STATEMENT_DEADLINE, async {
            let $conn: &mut sqlx::MySqlConnection = in_use.conn();
            $work
        });
        match worked.await {
            Ok(worked) => {
                in_use.give_back();
                worked.map_err(StoreError::from)
            }
            Err(elapsed) => Err(StoreError::Unavailable(elapsed.to_string())),
        }
    }};
}
pub(super) use on_connection;

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
            let mut in_use = match $database.acquire().await {
                Ok(in_use) => in_use,
                Err(error) => break Err(error),
            };
            let worked = tokio::time::timeout($crate::store::database::STATEMENT_DEADLINE, async {
                let $conn: &mut sqlx::MySqlConnection = in_use.conn();
                sqlx::Executor::execute(&mut *$conn, "START TRANSACTION").await?;
                $work
            });
            let worked = worked.await;
            if let std::ops::ControlFlow::Break(done) = attempts.end(in_use, worked).await {
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

    /// Commits or rolls back. `Continue` means that the attempt was in conflict and another is due.
    pub async fn end<T>(
        &mut self,
        in_use: InUse,
        worked: Result<Result<T, StoreError>, Elapsed>,
    ) -> ControlFlow<Result<T, StoreError>> {
        match worked {
            Ok(Ok(value)) => ControlFlow::Break(commit(in_use).await.map(|()| value)),
            Ok(Err(error)) => {
                roll_back(in_use).await;
                self.made += 1;
                match error {
                    StoreError::Conflict(why) if self.made < MAX_ATTEMPTS => {
                        self.wait(&why).await;
                        ControlFlow::Continue(())
                    }
                    error => ControlFlow::Break(Err(error)),
                }
            }
            Err(elapsed) => ControlFlow::Break(Err(StoreError::Unavailable(elapsed.to_string()))),
        }
    }

    async fn wait(&self, why: &str) {
        self.database.metrics.retries.with_label_values(&[self.database.role.as_str()]).inc();
        tracing::debug!(transaction = self.name, attempts = self.made, why, "conflict, running again");
        let bound = RETRY_DELAY.saturating_mul(1 << self.made.min(7));
        tokio::time::sleep(bound.mul_f64(fastrand::f64())).await;
    }
}

async fn commit(mut in_use: InUse) -> Result<(), StoreError> {
    match timeout(COMMIT_DEADLINE, in_use.conn().execute("COMMIT")).await {
        Ok(Ok(_)) => {
            in_use.give_back();
            Ok(())
        }
        Ok(Err(error)) => Err(StoreError::CommitUnknown(error.to_string())),
        Err(elapsed) => Err(StoreError::CommitUnknown(elapsed.to_string())),
    }
}

async fn roll_back(mut in_use: InUse) {
    let rolled_back = timeout(COMMIT_DEADLINE, in_use.conn().execute("ROLLBACK")).await;
    if matches!(rolled_back, Ok(Ok(_))) {
        in_use.give_back();
    }
}
