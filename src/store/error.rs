use sqlx::mysql::MySqlDatabaseError;

/// A store's refusal or failure; the variant says its fate.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another transaction was in the way (deadlock, lock wait, a changed row): run the whole transaction again.
    #[error("in conflict with another transaction: {0}")]
    Conflict(String),
    /// A primary key exists already.
    #[error("exists already: {0}")]
    Duplicate(String),
    /// The server cannot be used at present: wait and try again.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// Whether the transaction was committed is not known: read it back.
    #[error("the outcome of the commit is unknown: {0}")]
    CommitUnknown(String),
    /// The locks that the transaction relied on were lost before it was committed: nothing of it holds.
    #[error("the locks were lost before the commit")]
    LocksLost,
    /// The server will never accept what was to be written, for a reason in the data.
    #[error("the database refused it: {0}")]
    Refused(String),
    /// What is stored of one of the orders asked for cannot be used, until somebody mends it. It concerns that order alone.
    #[error("what is stored is damaged: {0}")]
    Damaged(String),
}

const DUPLICATE_KEY: u16 = 1062;
const LOCK_WAIT_TIMEOUT: u16 = 1205;
const DEADLOCK: u16 = 1213;
/// Group Replication, at the commit: another member was first.
const ROLLED_BACK_DURING_COMMIT: u16 = 3101;
/// MariaDB, `innodb_snapshot_isolation`: the row has changed since it was read.
const RECORD_CHANGED: u16 = 1020;
/// Values that a column does not take, where the SQLSTATE does not say so: of an enumeration, of a character set.
const DATA_TRUNCATED: u16 = 1265;
const INCORRECT_VALUE: u16 = 1366;
/// A violated CHECK of MySQL and of MariaDB.
const CHECK_VIOLATED: u16 = 3819;
const CONSTRAINT_FAILED: u16 = 4025;
/// SQLSTATE classes: data exception, constraint, check option, and what a trigger signals (`SIGNAL SQLSTATE '45000'`) to refuse a row. A
/// trigger that wants the row to be tried again signals another class. Not class 21: rows and columns that do not match are
/// a fault of the tables, which every batch meets.
const CLASSES_OF_DATA: [&str; 4] = ["22", "23", "44", "45"];

impl From<sqlx::Error> for StoreError {
    /// Only what the server says of the data itself is a refusal. All that is not known to be one is an outage: its data waits.
    fn from(error: sqlx::Error) -> Self {
        let text = error.to_string();
        let Some(refusal) =
            error.as_database_error().and_then(|e| e.try_downcast_ref::<MySqlDatabaseError>())
        else {
            return Self::Unavailable(text);
        };
        match (refusal.number(), refusal.code()) {
            (DEADLOCK | LOCK_WAIT_TIMEOUT | RECORD_CHANGED | ROLLED_BACK_DURING_COMMIT, _) => {
                Self::Conflict(text)
            }
            (DUPLICATE_KEY, _) => Self::Duplicate(text),
            (DATA_TRUNCATED | INCORRECT_VALUE | CHECK_VIOLATED | CONSTRAINT_FAILED, _) => {
                Self::Refused(text)
            }
            (_, Some(state)) if CLASSES_OF_DATA.iter().any(|class| state.starts_with(class)) => {
                Self::Refused(text)
            }
            _ => Self::Unavailable(text),
        }
    }
}
