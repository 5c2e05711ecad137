use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, FromRedisValue, RedisError, RedisResult, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    client::{BROKEN_AFTER, lacks_a_right},
    scripts::{Answer, EXTEND, LOCK, PEEK, UNLOCK},
};

/// The keys of a batch, and what tells them from anybody else's.
#[derive(Debug)]
pub(super) struct Claim {
    pub(crate) keys: Vec<String>,
    /// For how long its oldest order has waited.
    pub(crate) waited: Duration,
    pub(crate) token: String,
    pub(crate) ttl: Duration,
    /// What all keys begin with.
    pub(crate) prefix: Arc<str>,
    /// Who claims, in the queues.
    pub(crate) waiter: Arc<str>,
}

/// Keys of one script. A master serves nobody else while it runs, less than 3 ms.
const KEYS_AT_A_TIME: usize = 1_000;

/// How often a master that did not answer is asked to forget what it was asked before.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// How long one stays in a key's queue without asking for it again: longer than a batch usually takes, since whoever goes on with less
/// asks for the rest with the next one.
const PLACE_LASTS: Duration = Duration::from_secs(2);

/// What becomes of the places in the queues of keys that are unlocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unlock {
    /// They are given up: the keys have served.
    Done,
    /// They are kept: the keys are still wanted.
    Failed,
}

/// One of the independent Redis servers.
#[derive(Debug, Clone)]
pub(super) struct Master {
    client: Client,
    settings: ConnectionManagerConfig,
    connection: Arc<Mutex<ConnectionManager>>,
    /// Claims of which it is not known what became of them. While there are any, no further ones are made, so that they cannot
    /// pile up at a master that hangs.
    unsettled: Arc<AtomicUsize>,
    /// Since the last claim that it answered it has failed.
    is_failing: Arc<AtomicBool>,
    /// What an operator was warned of, each thing once.
    warned_of: Arc<Mutex<BTreeSet<String>>>,
}

