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
    /// The statement or its data will never be accepted.
    #[error("the database refused it: {0}")]
    Refused(String),
}

const DUPLICATE_KEY: u16 = 1062;
const LOCK_WAIT_TIMEOUT: u16 = 1205;
const DEADLOCK: u16 = 1213;
/// MariaDB, `innodb_snapshot_isolation`: the row has changed since it was read.
const RECORD_CHANGED: u16 = 1020;
/// Packet too large: a server's setting, not a fault of the data.
const PACKET_TOO_LARGE: u16 = 1153;

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let text = error.to_string();
        let Some(refusal) = error.as_database_error().and_then(|e| e.try_downcast_ref::<MySqlDatabaseError>()) else {
            return match error {
                sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::Encode(_) => {
                    Self::Refused(text)
                }
                _ => Self::Unavailable(text),
            };
        };
        match (refusal.number(), refusal.code()) {
            (DEADLOCK | LOCK_WAIT_TIMEOUT | RECORD_CHANGED, _) => Self::Conflict(text),
            (DUPLICATE_KEY, _) => Self::Duplicate(text),
            (PACKET_TOO_LARGE, _) => Self::Unavailable(text),
            // SQLSTATE classes 21 to 23: cardinality, data exception, constraint; 44: check option.
            (_, Some(state)) if ["21", "22", "23", "44"].iter().any(|class| state.starts_with(class)) => {
                Self::Refused(text)
            }
            // A violated CHECK: MySQL 3819, MariaDB 4025, both without a class of their own.
            (3819 | 4025, _) => Self::Refused(text),
            _ => Self::Unavailable(text),
        }
    }
}
