//! The sessions of a process at one database server: bounded in number, in age and in trust.

use std::{
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, MySqlConnection, Row as _,
    mysql::MySqlConnectOptions,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use url::Url;
use uuid::Uuid;

use super::{StoreError, ender::Ender, in_use::InUse, limits::Limits};
use crate::config;

/// The longest wait for a session that is free, checked or opened.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A session that was idle for longer is checked before it is used.
const CHECK_AFTER: Duration = Duration::from_millis(500);
/// The oldest that a session gets: a server that is no longer the primary keeps none of ours for
/// longer.
const MAX_AGE: Duration = Duration::from_secs(60);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// 1 where the server takes writes. A primary that was demoted keeps its sessions, and answers
/// their reads with old rows.
const IS_WRITABLE: &str = "
    SELECT CAST(@@global.read_only AS CHAR) IN ('0', 'OFF') AND CAST(@@global.innodb_read_only AS CHAR) IN ('0', 'OFF')";

/// The sessions of one store. At most `pool_max` exist at any time, the one that ends others among
/// them.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    options: MySqlConnectOptions,
    /// The role of the store and its server's address, for errors.
    pub(crate) name: String,
    pub(crate) limits: Limits,
    begin: String,
    size: u32,
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    pub(crate) ending: mpsc::UnboundedSender<Ending>,
    /// Why sessions cannot be ended at present; sent again with each attempt.
    failure: watch::Sender<Option<Failure>>,
    /// Has the next attempt made at once.
    pub(crate) hurry: Notify,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Session>,
    /// Rises with each distrust. Sessions of an older generation are not used again.
    generation: u64,
}

/// A session of the server.
#[derive(Debug)]
pub(super) struct Session {
    pub(crate) conn: MySqlConnection,
    /// The user-level lock by which any other session finds this one; `None` where the server has
    /// no such locks.
    pub(crate) name: Option<String>,
    generation: u64,
    pub(crate) expires_at: Instant,
    idle_since: Instant,
}

/// A session that the server has to end. Its place stays taken until then.
#[derive(Debug)]
pub(super) struct Ending {
    pub(crate) session: Session,
    _permit: OwnedSemaphorePermit,
}

impl Sessions {
    /// Opens none yet. Fails where the URL cannot be read.
    pub(super) fn new(
        store: &config::StoreConfig,
        role: &str,
        lock_limit: Duration,
    ) -> Result<Self, StoreError> {
        let options =
            MySqlConnectOptions::from_str(store.url.expose())?.statement_cache_capacity(64);
        let limits = Limits::within(lock_limit);
        let size = store.pool_max.saturating_sub(1).max(1);
        let (ending, received) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            options,
            name: format!("{role} at {}", address(&store.url)),
            limits,
            begin: limits.session(),
            size,
            permits: Arc::new(Semaphore::new(size as usize)),
            state: Mutex::default(),
            ending,
            failure: watch::Sender::default(),
            hurry: Notify::default(),
        });
        tokio::spawn(Ender::new(received).run(Arc::downgrade(&shared)));
        Ok(Self { shared })
    }

    pub(super) fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// A session that works: an idle one, or a new one. Fails within 5 s, and says which server it
    /// is about.
    pub(super) async fn acquire(&self) -> Result<InUse, StoreError> {
        let shared = &self.shared;
        shared
            .acquire()
            .await
            .map_err(|error| StoreError::Unavailable(format!("{}: {error}", shared.name)))
    }

    /// How many sessions are idle, and how many are not.
    pub(super) fn count(&self) -> (usize, usize) {
        let idle = self.shared.state().idle.len();
        (idle, (self.shared.size as usize).saturating_sub(self.shared.permits.available_permits()))
    }

    /// Whether none is free.
    pub(super) fn are_in_use(&self) -> bool {
        self.shared.permits.available_permits() == 0
    }

    pub(super) fn are_closed(&self) -> bool {
        self.shared.permits.is_closed()
    }

    pub(super) fn options(&self) -> &MySqlConnectOptions {
        &self.shared.options
    }

    /// A session beside the pool.
    pub(super) async fn dial_plainly(&self) -> Result<MySqlConnection, sqlx::Error> {
        self.shared.dial_plainly().await
    }

    /// Closes all; waits up to 5 s for those that are in use.
    pub(super) async fn close(&self) {
        let _still_in_use =
            timeout(CLOSE_TIMEOUT, self.shared.permits.acquire_many(self.shared.size)).await;
        self.shared.permits.close();
        let idle = std::mem::take(&mut self.shared.state().idle);
        futures::future::join_all(idle.into_iter().map(Session::close)).await;
    }
}