impl Master {
    /// Connects to nothing yet.
    pub(super) fn new(client: &Client, node_timeout: Duration) -> RedisResult<Self> {
        let broken_after = BROKEN_AFTER.max(node_timeout);
        let settings = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(broken_after))
            .set_response_timeout(Some(broken_after));
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), settings.clone())?;
        let connection = Arc::new(Mutex::new(connection));
        Ok(Self {
            client: client.clone(),
            settings,
            connection,
            unsettled: Arc::default(),
            is_failing: Arc::default(),
            warned_of: Arc::default(),
        })
    }

    /// Claims all keys or none. `None` where it does not answer in time or cannot lock anything. What
    /// it grants later, or when nobody waits for it any more, is given back as soon as it can be reached.
    pub(super) async fn lock(&self, claim: &Arc<Claim>, node_timeout: Duration) -> Option<Answer> {
        if !self.is_settled() {
            return None;
        }
        let patience = Self::patience(claim, node_timeout);
        let (master, claim) = (self.clone(), Arc::clone(claim));
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let locked = timeout(patience, master.lock_chunks(&claim)).await;
            match locked.unwrap_or_else(|_| Err(io::Error::from(ErrorKind::TimedOut).into())) {
                Ok(answered) => {
                    master.works();
                    if answered == Answer::Repeated {
                        master.is_repeated();
                    }
                    let (heard, is_heard) = oneshot::channel::<()>();
                    // Where nobody waits for it any more, it comes back and ends here.
                    drop(answer.send((answered, heard)));
                    if answered == Answer::Granted && is_heard.await.is_err() {
                        master.take_back(&claim, None).await;
                    }
                }
                Err(error) => {
                    master.fails(&error);
                    let unsettled = Unsettled::new(&master.unsettled);
                    drop(answer);
                    master.take_back(&claim, Some(unsettled)).await;
                }
            }
        });
        let (answered, heard) = answered.await.ok()?;
        let _takes_nothing_back = heard.send(());
        Some(answered)
    }

    /// Whether it is known what became of every claim that was made.
    pub(super) fn is_settled(&self) -> bool {
        self.unsettled.load(Ordering::SeqCst) == 0
    }

    /// Unlocks what became nobody's, however long that takes. A connection manager may keep an error for ever, and a connection through a
    /// proxy may be silent for ever, so each failure replaces them. A proxy that still has the claim has the first attempt to unlock behind
    /// it; where the connection broke in between, the key stays until it expires.
    async fn take_back(&self, claim: &Claim, mut unsettled: Option<Unsettled<'_>>) {
        while let Err(error) = self.unlock(claim, Unlock::Failed).await {
            self.fails(&error);
            unsettled.get_or_insert_with(|| Unsettled::new(&self.unsettled));
            self.connect_anew();
            sleep(ASK_AGAIN).await;
        }
    }

    fn fails(&self, error: &RedisError) {
        // The operator was warned of a missing right.
        if !lacks_a_right(error) && !self.is_failing.swap(true, Ordering::SeqCst) {
            let master = self.client.get_connection_info().addr();
            tracing::warn!(%master, %error, "a Redis master does not lock anything");
        }
    }

    /// Warns once of each command, which the text begins with.
    fn lacks(&self, error: &str) {
        if self.is_news(error.split(':').next().unwrap_or_default()) {
            let master = self.client.get_connection_info().addr();
            tracing::warn!(%master, error, "the Redis user lacks a right; docs/locking.md lists the rights");
        }
    }

    fn is_repeated(&self) {
        if self.is_news("repeated") {
            let master = self.client.get_connection_info().addr();
            tracing::error!(%master, "two URLs of redis.urls name one Redis server, which then has one vote");
        }
    }

    fn is_news(&self, of: &str) -> bool {
        self.warned_of.lock().unwrap_or_else(PoisonError::into_inner).insert(of.to_owned())
    }

    fn works(&self) {
        if self.is_failing.swap(false, Ordering::SeqCst) {
            let master = self.client.get_connection_info().addr();
            tracing::info!(%master, "a Redis master answers again");
        }
    }

    fn connect_anew(&self) {
        match ConnectionManager::new_lazy_with_config(self.client.clone(), self.settings.clone()) {
            Ok(connection) => {
                *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
            }
            Err(error) => tracing::warn!(%error, "a Redis master's connection is not replaced"),
        }
    }

    /// How long it may take for so many keys.
    pub(super) fn patience(claim: &Claim, node_timeout: Duration) -> Duration {
        let scripts = claim.keys.len().div_ceil(KEYS_AT_A_TIME).max(1);
        node_timeout * u32::try_from(scripts).unwrap_or(u32::MAX)
    }

    async fn lock_chunks(&self, claim: &Claim) -> RedisResult<Answer> {
        for chunk in chunks(claim) {
            let (start, end) = (chunk.start, chunk.end);
            let answer = self.ask(&LOCK, claim, chunk).await?;
            if answer != Answer::Granted {
                if start > 0 {
                    self.unlock(claim, Unlock::Failed).await?;
                }
                // Which keeps the places in the queues of those keys.
                self.peek_from(claim, end).await?;
                return Ok(answer);
            }
        }
        Ok(Answer::Granted)
    }

    /// The numbers of the claim's keys that it would refuse.
    pub(super) async fn peek(&self, claim: &Claim) -> RedisResult<Vec<usize>> {
        self.peek_from(claim, 0).await
    }

    async fn peek_from(&self, claim: &Claim, first: usize) -> RedisResult<Vec<usize>> {
        let mut refused = Vec::new();
        for chunk in chunks(claim).skip_while(|chunk| chunk.start < first) {
            let start = chunk.start;
            let numbers: Vec<usize> = self.ask(&PEEK, claim, chunk).await?;
            refused.extend(numbers.into_iter().map(|number| start + number - 1));
        }
        Ok(refused)
    }

    /// Unlocks what of the claim is locked, and tries all of it. Fails where the master cannot be
    /// reached or deletes nothing; the keys then expire. That nobody is told whose turn it is, is a
    /// warning alone.
    pub(super) async fn unlock(&self, claim: &Claim, unlock: Unlock) -> RedisResult<()> {
        let mut unlocked = Ok(());
        for chunk in chunks(claim) {
            match self
                .run::<Option<String>>(&UNLOCK, claim, chunk, &[u64::from(unlock == Unlock::Done)])
                .await
            {
                Ok(None) => {}
                Ok(Some(error)) => self.lacks(error.trim_start_matches("NOPERM ")),
                Err(error) if matches!(error.kind(), redis::ErrorKind::Server(_)) => {
                    unlocked = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        unlocked
    }

    /// Extends the locks, and answers whether all of them are still held.
    pub(super) async fn extend(&self, claim: &Claim) -> bool {
        for chunk in chunks(claim) {
            let keys = chunk.len();
            if self.run::<usize>(&EXTEND, claim, chunk, &[]).await.ok() != Some(keys) {
                return false;
            }
        }
        true
    }

    async fn ask<T: FromRedisValue>(
        &self,
        script: &Script,
        claim: &Claim,
        chunk: Range<usize>,
    ) -> RedisResult<T> {
        self.run(script, claim, chunk, &[millis(claim.waited), millis(PLACE_LASTS.min(claim.ttl))])
            .await
    }

    async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        claim: &Claim,
        chunk: Range<usize>,
        more: &[u64],
    ) -> RedisResult<T> {
        let mut invocation = script.prepare_invoke();
        for key in &claim.keys[chunk] {
            invocation.key(key);
        }
        invocation
            .arg(&claim.token)
            .arg(millis(claim.ttl))
            .arg(&*claim.prefix)
            .arg(&*claim.waiter)
            .arg(more);
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answered = invocation.invoke_async(&mut connection).await;
        if let Err(error) = &answered
            && lacks_a_right(error)
        {
            self.lacks(error.detail().unwrap_or_default());
        }
        answered
    }
}

fn chunks(claim: &Claim) -> impl Iterator<Item = Range<usize>> {
    let keys = claim.keys.len();
    (0..keys).step_by(KEYS_AT_A_TIME).map(move |start| start..keys.min(start + KEYS_AT_A_TIME))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A claim of which it is not known what became of it, until it is dropped.
struct Unsettled<'a>(&'a AtomicUsize);

impl<'a> Unsettled<'a> {
    fn new(unsettled: &'a AtomicUsize) -> Self {
        unsettled.fetch_add(1, Ordering::SeqCst);
        Self(unsettled)
    }
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
