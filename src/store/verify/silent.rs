//! Transactions that are open, and whose session sends nothing.

use std::time::Duration;

use sqlx::{MySqlConnection, Row, mysql::MySqlDatabaseError};
use tokio::time::sleep;

use crate::{
    backoff::jittered,
    store::{OrderStore, StockStore, StoreError, database::on_connection, error::raised_by_server},
};

/// A session that holds a transaction open and sends nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SilentTransaction {
    /// The number of the session in the server.
    pub(crate) session: u64,
    pub(crate) silent_seconds: i64,
}

/// The silent transactions of a database, unless the user may not see them.
#[derive(Debug)]
pub(crate) enum SilentTransactions {
    Listed(Vec<SilentTransaction>),
    /// The user of the store lacks the privilege PROCESS.
    Forbidden,
}

/// The server does not show the sessions of other users without the privilege PROCESS.
const ACCESS_DENIED: u16 = 1227;

/// MySQL fails to list transactions while one of them runs a statement with a character of four
/// bytes or with binary parameters, whose text does not fit into the list. The same holds for the
/// sessions in `information_schema.processlist`.
const CANNOT_CONVERT: u16 = 3854;

/// How often the list is asked for again after [`CANNOT_CONVERT`], since statements end soon. The
/// server makes a new list only if nobody has read the old one for 100 ms.
const MAX_LIST_RETRIES: u32 = 60;
const LIST_RETRY_DELAY: Duration = Duration::from_millis(250);

impl OrderStore {
    /// [`StockStore::silent_transactions`] of the order store.
    pub(crate) async fn silent_transactions(
        &self,
        seconds: u32,
    ) -> Result<SilentTransactions, StoreError> {
        on_connection!(self.db, |conn| silent_transactions(conn, seconds).await)
    }
}

impl StockStore {
    /// The sessions of this database that hold a transaction open and have been silent for more
    /// than `seconds`.
    pub(crate) async fn silent_transactions(
        &self,
        seconds: u32,
    ) -> Result<SilentTransactions, StoreError> {
        on_connection!(self.db, |conn| silent_transactions(conn, seconds).await)
    }
}

/// The first statement lists the open transactions, and the second one the sessions. If a session
/// is silent for whole seconds at the second statement, it held the same transaction at the first
/// one. SHOW lists a session whatever statement runs in it.
async fn silent_transactions(
    conn: &mut MySqlConnection,
    seconds: u32,
) -> Result<SilentTransactions, sqlx::Error> {
    let Some(transactions) = open_transactions(conn).await? else {
        return Ok(SilentTransactions::Forbidden);
    };
    let mut silent = Vec::new();
    for session in sqlx::raw_sql("SHOW PROCESSLIST").fetch_all(conn).await? {
        let database: Option<String> = session.try_get_unchecked("db")?;
        let session_id = session.try_get_unchecked("Id")?;
        let silent_seconds: Option<i64> = session.try_get_unchecked("Time")?;
        let is_silent = session.try_get_unchecked::<String, _>("Command")? == "Sleep";
        let holds_one = transactions
            .iter()
            .any(|open| open.session == session_id && database.as_ref() == Some(&open.database));
        let is_too_long = |silent: &i64| is_silent && holds_one && *silent > i64::from(seconds);
        silent.extend(
            silent_seconds
                .filter(is_too_long)
                .map(|silent_seconds| SilentTransaction { session: session_id, silent_seconds }),
        );
    }
    Ok(SilentTransactions::Listed(silent))
}

/// A transaction that a session of the server holds open.
#[derive(sqlx::FromRow)]
struct OpenTransaction {
    /// The database of this connection, not of the session.
    database: String,
    session: u64,
}

/// All open transactions. `None` if the user may not see them.
async fn open_transactions(
    conn: &mut MySqlConnection,
) -> Result<Option<Vec<OpenTransaction>>, sqlx::Error> {
    let sql = "SELECT DATABASE() AS `database`, CAST(trx_mysql_thread_id AS UNSIGNED) AS session
               FROM information_schema.innodb_trx";
    let mut failures = 0;
    loop {
        let failure = match sqlx::query_as(sql).fetch_all(&mut *conn).await {
            Ok(found) => return Ok(Some(found)),
            Err(failure) => failure,
        };
        match raised_by_server(&failure).map(MySqlDatabaseError::number) {
            Some(ACCESS_DENIED) => return Ok(None),
            Some(CANNOT_CONVERT) if failures < MAX_LIST_RETRIES => failures += 1,
            _ => return Err(failure),
        }
        sleep(jittered(LIST_RETRY_DELAY, 0.5..1.0)).await;
    }
}
