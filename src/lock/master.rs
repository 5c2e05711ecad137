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
    FromRedisValue, RedisError, RedisResult, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    advice::explain,
    client::{BROKEN_AFTER, MasterClient, lacks_a_right},
    scripts::{ClaimAnswer, EXTEND, LOCK, PEEK, UNLOCK},
};

/// The keys of one script. A master serves no other client while the script runs, less than 3 ms.
const MAX_KEYS_PER_SCRIPT: usize = 1_000;

/// The delay after each failed attempt to clean up a claim.
const CLEANUP_DELAY: Duration = Duration::from_millis(250);

/// How long a place in a queue lasts after the last attempt, `lock.ttl` at most. It is longer than
/// a batch usually takes: a lane that locked a part of its batch asks for the rest with the next
/// one.
const PLACE_TTL: Duration = Duration::from_secs(2);

/// A lane's request for all keys of a batch.
#[derive(Debug)]
pub(super) struct KeyClaim {
    pub(super) keys: Vec<String>,
    /// How long the oldest order of the batch has waited.
    pub(super) waited: Duration,
    /// The value of the keys while this claim holds them. No other claim has the same one.
    pub(super) token: String,
    pub(super) ttl: Duration,
    /// All keys begin with it.
    pub(super) prefix: Arc<str>,
    /// The lane's name in the queues.
    pub(super) waiter: Arc<str>,
}

/// What an unlock does with the lane's places in the queues of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueuePlaces {
    /// The lane leaves the queues: it has used the keys, or gives way.
    Leave,
    /// The lane still wants the keys.
    Keep,
}

/// One of the independent Redis servers.
#[derive(Debug, Clone)]
pub(super) struct Master {
    client: MasterClient,
    settings: ConnectionManagerConfig,
    connection: Arc<Mutex<ConnectionManager>>,
    /// The number of claims that the master may or may not have granted. As long as there are any,
    /// it gets no further claims, so that they cannot pile up at a master that hangs.
    unsettled: Arc<AtomicUsize>,
    /// The master has failed since the last claim that it answered.
    is_failing: Arc<AtomicBool>,
    /// The subjects of warnings that were logged. Each is logged once.
    warned_of: Arc<Mutex<BTreeSet<String>>>,
}

impl Master {
    /// Connects to nothing yet. Fails if the client's URL is not usable.
    pub(super) fn new(client: &MasterClient, node_timeout: Duration) -> RedisResult<Self> {
        let broken_after = BROKEN_AFTER.max(node_timeout);
        let settings = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(broken_after))
            .set_response_timeout(Some(broken_after));
        let connection =
            ConnectionManager::new_lazy_with_config(client.current(), settings.clone())?;
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

