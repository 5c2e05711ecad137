//! Why a store did not do its work.
//!
//! The text of each error contains the text of its source, since most logs print one error alone.
//! [`crate::error_text::with_causes`] prints a chain and repeats no text.

use std::{collections::BTreeSet, time::Duration};

use humantime::format_duration;
use sqlx::{migrate::MigrateError, mysql::MySqlDatabaseError};

use super::tls_advice::Advised;
use crate::domain::{Invalid, OrderId, ProductId};

/// Why a store did not do its work. The variant says what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another transaction was in the way. The caller runs its whole transaction again.
    #[error("in conflict with another transaction: {0}")]
    Conflict(#[from] Conflict),
    /// A row with this primary key exists already. The caller reads it back.
    #[error("the primary key exists already: {0}")]
    Duplicate(#[source] sqlx::Error),
    /// The server cannot be used at present. Nothing was committed. The caller waits and tries
    /// again.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[from] Outage),
    /// COMMIT was sent, and no answer was received. The caller reads the rows back.
    #[error("the outcome of the commit is unknown: {0}")]
    CommitUnknown(#[source] Outage),
    /// The locks that the transaction relied on were lost before its commit. It was rolled back.
    #[error("the locks were lost before the commit")]
    LocksLost,
    /// The server will never accept the data that the statement wrote.
    #[error("the database refused the data: {0}")]
    Refused(#[source] sqlx::Error),
    /// A stored value cannot be used until a person corrects it. It concerns one order alone.
    #[error("a stored value is corrupt: {0}")]
    Corrupt(#[from] Corrupt),
    /// The parameter of a statement cannot be written as JSON.
    #[error("a parameter cannot be encoded as JSON: {0}")]
    Unencodable(#[source] serde_json::Error),
    /// The version or a setting of the server does not allow any work. `setup` finds it.
    #[error("the server cannot be used: {0}")]
    Unsupported(&'static str),
    /// A migration failed for a reason that no repetition removes.
    #[error("the migration failed: {0}")]
    Migration(#[source] MigrateError),
}

/// How another transaction was in the way.
#[derive(Debug, thiserror::Error)]
pub enum Conflict {
    /// A deadlock, a lock wait that took too long, or a row that changed after it was read.
    #[error(transparent)]
    Server(#[from] sqlx::Error),
    /// A statement wrote fewer or more rows than the transaction had planned.
    #[error("{statement}: {expected} rows expected, {written} written")]
    RowCount { statement: &'static str, expected: usize, written: u64 },
    /// The primary key of an outcome exists already.
    #[error("another worker decided one of these orders: {0}")]
    Decided(#[source] sqlx::Error),
    /// The primary key of a product exists already.
    #[error("another import added one of these products: {0}")]
    Imported(#[source] sqlx::Error),
    /// The primary key of a request to adjust stock exists already.
    #[error("a rival has done one of these requests: {0}")]
    Adjusted(#[source] sqlx::Error),
    /// The primary key of an order exists already.
    #[error("another ingest placed one of these orders: {0}")]
    Placed(#[source] sqlx::Error),
    /// The primary key of an idempotency key exists already.
    #[error("another ingest bound one of these idempotency keys: {0}")]
    Bound(#[source] sqlx::Error),
    /// An earlier outcome of the order may have been purged, so it must not be decided.
    #[error("an earlier outcome of order {0} may have been purged")]
    OutcomePurged(OrderId),
    /// Another transaction wrote products after this one had read them.
    #[error("{stale} of {written} products have another version than the one read")]
    StaleProducts { stale: u64, written: usize },
}

/// Why the server cannot be used at present.
#[derive(Debug, thiserror::Error)]
pub enum Outage {
    /// An error of the server or of the connection. All errors that are not known to be about the
    /// data are among these.
    #[error("{}", Advised(.0))]
    Server(#[from] sqlx::Error),
    #[error("{server}: {source}")]
    NoSession { server: String, source: NoSession },
    #[error("{server}: no answer within {}", format_duration(*.limit))]
    NoAnswer { server: String, limit: Duration },
    #[error("not done by the caller's deadline")]
    DeadlinePassed,
    /// Another `setup` migrates this database.
    #[error("another setup has been migrating for {}", format_duration(*.0))]
    OtherSetup(Duration),
    /// A migration found a table busy at each of its attempts.
    #[error("a table was busy at each of {attempts} attempts: {source}")]
    BusyTable { attempts: u32, source: Conflict },
    /// Orders of several clients may need the product, so all of them wait until it is corrected.
    #[error("products.product_id is corrupt: {0}")]
    CorruptProduct(#[source] Invalid),
}

/// Why the pool has no session for the caller.
#[derive(Debug, thiserror::Error)]
pub enum NoSession {
    #[error("{}", Advised(.0))]
    Server(#[from] sqlx::Error),
    #[error("no answer within {}", format_duration(*.0))]
    NoAnswer(Duration),
    #[error("all {0} connections are in use")]
    AllInUse(u32),
    /// All places of the pool are taken by sessions that the server has to end.
    #[error("no connection can be ended: {0}")]
    NoneEnded(String),
    #[error("the pool is closed")]
    Closed,
    #[error("{STATEMENT_LOG}")]
    LogsStatements,
}

pub(super) const STATEMENT_LOG: &str =
    "binlog_format is STATEMENT, by which InnoDB cannot log READ COMMITTED: set it to ROW";

/// What is wrong with a stored value, and in which column.
#[derive(Debug, thiserror::Error)]
pub enum Corrupt {
    #[error("{column}: {source}: {text:.200}")]
    Json { column: &'static str, text: String, source: serde_json::Error },
    #[error("{column}: {source}")]
    Value { column: &'static str, source: Invalid },
    #[error("order_outcomes.outcome: {0:?} is none of COMPLETED, FAILED, RELEASED")]
    Outcome(String),
    /// A release returns units of products that the store does not have.
    #[error("order_outcomes.lines: they hold units of products that do not exist: {0:?}")]
    UnknownProducts(BTreeSet<ProductId>),
}

const DUPLICATE_KEY: u16 = 1062;
const LOCK_WAIT_TIMEOUT: u16 = 1205;
const DEADLOCK: u16 = 1213;
/// Group Replication answers a COMMIT with it: another member committed first.
const ROLLED_BACK_DURING_COMMIT: u16 = 3101;
/// MariaDB with `innodb_snapshot_isolation`: the row has changed after it was read.
const RECORD_CHANGED: u16 = 1020;
/// A column of an enumeration or of a character set refuses the value. The SQLSTATE does not say
/// so.
const DATA_TRUNCATED: u16 = 1265;
const INCORRECT_VALUE: u16 = 1366;
/// A violated CHECK in MySQL, and in MariaDB.
const CHECK_VIOLATED: u16 = 3819;
const CONSTRAINT_FAILED: u16 = 4025;
/// SQLSTATE classes of refused data: data exception, constraint, check option, and class 45.
///
/// A trigger signals class 45 (`SIGNAL SQLSTATE '45000'`) to refuse a row. A trigger that wants
/// another attempt signals another class. Class 21 is not among them: a wrong number of columns is
/// a fault of the tables, and every batch meets it.
const CLASSES_OF_DATA: [&str; 4] = ["22", "23", "44", "45"];

impl From<sqlx::Error> for StoreError {
    /// Only an error that the server raised about the data itself is [`StoreError::Refused`]. An
    /// unknown error is [`StoreError::Unavailable`], so that the data waits and is not lost.
    fn from(error: sqlx::Error) -> Self {
        let Some(raised) = raised_by_server(&error) else { return Outage::Server(error).into() };
        match (raised.number(), raised.code()) {
            (DEADLOCK | LOCK_WAIT_TIMEOUT | RECORD_CHANGED | ROLLED_BACK_DURING_COMMIT, _) => {
                Conflict::Server(error).into()
            }
            (DUPLICATE_KEY, _) => Self::Duplicate(error),
            (DATA_TRUNCATED | INCORRECT_VALUE | CHECK_VIOLATED | CONSTRAINT_FAILED, _) => {
                Self::Refused(error)
            }
            (_, Some(state)) if CLASSES_OF_DATA.iter().any(|class| state.starts_with(class)) => {
                Self::Refused(error)
            }
            _ => Outage::Server(error).into(),
        }
    }
}

impl StoreError {
    /// The fate of a COMMIT that failed. In a cluster, the server finds conflicts at the commit and
    /// answers that it rolled back. After any other error the rows may be committed.
    pub(super) fn of_commit(error: sqlx::Error) -> Self {
        match Self::from(error) {
            conflict @ Self::Conflict(_) => conflict,
            Self::Unavailable(outage) => Self::CommitUnknown(outage),
            Self::Duplicate(error) | Self::Refused(error) => Self::CommitUnknown(error.into()),
            other => other,
        }
    }

    /// Makes a duplicate key a conflict, and leaves all other errors as they are.
    pub(super) fn duplicate_as(self, conflict: fn(sqlx::Error) -> Conflict) -> Self {
        match self {
            Self::Duplicate(error) => conflict(error).into(),
            other => other,
        }
    }
}

/// The error that the server sent, if `error` is one.
pub(super) fn raised_by_server(error: &sqlx::Error) -> Option<&MySqlDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_text::with_causes;

    #[test]
    fn an_error_names_each_of_its_causes_once() {
        let source = NoSession::Server(sqlx::Error::PoolClosed);
        let server = "order_store at db:3306".to_owned();
        let no_session = StoreError::Unavailable(Outage::NoSession { server, source });
        let row_count = Conflict::RowCount { statement: "orders moved", expected: 2, written: 1 };
        let conflict = StoreError::Conflict(row_count);

        let cause = sqlx::Error::PoolClosed.to_string();
        let expected = format!("the database is unavailable: order_store at db:3306: {cause}");
        assert_eq!(no_session.to_string(), expected);
        assert_eq!(with_causes(&no_session), expected);
        assert_eq!(
            with_causes(&conflict),
            "in conflict with another transaction: orders moved: 2 rows expected, 1 written"
        );
    }

    #[test]
    fn a_commit_that_failed_for_any_cause_but_a_conflict_may_have_happened() {
        let failed = StoreError::of_commit(sqlx::Error::PoolClosed);

        assert!(matches!(failed, StoreError::CommitUnknown(Outage::Server(_))), "{failed:?}");
    }
}
