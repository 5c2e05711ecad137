//! Whether a store can be used, tried as the roles use it and without a change of any row.

use std::time::Duration;

use sqlx::{Executor as _, mysql::MySqlDatabaseError};
use tokio::time::timeout;

use super::{Database, OrderStore, StockStore, StoreError, database::STATEMENT_DEADLINE};
use crate::telemetry::Lack;

/// How long a connection that tells a cause may take.
const DIAL_DEADLINE: Duration = Duration::from_secs(2);

/// What a role does with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Places orders, and reads and strikes out the outbox.
    Place,
    /// Moves orders, and writes the releases that are owed.
    Compensate,
    /// Reads products.
    Read,
    /// Writes products and outcomes.
    Deduct,
}

impl Work {
    /// Statements that need the rights of the work and match no row. Even so a server that is
    /// read-only, or lacks a table, a column or a right, refuses them.
    fn statements(self) -> &'static str {
        match self {
            Self::Place => {
                "INSERT INTO orders (order_id, reference, customer_id, `lines`, created_at, updated_at)
                     SELECT order_id, reference, customer_id, `lines`, created_at, updated_at FROM orders WHERE FALSE;
                 INSERT INTO outbox (order_id, kind, created_at, visible_at)
                     SELECT order_id, kind, created_at, visible_at FROM outbox WHERE FALSE;
                 UPDATE outbox SET visible_at = visible_at WHERE FALSE;
                 DELETE FROM outbox WHERE FALSE;
                 UPDATE owed_releases SET due_at = due_at WHERE FALSE"
            }
            Self::Compensate => {
                "UPDATE orders SET status = status, reason = reason, updated_at = updated_at WHERE FALSE;
                 INSERT INTO owed_releases (order_id, owed_at, due_at)
                     SELECT order_id, owed_at, due_at FROM owed_releases WHERE FALSE;
                 DELETE FROM owed_releases WHERE FALSE"
            }
            Self::Read => "SELECT product_id, name, available, version FROM products WHERE FALSE",
            Self::Deduct => {
                "UPDATE products SET available = available, version = version WHERE FALSE;
                 INSERT INTO order_outcomes (order_id, outcome, reason, `lines`, decided_at)
                     SELECT order_id, outcome, reason, `lines`, decided_at FROM order_outcomes WHERE FALSE;
                 UPDATE order_outcomes SET outcome = outcome, released_at = released_at WHERE FALSE"
            }
        }
    }
}

impl OrderStore {
    /// Tries whether the store can be used for the work; a round trip, which changes nothing.
    pub(crate) async fn probe(&self, work: &[Work]) -> Result<(), Lack> {
        probe(&self.db, work).await
    }
}

impl StockStore {
    /// Tries whether the store can be used for the work; a round trip, which changes nothing.
    pub(crate) async fn probe(&self, work: &[Work]) -> Result<(), Lack> {
        probe(self.database(), work).await
    }
}

async fn probe(db: &Database, work: &[Work]) -> Result<(), Lack> {
    // The role itself has closed it, at its stop.
    if db.sessions().are_closed() {
        return Ok(());
    }
    let tried = try_work(db, work).await;
    let Err(failed) = tried else { return Ok(()) };
    let Failure { why, is_refusal } =
        if failed.is_refusal { failed } else { cause(db, failed).await };
    Err(Lack { why: format!("{}: {why}", address(db)), is_refusal })
}

struct Failure {
    why: String,
    is_refusal: bool,
}

impl From<&sqlx::Error> for Failure {
    /// A refusal is what the server says of the user, the database, or its tables and columns:
    /// SQLSTATE classes 28 and 42.
    fn from(error: &sqlx::Error) -> Self {
        let refusal =
            error.as_database_error().and_then(|e| e.try_downcast_ref::<MySqlDatabaseError>());
        let state = refusal.and_then(MySqlDatabaseError::code).unwrap_or_default();
        Self {
            why: error.to_string(),
            is_refusal: state.starts_with("28") || state.starts_with("42"),
        }
    }
}

/// A connection on which it failed is closed: the next attempt dials anew, and finds the server
/// that took over.
async fn try_work(db: &Database, work: &[Work]) -> Result<(), Failure> {
    let unusable = |error: StoreError| Failure { why: error.to_string(), is_refusal: false };
    let mut in_use = db.acquire().await.map_err(unusable)?;
    let statements = work.iter().map(|work| work.statements()).collect::<Vec<_>>().join(";");
    let tried = timeout(STATEMENT_DEADLINE, in_use.conn().execute(&*statements)).await;
    match tried {
        Ok(Ok(_)) => in_use.end(Ok(())).map_err(unusable),
        Ok(Err(error)) => Err(Failure::from(&error)),
        Err(_) => Err(Failure { why: in_use.give_up(STATEMENT_DEADLINE), is_refusal: false }),
    }
}

/// A session of its own tells whether the server refuses the user or the database. None is opened
/// while all are in use.
async fn cause(db: &Database, pooled: Failure) -> Failure {
    if db.sessions().are_in_use() {
        return pooled;
    }
    match timeout(DIAL_DEADLINE, db.sessions().dial_plainly()).await {
        Ok(Ok(dialled)) => {
            let _closed = timeout(DIAL_DEADLINE, sqlx::Connection::close(dialled)).await;
            pooled
        }
        Ok(Err(error)) => Failure::from(&error),
        Err(_) => Failure {
            why: format!("no answer to a new connection within {DIAL_DEADLINE:?}"),
            is_refusal: false,
        },
    }
}

/// `host:port/database` as configured.
fn address(db: &Database) -> String {
    let options = db.sessions().options();
    let server = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    format!("{server}/{}", options.get_database().unwrap_or_default())
}
