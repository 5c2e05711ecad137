use std::{ops::ControlFlow, time::Duration};

use sqlx::Executor as _;
use tokio::time::{error::Elapsed, timeout};

use super::{StoreError, in_use::InUse, sessions::Sessions};
use crate::{config, telemetry::Metrics};

/// How long a statement that stands alone may take.
pub(super) const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);
const MAX_ATTEMPTS: u32 = 10;
const RETRY_DELAY: Duration = Duration::from_millis(2);

/// Which of the two stores a connection serves; a label in logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    OrderStore,
    StockStore,
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::OrderStore => "order_store",
            Self::StockStore => "stock_store",
        }
    }
}

/// A pool of connections to one store, and the runner of its transactions.
#[derive(Debug, Clone)]
pub struct Database {
    sessions: Sessions,
    role: Role,
    metrics: Metrics,
}

impl Database {
    /// Opens no connection yet. A session is READ COMMITTED, UTC and strict, whatever the server's
    /// defaults are.
    ///
    /// No session keeps a row locked for longer than `lock_limit` (2 s at least, in whole seconds).
    /// The server ends a session that is silent for as long. An attempt at a transaction that takes
    /// longer is given up, and the server is told to end its session.
    pub fn open(
        store: &config::StoreConfig,
        role: Role,
        lock_limit: Duration,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        Ok(Self { sessions: Sessions::new(store, role.as_str(), lock_limit)?, role, metrics })
    }

    /// For [`on_connection!`] and [`transaction!`].
    pub(super) async fn acquire(&self) -> Result<InUse, StoreError> {
        self.sessions.acquire().await
    }

    /// How long the work of one attempt at a transaction may take, its commit aside.
    pub(super) fn work_deadline(&self) -> Duration {
        self.sessions.limits().work
    }

    /// For the probe, which tells why there is no session.
    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Updates the gauges of the pool's connections.
    pub(crate) fn observe_pool(&self) {
        let (idle, used) = self.sessions.count();
        let gauge = &self.metrics.pool_connections;
        for (state, count) in [("idle", idle), ("used", used)] {
            gauge
                .with_label_values(&[self.role.as_str(), state])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Closes the pool; waits up to 5 s for connections in use.
    pub(crate) async fn close(&self) {
        self.sessions.close().await;
    }

    /// For [`transaction!`], which is how transactions are run.
    pub(super) fn attempts(&self, name: &'static str) -> Attempts<'_> {
        Attempts { database: self, name, made: 0 }
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
            Ok(worked) => in_use.end(worked.map_err(StoreError::from)),
            Err(_) => Err(StoreError::Unavailable(
                in_use.give_up($crate::store::database::STATEMENT_DEADLINE),
            )),
        }
    }};
}
pub(super) use on_connection;

/// Runs a block in a transaction and commits it: `transaction!(db, "name", |conn, attempt| { …;
/// Ok(value) })`.
///
/// A conflict with another transaction runs the block again, up to 10 attempts, numbered from 0. Is
/// [`StoreError::CommitUnknown`] where the commit was not answered: it may have happened. An
/// attempt takes no longer than the pool's lock limit. (A macro, since a future that borrows from
/// an async closure cannot be shown to be `Send`.)
macro_rules! transaction {
    ($database:expr, $name:literal, |$conn:ident, $attempt:pat_param| $work:expr) => {{
        let mut attempts = $database.attempts($name);
        loop {
            let $attempt = attempts.made();
            let mut in_use = match $database.acquire().await {
                Ok(in_use) => in_use,
                Err(error) => break Err(error),
            };
            let worked = tokio::time::timeout($database.work_deadline(), async {
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
    pub(super) fn made(&self) -> u32 {
        self.made
    }

    /// Commits or rolls back. `Continue` means that the attempt was in conflict and another is due.
    pub(super) async fn end<T>(
        &mut self,
        in_use: InUse,
        worked: Result<Result<T, StoreError>, Elapsed>,
    ) -> ControlFlow<Result<T, StoreError>> {
        let limits = self.database.sessions.limits();
        let error = match worked {
            Ok(Ok(value)) => match commit(in_use, limits.commit).await {
                Ok(()) => return ControlFlow::Break(Ok(value)),
                Err(error) => error,
            },
            Ok(Err(error)) => roll_back(in_use, limits.commit, error).await,
            Err(_) => StoreError::Unavailable(in_use.give_up(limits.work)),
        };
        self.made += 1;
        match error {
            StoreError::Conflict(why) if self.made < MAX_ATTEMPTS => {
                self.wait(&why).await;
                ControlFlow::Continue(())
            }
            error => ControlFlow::Break(Err(error)),
        }
    }

    async fn wait(&self, why: &str) {
        self.database.metrics.retries.with_label_values(&[self.database.role.as_str()]).inc();
        tracing::debug!(
            transaction = self.name,
            attempts = self.made,
            why,
            "conflict, running again"
        );
        let bound = RETRY_DELAY.saturating_mul(1 << self.made.min(7));
        tokio::time::sleep(bound.mul_f64(fastrand::f64())).await;
    }
}

/// A conflict where the server answers that it rolled back: in a cluster, conflicts are found at
/// the commit.
async fn commit(mut in_use: InUse, limit: Duration) -> Result<(), StoreError> {
    match timeout(limit, in_use.conn().execute("COMMIT")).await {
        Ok(Ok(_)) => in_use.end(Ok(())),
        Ok(Err(error)) => match StoreError::from(error) {
            conflict @ StoreError::Conflict(_) => Err(roll_back(in_use, limit, conflict).await),
            error => in_use.end(Err(StoreError::CommitUnknown(error.to_string()))),
        },
        Err(_) => Err(StoreError::CommitUnknown(in_use.give_up(limit))),
    }
}

/// Answers the error. A session that does not roll back in time is not used again.
async fn roll_back(mut in_use: InUse, limit: Duration, error: StoreError) -> StoreError {
    match timeout(limit, in_use.conn().execute("ROLLBACK")).await {
        Ok(Ok(_)) => in_use.end::<()>(Err(error)).err().unwrap_or(StoreError::LocksLost),
        _ => error,
    }
}
