//! The sessions of a process at one database server: how many, how old, and which are still used.

use std::{
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{ConnectOptions as _, MySqlConnection, mysql::MySqlConnectOptions};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use url::Url;

use super::{
    StoreError,
    ender::Ender,
    error::{NoSession, Outage},
    in_use::InUse,
    limits::Limits,
    session::Session,
};
use crate::config;

/// The longest wait until a session is free, checked or opened.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A session that was idle for longer is checked before it is used.
const MAX_UNCHECKED_IDLE: Duration = Duration::from_millis(500);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_PREPARED_STATEMENTS: usize = 64;
const DEFAULT_PORT: u16 = 3306;

/// A handle on the sessions of one store. At most `pool_max` exist at any time. One of them ends
/// others and does no other work.
#[derive(Debug, Clone)]
pub(super) struct Sessions {
    pool: Arc<SessionPool>,
}

/// The sessions of one store. A permit is the right to have a session that works.
#[derive(Debug)]
pub(super) struct SessionPool {
    options: MySqlConnectOptions,
    /// The name of the store and the address of its server, for errors.
    pub(crate) server: String,
    pub(crate) limits: Limits,
    /// The statement that a session begins with.
    settings: String,
    size: u32,
    permits: Arc<Semaphore>,
    idle: Mutex<IdleSessions>,
    to_end: mpsc::UnboundedSender<PooledSession>,
    /// Why sessions cannot be ended at present. Each attempt sends it again.
    ending_failure: watch::Sender<Option<EndingFailure>>,
    /// Makes the [`Ender`] try again at once.
    pub(crate) end_now: Notify,
}

#[derive(Debug, Default)]
struct IdleSessions {
    sessions: Vec<Session>,
    /// Rises with each [`SessionPool::distrust`]. A session of an older generation is not used
    /// again.
    generation: u64,
}

/// A session and its place in the pool. The place is free when this is dropped.
#[derive(Debug)]
pub(super) struct PooledSession {
    pub(crate) session: Session,
    _permit: OwnedSemaphorePermit,
}

/// An attempt to end sessions that failed.
#[derive(Debug, Clone)]
pub(super) struct EndingFailure {
    pub(crate) why: String,
    /// How many sessions are still to be ended.
    pub(crate) sessions: usize,
}

/// How many sessions a pool has.
#[derive(Debug, Clone, Copy)]
pub(super) struct SessionCount {
    pub(crate) idle: usize,
    /// Sessions with a caller, and sessions that the server has to end.
    pub(crate) used: usize,
}

impl Sessions {
    /// Makes a pool without a session, and starts its [`Ender`].
    ///
    /// Fails with [`StoreError::Unavailable`] if the URL cannot be parsed.
    pub(super) fn new(
        config: &config::StoreConfig,
        store: &str,
        lock_limit: Duration,
    ) -> Result<Self, StoreError> {
        let options = MySqlConnectOptions::from_str(config.url.expose())?
            .statement_cache_capacity(MAX_PREPARED_STATEMENTS);
        let limits = Limits::within(lock_limit);
        let size = config.pool_max.saturating_sub(1).max(1);
        let (to_end, received) = mpsc::unbounded_channel();
        let pool = Arc::new(SessionPool {
            options,
            server: format!("{store} at {}", address(&config.url)),
            limits,
            settings: limits.session(),
            size,
            permits: Arc::new(Semaphore::new(size as usize)),
            idle: Mutex::default(),
            to_end,
            ending_failure: watch::Sender::default(),
            end_now: Notify::default(),
        });
        tokio::spawn(Ender::new(received).run(Arc::downgrade(&pool)));
        Ok(Self { pool })
    }

    pub(super) fn limits(&self) -> Limits {
        self.pool.limits
    }

    /// Takes an idle session, or opens one.
    ///
    /// Fails within 5 s with [`StoreError::Unavailable`], which names the server.
    pub(super) async fn acquire(&self) -> Result<InUse, StoreError> {
        let server = || self.pool.server.clone();
        let acquired = self.pool.acquire().await;
        acquired.map_err(|source| Outage::NoSession { server: server(), source }.into())
    }

    pub(super) fn count(&self) -> SessionCount {
        let idle = self.pool.idle().sessions.len();
        let free = self.pool.permits.available_permits();
        SessionCount { idle, used: (self.pool.size as usize).saturating_sub(free) }
    }

    /// Whether all places of the pool are taken.
    pub(super) fn are_all_in_use(&self) -> bool {
        self.pool.permits.available_permits() == 0
    }

    pub(super) fn are_closed(&self) -> bool {
        self.pool.permits.is_closed()
    }

    pub(super) fn options(&self) -> &MySqlConnectOptions {
        &self.pool.options
    }

    /// Opens a session beside the pool, as [`SessionPool::dial_plainly`] does.
    pub(super) async fn dial_plainly(&self) -> Result<MySqlConnection, sqlx::Error> {
        self.pool.dial_plainly().await
    }

    /// Closes all sessions. Waits up to 5 s for those that are in use.
    pub(super) async fn close(&self) {
        let _still_in_use =
            timeout(CLOSE_TIMEOUT, self.pool.permits.acquire_many(self.pool.size)).await;
        self.pool.permits.close();
        let idle = std::mem::take(&mut self.pool.idle().sessions);
        futures::future::join_all(idle.into_iter().map(Session::close)).await;
    }
}

impl SessionPool {
    fn idle(&self) -> MutexGuard<'_, IdleSessions> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn acquire(self: &Arc<Self>) -> Result<InUse, NoSession> {
        let deadline = Instant::now() + ACQUIRE_TIMEOUT;
        let no_answer = |_| NoSession::NoAnswer(ACQUIRE_TIMEOUT);
        let permit = self.permit(deadline).await?;
        while let Some(mut session) = self.pop_idle() {
            let now = Instant::now();
            if now < session.expires_at {
                if now.duration_since(session.idle_since) < MAX_UNCHECKED_IDLE {
                    return Ok(self.in_use(session, permit));
                }
                match timeout_at(deadline, session.is_writable()).await {
                    Ok(Ok(true)) => return Ok(self.in_use(session, permit)),
                    Ok(Ok(false) | Err(_)) => {}
                    Err(elapsed) => {
                        self.distrust();
                        self.end_in_server(PooledSession { session, _permit: permit });
                        return Err(no_answer(elapsed));
                    }
                }
            }
            self.close_aside(session);
        }
        let generation = self.idle().generation;
        let opening = Session::open(&self.options, &self.settings, generation);
        let session = timeout_at(deadline, opening).await.map_err(no_answer)??;
        Ok(self.in_use(session, permit))
    }

    /// Waits for a permit until `deadline`.
    ///
    /// Fails with [`NoSession::AllInUse`], [`NoSession::Closed`], or [`NoSession::NoneEnded`]. The
    /// latter comes early: if all sessions are to be ended, the ender tries at once, and this fails
    /// with its failure.
    async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, NoSession> {
        tokio::select! {
            biased;
            permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()) => {
                match permit {
                    Ok(Ok(permit)) => Ok(permit),
                    Ok(Err(_)) => Err(NoSession::Closed),
                    Err(_) => Err(NoSession::AllInUse(self.size)),
                }
            }
            why = self.none_ended() => Err(NoSession::NoneEnded(why)),
        }
    }

    /// Returns once an attempt to end all sessions of the pool has failed, with the cause.
    async fn none_ended(&self) -> String {
        let mut failure = self.ending_failure.subscribe();
        let of_all = |failure: &Option<EndingFailure>| {
            let failure = failure.as_ref()?;
            (failure.sessions >= self.size as usize).then(|| failure.why.clone())
        };
        if of_all(&failure.borrow_and_update()).is_some() {
            self.end_now.notify_one();
        }
        while failure.changed().await.is_ok() {
            if let Some(why) = of_all(&failure.borrow_and_update()) {
                return why;
            }
        }
        std::future::pending().await
    }

    fn pop_idle(&self) -> Option<Session> {
        self.idle().sessions.pop()
    }

    fn in_use(self: &Arc<Self>, session: Session, permit: OwnedSemaphorePermit) -> InUse {
        InUse::new(PooledSession { session, _permit: permit }, Arc::clone(self))
    }

    /// Opens a session beside the pool and without its settings.
    pub(super) async fn dial_plainly(&self) -> Result<MySqlConnection, sqlx::Error> {
        self.options.connect().await
    }

    /// Notes whether sessions can be ended at present.
    pub(super) fn note_ending(&self, failure: Option<EndingFailure>) {
        self.ending_failure.send_replace(failure);
    }

    /// Has the [`Ender`] end a session in the server. Its place is taken until then.
    pub(super) fn end_in_server(&self, pooled: PooledSession) {
        let _no_ender = self.to_end.send(pooled);
    }

    /// Closes the idle sessions that are too old, or idle for half of the time after which the
    /// server ends them.
    pub(super) fn close_unused(&self) {
        let (now, max_idle) = (Instant::now(), self.limits.silence / 2);
        let is_unused = |session: &mut Session| {
            now >= session.expires_at || now.duration_since(session.idle_since) >= max_idle
        };
        let unused: Vec<_> = self.idle().sessions.extract_if(.., is_unused).collect();
        for session in unused {
            self.close_aside(session);
        }
    }

    /// Closes an idle session in the background. Until then it takes a place, if one is free.
    fn close_aside(&self, session: Session) {
        let place = Arc::clone(&self.permits).try_acquire_owned();
        tokio::spawn(async move {
            session.close().await;
            drop(place);
        });
    }

    /// Uses no session again that exists now: the cause of one session's failure may lie in the
    /// server, where the others would meet it too.
    pub(super) fn distrust(&self) {
        let distrusted = {
            let mut idle = self.idle();
            idle.generation += 1;
            std::mem::take(&mut idle.sessions)
        };
        for session in distrusted {
            self.close_aside(session);
        }
    }

    /// Makes a session idle. Closes it if it is too old, or distrusted, or if the pool is closed.
    pub(super) fn put_back(&self, PooledSession { mut session, _permit: permit }: PooledSession) {
        let now = Instant::now();
        session.idle_since = now;
        {
            let mut idle = self.idle();
            if session.generation == idle.generation
                && now < session.expires_at
                && !self.permits.is_closed()
            {
                idle.sessions.push(session);
                return;
            }
        }
        tokio::spawn(async move {
            session.close().await;
            drop(permit);
        });
    }
}

/// `host:port` of a URL. A URL without a host is shown as it is, without its password.
fn address(url: &config::SecretUrl) -> String {
    let parsed = Url::parse(url.expose()).ok();
    let address = parsed.and_then(|url| {
        Some(format!("{}:{}", url.host_str()?, url.port().unwrap_or(DEFAULT_PORT)))
    });
    address.unwrap_or_else(|| url.to_string())
}