    /// Claims all keys or none. `None` if the master fails, does not answer in time, or still has
    /// an unsettled claim.
    ///
    /// A grant that comes too late, or when the caller waits no more, is released in the
    /// background.
    pub(super) async fn lock(
        &self,
        claim: &Arc<KeyClaim>,
        node_timeout: Duration,
    ) -> Option<ClaimAnswer> {
        if !self.is_settled() {
            return None;
        }
        let limit = Self::claim_timeout(claim, node_timeout);
        let (master, claim) = (self.clone(), Arc::clone(claim));
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let locked = timeout(limit, master.lock_chunks(&claim)).await;
            match locked.unwrap_or_else(|_| Err(io::Error::from(ErrorKind::TimedOut).into())) {
                Ok(answered) => {
                    master.log_recovery();
                    if answered == ClaimAnswer::HeldByThisClaim {
                        master.log_same_server();
                    }
                    let (receipt, is_received) = oneshot::channel::<()>();
                    // If the caller waits no more, this drops the receipt.
                    drop(answer.send((answered, receipt)));
                    if answered == ClaimAnswer::Granted && is_received.await.is_err() {
                        master.clean_up(&claim, None).await;
                    }
                }
                Err(error) => {
                    master.log_failure(&error);
                    let unsettled = Unsettled::new(&master.unsettled);
                    drop(answer);
                    master.clean_up(&claim, Some(unsettled)).await;
                }
            }
        });
        let (answered, receipt) = answered.await.ok()?;
        let _cleans_nothing_up = receipt.send(());
        Some(answered)
    }

    /// Whether the end of every claim is known.
    pub(super) fn is_settled(&self) -> bool {
        self.unsettled.load(Ordering::SeqCst) == 0
    }

    /// Unlocks a claim that has no holder, however long that takes.
    ///
    /// Each failure replaces the connection: a connection manager may keep an error for ever, and
    /// a connection through a proxy may be silent for ever. A proxy may also still have the claim.
    /// Then the first unlock comes behind it on the same connection. If the connection broke in
    /// between, the key stays until it expires.
    async fn clean_up(&self, claim: &KeyClaim, mut unsettled: Option<Unsettled<'_>>) {
        while let Err(error) = self.unlock(claim, QueuePlaces::Keep).await {
            self.log_failure(&error);
            unsettled.get_or_insert_with(|| Unsettled::new(&self.unsettled));
            self.reconnect();
            sleep(CLEANUP_DELAY).await;
        }
    }

    fn reconnect(&self) {
        match ConnectionManager::new_lazy_with_config(self.client.current(), self.settings.clone())
        {
            Ok(connection) => {
                *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
            }
            Err(error) => tracing::warn!(%error, "connection to a Redis master not replaced"),
        }
    }

    /// How long the scripts of a claim may take, one after the other.
    pub(super) fn claim_timeout(claim: &KeyClaim, node_timeout: Duration) -> Duration {
        let scripts = claim.keys.len().div_ceil(MAX_KEYS_PER_SCRIPT).max(1);
        node_timeout * u32::try_from(scripts).unwrap_or(u32::MAX)
    }

    /// Fails if a script fails; some keys may then be locked.
    async fn lock_chunks(&self, claim: &KeyClaim) -> RedisResult<ClaimAnswer> {
        for chunk in chunks(claim) {
            let (start, end) = (chunk.start, chunk.end);
            let answer = self.ask(&LOCK, claim, chunk).await?;
            if answer != ClaimAnswer::Granted {
                if start > 0 {
                    self.unlock(claim, QueuePlaces::Keep).await?;
                }
                // This keeps the places in the queues of the remaining keys.
                self.peek_from(claim, end).await?;
                return Ok(answer);
            }
        }
        Ok(ClaimAnswer::Granted)
    }

    /// The indices of the keys that the master would refuse. Keeps the lane's places in the queues.
    pub(super) async fn peek(&self, claim: &KeyClaim) -> RedisResult<Vec<usize>> {
        self.peek_from(claim, 0).await
    }

    async fn peek_from(&self, claim: &KeyClaim, first: usize) -> RedisResult<Vec<usize>> {
        let mut refused = Vec::new();
        for chunk in chunks(claim).skip_while(|chunk| chunk.start < first) {
            let start = chunk.start;
            let numbers: Vec<usize> = self.ask(&PEEK, claim, chunk).await?;
            // The script counts from 1.
            refused.extend(numbers.into_iter().map(|number| start + number - 1));
        }
        Ok(refused)
    }

    /// Deletes the keys that the claim holds. It tries all of them, whatever fails.
    ///
    /// Fails if the master cannot be reached or does not delete a key; such keys expire. A notice
    /// to the next lane that fails is only logged.
    pub(super) async fn unlock(&self, claim: &KeyClaim, places: QueuePlaces) -> RedisResult<()> {
        let leaves = u64::from(places == QueuePlaces::Leave);
        let mut unlocked = Ok(());
        for chunk in chunks(claim) {
            match self.run::<Option<String>>(&UNLOCK, claim, chunk, &[leaves]).await {
                Ok(None) => {}
                Ok(Some(error)) => self.log_missing_right(error.trim_start_matches("NOPERM ")),
                Err(error) if matches!(error.kind(), redis::ErrorKind::Server(_)) => {
                    unlocked = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        unlocked
    }

    /// Lets the keys live for another TTL. Answers whether the claim still holds all of them.
    pub(super) async fn extend(&self, claim: &KeyClaim) -> bool {
        for chunk in chunks(claim) {
            let keys = chunk.len();
            if self.run::<usize>(&EXTEND, claim, chunk, &[]).await.ok() != Some(keys) {
                return false;
            }
        }
        true
    }

    /// Runs a script that asks for keys.
    async fn ask<T: FromRedisValue>(
        &self,
        script: &Script,
        claim: &KeyClaim,
        chunk: Range<usize>,
    ) -> RedisResult<T> {
        let place_ttl = PLACE_TTL.min(claim.ttl);
        self.run(script, claim, chunk, &[millis(claim.waited), millis(place_ttl)]).await
    }

    /// Runs a script on the keys of a chunk. `more` are its arguments after those that all scripts
    /// have. Fails if the master cannot be reached or refuses the script.
    async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        claim: &KeyClaim,
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
            self.log_missing_right(error.detail().unwrap_or_default());
        }
        answered
    }
}

/// What the log says of a master.
impl Master {
    fn log_failure(&self, error: &RedisError) {
        // A missing right has its own warning.
        if !lacks_a_right(error) && !self.is_failing.swap(true, Ordering::SeqCst) {
            let (client, error) = (self.client.clone(), error.clone());
            // A look at the port takes time, and the caller has none.
            tokio::spawn(async move {
                let master = client.address();
                let error = explain(&client, &error).await;
                tracing::warn!(%master, %error, "a Redis master does not lock keys");
            });
        }
    }

    fn log_recovery(&self) {
        if self.is_failing.swap(false, Ordering::SeqCst) {
            let master = self.client.address();
            tracing::info!(%master, "a Redis master locks keys again");
        }
    }

    /// Logs once for each command. `error` begins with the command and a colon.
    fn log_missing_right(&self, error: &str) {
        if self.is_first_warning(error.split(':').next().unwrap_or_default()) {
            let master = self.client.address();
            tracing::warn!(
                %master,
                error,
                "the Redis user lacks a right; docs/locking.md lists the rights"
            );
        }
    }

    fn log_same_server(&self) {
        if self.is_first_warning("same server") {
            let master = self.client.address();
            tracing::error!(
                %master,
                "two URLs of redis.urls name one Redis server, which then has one vote"
            );
        }
    }

    fn is_first_warning(&self, subject: &str) -> bool {
        self.warned_of.lock().unwrap_or_else(PoisonError::into_inner).insert(subject.to_owned())
    }
}

fn chunks(claim: &KeyClaim) -> impl Iterator<Item = Range<usize>> {
    let keys = claim.keys.len();
    (0..keys)
        .step_by(MAX_KEYS_PER_SCRIPT)
        .map(move |start| start..keys.min(start + MAX_KEYS_PER_SCRIPT))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Counts a claim as unsettled until it is dropped.
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
