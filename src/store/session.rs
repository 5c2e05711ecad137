//! One session of a database server: how it is opened, checked and closed.

use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, MySqlConnection, Row as _,
    mysql::MySqlConnectOptions,
};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::error::NoSession;
use crate::backoff::jittered;

/// The oldest age of a session. So a server that is no longer the primary has none of ours after
/// this time. The ages differ by up to a quarter, so that not all sessions end at once.
const MAX_AGE: Duration = Duration::from_secs(60);
/// How often a session is dialled again if its server takes no writes, and how long after the last
/// time. The pauses take 1 s together; closing and dialling come on top.
const MAX_REDIALS: u32 = 4;
const REDIAL_DELAY: Duration = Duration::from_millis(250);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns 1 if the server takes writes. A demoted primary keeps its sessions, and answers their
/// reads with old rows.
const IS_WRITABLE: &str = "
    SELECT CAST(@@global.read_only AS CHAR) IN ('0', 'OFF')
       AND CAST(@@global.innodb_read_only AS CHAR) IN ('0', 'OFF')";

/// A session of the server.
#[derive(Debug)]
pub(super) struct Session {
    pub(crate) conn: MySqlConnection,
    /// The user-level lock by which any other session finds this one. `None` if the server has no
    /// such locks.
    pub(crate) lock_name: Option<String>,
    /// The pool's generation when the session was opened.
    pub(crate) generation: u64,
    pub(crate) expires_at: Instant,
    pub(crate) idle_since: Instant,
}

impl Session {
    /// Opens a session and runs `settings` in it.
    ///
    /// A server that takes no writes was perhaps the primary until a moment ago, and the address
    /// soon leads to another server. So the session is closed and dialled again, up to four times
    /// in a second or a little more. If the server still takes no writes, the session is returned
    /// all the same: it can read.
    ///
    /// Fails with [`NoSession::Server`] or [`NoSession::LogsStatements`]. (Boxed, since the
    /// compiler cannot show through the layers above that the futures of sqlx are `Send`.)
    pub(super) fn open<'a>(
        options: &'a MySqlConnectOptions,
        settings: &'a str,
        generation: u64,
    ) -> BoxFuture<'a, Result<Self, NoSession>> {
        Box::pin(async move {
            let mut redials = 0;
            let conn = loop {
                let mut conn = dial(options, settings).await?;
                if redials == MAX_REDIALS || takes_writes(&mut conn).await? {
                    break conn;
                }
                redials += 1;
                tracing::debug!(redials, "the server takes no writes, dialling again");
                close(conn).await;
                sleep(REDIAL_DELAY).await;
            };
            Ok(Self::name(conn, generation).await)
        })
    }

    /// Takes the user-level lock by which others find the session.
    async fn name(mut conn: MySqlConnection, generation: u64) -> Self {
        let name = format!("stocklock:{}", Uuid::now_v7().simple());
        let taken = sqlx::query_scalar::<_, Option<i64>>("SELECT GET_LOCK(?, 0)")
            .bind(name.clone())
            .fetch_one(&mut conn)
            .await;
        let now = Instant::now();
        Self {
            conn,
            lock_name: taken.is_ok_and(|taken| taken == Some(1)).then_some(name),
            generation,
            expires_at: now + jittered(MAX_AGE, 0.75..1.0),
            idle_since: now,
        }
    }

    pub(super) fn is_writable(&mut self) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
        is_writable(&mut self.conn)
    }

    /// Tells the server that the session ends. Waits for it for 1 s at most.
    pub(super) async fn close(self) {
        close(self.conn).await;
    }
}

/// `host:port/database`, or `socket/database`, without the user.
pub(super) fn address(options: &MySqlConnectOptions) -> String {
    let server = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    format!("{server}/{}", options.get_database().unwrap_or_default())
}

async fn dial(options: &MySqlConnectOptions, settings: &str) -> Result<MySqlConnection, NoSession> {
    let mut conn = options.connect().await?;
    let setting: BoxFuture<'_, _> = conn.execute(settings);
    setting.await?;
    if logs_statements(&mut conn).await? {
        return Err(NoSession::LogsStatements);
    }
    Ok(conn)
}

async fn close(conn: MySqlConnection) {
    let _closed = timeout(CLOSE_TIMEOUT, conn.close()).await;
}

fn is_writable(conn: &mut MySqlConnection) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
    Box::pin(async move {
        let row = conn.fetch_one(IS_WRITABLE).await?;
        Ok(row.try_get_unchecked::<i64, _>(0)? == 1)
    })
}

/// Whether a fresh session can be used. A server that cannot answer the question is assumed to
/// take writes; the first transaction tells.
///
/// Fails only if the connection fails.
async fn takes_writes(conn: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
    match is_writable(conn).await {
        Err(sqlx::Error::Database(_)) => Ok(true),
        answered => answered,
    }
}

/// Whether the server writes our changes to its binary log as statements, which `InnoDB` refuses
/// under READ COMMITTED.
///
/// Fails only if the connection fails.
pub(super) async fn logs_statements(conn: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
    let sql = "SELECT @@log_bin AND @@binlog_format = 'STATEMENT'";
    match sqlx::query_scalar::<_, i64>(sql).fetch_one(conn).await {
        Ok(logs) => Ok(logs == 1),
        // A server that has the format ROW alone has no such variable.
        Err(sqlx::Error::Database(_)) => Ok(false),
        Err(error) => Err(error),
    }
}