/// An attempt at ending sessions that failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(crate) why: String,
    /// How many are still to be ended.
    pub(crate) sessions: usize,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum NoSession {
    #[error("{0}")]
    Refused(#[from] sqlx::Error),
    #[error("no answer within {}", humantime::format_duration(ACQUIRE_TIMEOUT))]
    Silent,
    #[error("all {0} connections are in use")]
    Busy(u32),
    #[error("no connection can be ended: {0}")]
    Stuck(String),
    #[error("the pool is closed")]
    Closed,
    #[error("binlog_format is STATEMENT, by which InnoDB cannot log READ COMMITTED: set it to ROW")]
    LogsStatements,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn acquire(self: &Arc<Self>) -> Result<InUse, NoSession> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let permit = self.permit(deadline).await?;
        while let Some(mut session) = self.pop_idle() {
            let now = Instant::now();
            if now < session.expires_at {
                if now.duration_since(session.idle_since) < CHECK_AFTER {
                    return Ok(self.in_use(session, permit));
                }
                match timeout_at(deadline, session.is_writable()).await {
                    Ok(Ok(true)) => return Ok(self.in_use(session, permit)),
                    Ok(_) => {}
                    Err(_) => {
                        self.distrust();
                        let _no_ender = self.ending.send(Ending { session, _permit: permit });
                        return Err(NoSession::Silent);
                    }
                }
            }
            self.close_aside(session);
        }
        let session = timeout_at(deadline, self.dial()).await.map_err(|_| NoSession::Silent)??;
        Ok(self.in_use(session, permit))
    }

    /// The right to have a session. Where all are to be ended, an attempt at that is made at once,
    /// and this fails with it.
    async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, NoSession> {
        let mut failure = self.failure.subscribe();
        let all_stuck = |failure: &Option<Failure>| {
            failure
                .as_ref()
                .filter(|failure| failure.sessions >= self.size as usize)
                .map(|failure| failure.why.clone())
        };
        let stuck = async {
            if all_stuck(&failure.borrow_and_update()).is_some() {
                self.hurry.notify_one();
            }
            while failure.changed().await.is_ok() {
                if let Some(why) = all_stuck(&failure.borrow_and_update()) {
                    return why;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()) => match permit {
                Ok(Ok(permit)) => Ok(permit),
                Ok(Err(_)) => Err(NoSession::Closed),
                Err(_) => Err(NoSession::Busy(self.size)),
            },
            why = stuck => Err(NoSession::Stuck(why)),
        }
    }

    fn pop_idle(&self) -> Option<Session> {
        self.state().idle.pop()
    }

    /// (Boxed, since sqlx's futures cannot be shown to be `Send` through the layers above.)
    fn dial(&self) -> BoxFuture<'_, Result<Session, NoSession>> {
        Box::pin(async move {
            let generation = self.state().generation;
            let mut conn = self.options.connect().await?;
            let beginning: BoxFuture<'_, _> = conn.execute(self.begin.as_str());
            beginning.await?;
            if logs_statements(&mut conn).await? {
                return Err(NoSession::LogsStatements);
            }
            let name = format!("stocklock:{}", Uuid::now_v7().simple());
            let named = sqlx::query_scalar::<_, Option<i64>>("SELECT GET_LOCK(?, 0)")
                .bind(name.clone())
                .fetch_one(&mut conn)
                .await;
            let now = Instant::now();
            Ok(Session {
                conn,
                name: named.is_ok_and(|got| got == Some(1)).then_some(name),
                generation,
                // Apart, so that they do not all expire at once.
                expires_at: now + MAX_AGE.mul_f64(1.0 - fastrand::f64() / 4.0),
                idle_since: now,
            })
        })
    }

    fn in_use(self: &Arc<Self>, session: Session, permit: OwnedSemaphorePermit) -> InUse {
        InUse::new(Ending { session, _permit: permit }, Arc::clone(self))
    }

    /// A session without the settings of the pool, by which others are ended.
    pub(super) async fn dial_plainly(&self) -> Result<MySqlConnection, sqlx::Error> {
        self.options.connect().await
    }

    /// Notes whether sessions can be ended at present.
    pub(super) fn note_failure(&self, failure: Option<Failure>) {
        self.failure.send_replace(failure);
    }

    /// Closes the idle sessions that nobody used for half of what the server allows.
    pub(super) fn close_unused(&self) {
        let (now, unused) = (Instant::now(), self.limits.silence / 2);
        let is_used = |session: &mut Session| {
            now < session.expires_at && now.duration_since(session.idle_since) < unused
        };
        let unused: Vec<_> =
            self.state().idle.extract_if(.., |session| !is_used(session)).collect();
        for session in unused {
            self.close_aside(session);
        }
    }

    /// Closes an idle session. Its place, where one is free, stays taken until it is closed.
    fn close_aside(&self, session: Session) {
        let place = Arc::clone(&self.permits).try_acquire_owned();
        tokio::spawn(async move {
            session.close().await;
            drop(place);
        });
    }

    /// Uses no session again that exists now: what one of them met may await the others.
    pub(super) fn distrust(&self) {
        let idle = {
            let mut state = self.state();
            state.generation += 1;
            std::mem::take(&mut state.idle)
        };
        for session in idle {
            self.close_aside(session);
        }
    }

    pub(super) fn give_back(&self, Ending { mut session, _permit: place }: Ending) {
        let now = Instant::now();
        session.idle_since = now;
        {
            let mut state = self.state();
            if session.generation == state.generation
                && now < session.expires_at
                && !self.permits.is_closed()
            {
                state.idle.push(session);
                return;
            }
        }
        tokio::spawn(async move {
            session.close().await;
            drop(place);
        });
    }
}

impl Session {
    fn is_writable(&mut self) -> BoxFuture<'_, Result<bool, sqlx::Error>> {
        Box::pin(async move {
            let row = self.conn.fetch_one(IS_WRITABLE).await?;
            Ok(row.try_get_unchecked::<i64, _>(0)? == 1)
        })
    }

    /// Says goodbye to the server, which takes no answer.
    async fn close(self) {
        let _closed = timeout(GOODBYE_TIMEOUT, self.conn.close()).await;
    }
}

/// Whether the server would write our changes to its log as statements, which `InnoDB` refuses.
pub(super) async fn logs_statements(conn: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
    let sql = "SELECT @@log_bin AND @@binlog_format = 'STATEMENT'";
    match sqlx::query_scalar::<_, i64>(sql).fetch_one(conn).await {
        Ok(logs) => Ok(logs == 1),
        // A server that knows no other format than ROW has no such variable.
        Err(sqlx::Error::Database(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn address(url: &config::SecretUrl) -> String {
    let parsed = Url::parse(url.expose()).ok();
    let address =
        parsed.and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port().unwrap_or(3306))));
    address.unwrap_or_else(|| url.to_string())
}
