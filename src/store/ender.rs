//! Ends sessions in the server whose statements were given up.

use std::{sync::Weak, time::Duration};

use futures::future::BoxFuture;
use sqlx::{Connection as _, Executor as _, MySqlConnection};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::sessions::{Ending, Failure, Shared};

/// How long one pass over the sessions may take.
const PASS_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often idle sessions are looked at, and how long the ender's own stays open without work.
const REST: Duration = Duration::from_secs(1);

/// Has one session of its own, while there is something to end. It finds a session by the
/// user-level lock that it holds: its number could be another's on a server that took over.
pub(super) struct Ender {
    received: mpsc::UnboundedReceiver<Ending>,
    conn: Option<MySqlConnection>,
}

impl Ender {
    pub(super) fn new(received: mpsc::UnboundedReceiver<Ending>) -> Self {
        Self { received, conn: None }
    }

    /// Runs until the pool is dropped.
    pub(super) async fn run(mut self, shared: Weak<Shared>) {
        loop {
            match timeout(REST, self.received.recv()).await {
                Ok(Some(first)) => self.end_all(first, &shared).await,
                Ok(None) => return,
                Err(_) => {
                    if let Some(conn) = self.conn.take() {
                        let _closed = timeout(PASS_TIMEOUT, conn.close()).await;
                    }
                    let Some(shared) = shared.upgrade() else { return };
                    shared.close_unused();
                }
            }
        }
    }

    /// Returns once all that were received meanwhile are gone, too.
    async fn end_all(&mut self, first: Ending, shared: &Weak<Shared>) {
        let (mut open, mut pause) = (vec![first], FIRST_PAUSE);
        while !open.is_empty() {
            while let Ok(more) = self.received.try_recv() {
                open.push(more);
                pause = FIRST_PAUSE;
            }
            let Some(shared) = shared.upgrade() else { return };
            let failure = match timeout(PASS_TIMEOUT, self.pass(&mut open, &shared)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => {
                    Some(format!("no answer within {}", humantime::format_duration(PASS_TIMEOUT)))
                }
            };
            if failure.is_some() {
                self.conn = None;
            }
            shared.note_failure(failure.map(|why| Failure { why, sessions: open.len() }));
            shared.close_unused();
            if !open.is_empty() {
                tokio::select! {
                    Some(more) = self.received.recv() => {
                        open.push(more);
                        pause = FIRST_PAUSE;
                    }
                    () = shared.hurry.notified() => {}
                    () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                }
            }
        }
    }

    /// Kills those that are still there, and drops those that are gone.
    fn pass<'a>(
        &'a mut self,
        open: &'a mut Vec<Ending>,
        shared: &'a Shared,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let mut conn = match self.conn.take() {
                Some(conn) => conn,
                None => shared.dial_plainly().await?,
            };
            let mut number = 0;
            while let Some(ending) = open.get(number) {
                match find(&mut conn, ending).await? {
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

/// The number of a session, where this server has it.
async fn find(conn: &mut MySqlConnection, ending: &Ending) -> Result<Option<u64>, sqlx::Error> {
    let Some(name) = &ending.session.name else { return Ok(None) };
    let sql = "SELECT CAST(IS_USED_LOCK(?) AS UNSIGNED)";
    sqlx::query_scalar(sql).bind(name.clone()).fetch_one(conn).await
}

/// Has the server end a session and what runs in it. A server that refuses, for instance since the
/// session has gone meanwhile, keeps no other session from its end: the next look decides.
async fn kill(conn: &mut MySqlConnection, id: u64) -> Result<(), sqlx::Error> {
    let sql = format!("KILL CONNECTION {id}");
    let killing: BoxFuture<'_, _> = conn.execute(sql.as_str());
    match killing.await {
        Err(sqlx::Error::Database(error)) => {
            tracing::debug!(%error, "a session is not ended");
            Ok(())
        }
        done => done.map(drop),
    }
}
