//! Ends the sessions of given-up work in the server, where their statements may still run.

use std::{sync::Weak, time::Duration};

use futures::future::BoxFuture;
use sqlx::{Connection as _, Executor as _, MySqlConnection};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    sessions::{EndingFailure, PooledSession, SessionPool},
    tls_advice::Advised,
};

/// The longest time for one pass over the sessions.
const PASS_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause after a pass that left sessions. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How often unused sessions are closed. The ender's own session is closed if it has no work for as
/// long.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Ends the sessions that it receives. It has one session of its own while there is work.
///
/// It finds a session by the user-level lock that the session holds. The number of a session is no
/// proof: a server that took over may have given it to another client.
pub(super) struct Ender {
    received: mpsc::UnboundedReceiver<PooledSession>,
    conn: Option<MySqlConnection>,
}

impl Ender {
    pub(super) fn new(received: mpsc::UnboundedReceiver<PooledSession>) -> Self {
        Self { received, conn: None }
    }

    /// Runs until the pool is dropped.
    pub(super) async fn run(mut self, pool: Weak<SessionPool>) {
        loop {
            match timeout(IDLE_CHECK_INTERVAL, self.received.recv()).await {
                Ok(Some(first)) => self.end_all(first, &pool).await,
                Ok(None) => return,
                Err(_) => {
                    if let Some(conn) = self.conn.take() {
                        let _closed = timeout(PASS_TIMEOUT, conn.close()).await;
                    }
                    let Some(pool) = pool.upgrade() else { return };
                    pool.close_unused();
                }
            }
        }
    }

    /// Returns once `first` is gone, and all sessions that were received meanwhile.
    async fn end_all(&mut self, first: PooledSession, pool: &Weak<SessionPool>) {
        let (mut open, mut pause) = (vec![first], FIRST_PAUSE);
        while !open.is_empty() {
            while let Ok(more) = self.received.try_recv() {
                open.push(more);
                pause = FIRST_PAUSE;
            }
            let Some(pool) = pool.upgrade() else { return };
            let failure = match timeout(PASS_TIMEOUT, self.pass(&mut open, &pool)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Advised(&error).to_string()),
                Err(_) => {
                    Some(format!("no answer within {}", humantime::format_duration(PASS_TIMEOUT)))
                }
            };
            if failure.is_some() {
                self.conn = None;
            }
            pool.note_ending(failure.map(|why| EndingFailure { why, sessions: open.len() }));
            pool.close_unused();
            if !open.is_empty() {
                tokio::select! {
                    Some(more) = self.received.recv() => {
                        open.push(more);
                        pause = FIRST_PAUSE;
                    }
                    () = pool.end_now.notified() => {}
                    () = sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
                }
            }
        }
    }

    /// Kills the open sessions that the server still has, and drops the others.
    fn pass<'a>(
        &'a mut self,
        open: &'a mut Vec<PooledSession>,
        pool: &'a SessionPool,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let mut conn = match self.conn.take() {
                Some(conn) => conn,
                None => pool.dial_plainly().await?,
            };
            let mut number = 0;
            while let Some(pooled) = open.get(number) {
                match find(&mut conn, pooled.session.lock_name.as_deref()).await? {
                    Some(id) => {
                        kill(&mut conn, id).await?;
                        number += 1;
                    }
                    None => drop(open.swap_remove(number)),
                }
            }
            self.conn = Some(conn);
            Ok(())
        })
    }
}

/// The number of the session that holds the lock. `None` if this server has no such session.
async fn find(
    conn: &mut MySqlConnection,
    lock_name: Option<&str>,
) -> Result<Option<u64>, sqlx::Error> {
    let Some(name) = lock_name else { return Ok(None) };
    let sql = "SELECT CAST(IS_USED_LOCK(?) AS UNSIGNED)";
    sqlx::query_scalar(sql).bind(name.to_owned()).fetch_one(conn).await
}

/// Has the server end a session and the statement that runs in it.
///
/// Fails only if the connection fails. The server may refuse, for instance because the session has
/// gone meanwhile. The other sessions are ended all the same, and the next pass finds the truth.
async fn kill(conn: &mut MySqlConnection, id: u64) -> Result<(), sqlx::Error> {
    let sql = format!("KILL CONNECTION {id}");
    let killing: BoxFuture<'_, _> = conn.execute(sql.as_str());
    match killing.await {
        Err(sqlx::Error::Database(error)) => {
            tracing::debug!(session = id, %error, "the server refused to end a session");
            Ok(())
        }
        done => done.map(drop),
    }
}
