//! A multi-lock by the Redlock algorithm (Redis documentation, "Distributed Locks with Redis"): a batch holds its keys where a
//! majority of independent masters granted it all of them.
//!
//! On a master a key of ours is what every Redlock client writes, `SET key token NX PX ttl`, so that we respect others and they us. But
//! all keys of a batch go in one script, which grants all of them or none: one round trip instead of one for each key.

use std::{
    pin::pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use redis::{
    Client, IntoConnectionInfo as _, RedisResult, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use uuid::Uuid;

use super::LockError;
use crate::{
    config::{self, SecretUrl},
    domain::ProductId,
    telemetry::Metrics,
};

/// Keys of one script. A master serves nobody else while it runs, less than 2 ms.
const KEYS_AT_A_TIME: usize = 1_000;
const FIRST_RETRY: Duration = Duration::from_millis(2);
const LONGEST_RETRY: Duration = Duration::from_millis(100);

/// Answers 1 where all keys were granted. What was set before one was refused is taken back.
static LOCK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "for i, key in ipairs(KEYS) do
           if not redis.call('SET', key, ARGV[1], 'NX', 'PX', ARGV[2]) then
             for held = 1, i - 1 do redis.call('DEL', KEYS[held]) end
             return 0
           end
         end
         return 1",
    )
});

/// Answers how many keys were still held, and are now for another TTL.
static EXTEND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local extended = 0
         for _, key in ipairs(KEYS) do
           if redis.call('GET', key) == ARGV[1] then extended = extended + redis.call('PEXPIRE', key, ARGV[2]) end
         end
         return extended",
    )
});

/// Deletes the keys that are still held, and no others.
static UNLOCK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "for _, key in ipairs(KEYS) do
           if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
         end
         return 1",
    )
});

#[derive(Debug, Clone)]
pub struct Redlock {
    masters: Arc<[Master]>,
    ttl: Duration,
    node_timeout: Duration,
    wait: Duration,
    prefix: String,
    metrics: Metrics,
}

#[derive(Debug, Clone)]
struct Master {
    connection: ConnectionManager,
    /// Requests that are still under way though nobody waits for them any more. While there are any, no further ones are made, so
    /// that they cannot pile up at a master that hangs.
    overdue: Arc<AtomicUsize>,
}

/// The keys of a batch, and what tells them from anybody else's.
#[derive(Debug)]
struct Claim {
    keys: Vec<String>,
    token: String,
    ttl: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Granted,
    /// Another holds one of the keys.
    Refused,
}

impl Redlock {
    pub fn new(lock: &config::Lock, urls: &[SecretUrl], metrics: &Metrics) -> Result<Self, LockError> {
        let masters = urls.iter().map(|url| {
            let master = Master::new(url.expose(), lock.ttl);
            master.map_err(|e| LockError::BadUrl(format!("{url}: {e}")))
        });
        Ok(Self {
            masters: masters.collect::<Result<_, LockError>>()?,
            ttl: lock.ttl,
            node_timeout: lock.node_timeout,
            wait: lock.wait,
            prefix: lock.prefix.clone(),
            metrics: metrics.clone(),
        })
    }

    /// Locks all the products or none. Attempts are repeated with jitter until `lock.wait` is over.
    pub async fn acquire(&self, products: &[ProductId]) -> Result<Held, LockError> {
        let begun = Instant::now();
        let mut bound = FIRST_RETRY;
        loop {
            let keys = products.iter().map(|id| format!("{}{id}", self.prefix)).collect();
            let claim = Claim { keys, token: Uuid::now_v7().simple().to_string(), ttl: self.ttl };
            let failure = match self.attempt(&Arc::new(claim)).await {
                Ok(held) => {
                    self.metrics.lock_wait.with_label_values(&["redlock"]).observe(begun.elapsed().as_secs_f64());
                    return Ok(held);
                }
                Err(failure) => failure,
            };
            let cause = if failure == LockError::Contended { "contended" } else { "unavailable" };
            self.metrics.lock_failures.with_label_values(&[cause]).inc();
            let delay = bound.mul_f64(fastrand::f64());
            if begun.elapsed() + delay >= self.wait {
                return Err(failure);
            }
            tokio::time::sleep(delay).await;
            bound = (bound * 2).min(LONGEST_RETRY);
        }
    }

    async fn attempt(&self, claim: &Arc<Claim>) -> Result<Held, LockError> {
        let begun = Instant::now();
        let answers = join_all(self.masters.iter().map(|master| self.ask(master, claim))).await;
        let granted: Vec<_> = answers.iter().map(|answer| *answer == Some(Answer::Granted)).collect();
        if begun.elapsed() < self.validity() && self.is_majority(granted.iter().copied()) {
            return Ok(Held::new(self.clone(), Arc::clone(claim), granted, begun));
        }
        self.give_back(claim, &granted).await;
        let answered = self.is_majority(answers.iter().map(Option::is_some));
        Err(if answered { LockError::Contended } else { LockError::Unavailable })
    }

    /// Asks one master for the keys. `None` where it cannot be reached, cannot lock anything, or does not answer in time; what it
    /// grants later is given back by the task that waits for it.
    async fn ask(&self, master: &Master, claim: &Arc<Claim>) -> Option<Answer> {
        if master.overdue.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let patience = self.patience(claim);
        let (master, claim) = (master.clone(), Arc::clone(claim));
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let mut locking = pin!(master.lock(&claim));
            let unwanted = if let Ok(granted) = timeout(patience, &mut locking).await {
                answer.send(granted).err().flatten()
            } else {
                master.overdue.fetch_add(1, Ordering::SeqCst);
                drop(answer);
                let granted = locking.await;
                master.overdue.fetch_sub(1, Ordering::SeqCst);
                granted
            };
            if unwanted == Some(Answer::Granted) {
                master.unlock(&claim).await;
            }
        });
        answered.await.ok().flatten()
    }

    /// How long one master may take for so many keys.
    fn patience(&self, claim: &Claim) -> Duration {
        let scripts = claim.keys.len().div_ceil(KEYS_AT_A_TIME).max(1);
        self.node_timeout * u32::try_from(scripts).unwrap_or(u32::MAX)
    }

    /// How long a lock can be relied on: the TTL without Redlock's allowance for clocks that run at different speeds, 1 % of it
    /// and 2 ms.
    fn validity(&self) -> Duration {
        self.ttl.saturating_sub(self.ttl / 100 + Duration::from_millis(2))
    }

    fn is_majority(&self, masters: impl Iterator<Item = bool>) -> bool {
        masters.filter(|yes| *yes).count() > self.masters.len() / 2
    }

    /// Unlocks where it was granted; a master that hangs is waited for in the background.
    async fn give_back(&self, claim: &Arc<Claim>, granted: &[bool]) {
        let granting = self.masters.iter().cloned().zip(granted).filter(|(_, granted)| **granted);
        let tasks = granting.map(|(master, _)| {
            let claim = Arc::clone(claim);
            tokio::spawn(async move { master.unlock(&claim).await })
        });
        join_all(tasks.map(|task| timeout(self.patience(claim), task))).await;
    }
}

impl Master {
    /// A request may take as long as the TTL: what hangs for longer has lost its meaning. Until then it is overdue, and the
    /// master is not asked again.
    fn new(url: &str, ttl: Duration) -> RedisResult<Self> {
        let info = url.into_connection_info()?;
        let tcp = TcpSettings::default().set_nodelay(true);
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(ttl))
            .set_response_timeout(Some(ttl));
        let client = Client::open(info.set_tcp_settings(tcp))?;
        Ok(Self { connection: ConnectionManager::new_lazy_with_config(client, config)?, overdue: Arc::default() })
    }

    /// Locks all keys or none. `None` where the master cannot be reached, or cannot lock anything.
    async fn lock(&self, claim: &Claim) -> Option<Answer> {
        for (chunk, keys) in claim.keys.chunks(KEYS_AT_A_TIME).enumerate() {
            match self.run(&LOCK, keys, claim).await {
                Ok(1) => {}
                Ok(_) => {
                    self.unlock_first(claim, chunk).await;
                    return Some(Answer::Refused);
                }
                Err(error) => {
                    tracing::debug!(%error, "a Redis master grants nothing");
                    self.unlock_first(claim, chunk + 1).await;
                    return None;
                }
            }
        }
        Some(Answer::Granted)
    }

    async fn unlock(&self, claim: &Claim) {
        self.unlock_first(claim, usize::MAX).await;
    }

    /// Unlocks the first so many chunks of the keys, as far as the master can be reached.
    async fn unlock_first(&self, claim: &Claim, chunks: usize) {
        for keys in claim.keys.chunks(KEYS_AT_A_TIME).take(chunks) {
            if let Err(error) = self.run(&UNLOCK, keys, claim).await {
                tracing::debug!(%error, "a Redis master does not unlock, its keys expire");
                return;
            }
        }
    }

    /// Extends the locks, and answers whether all of them are still held.
    async fn extend(&self, claim: &Claim) -> bool {
        for keys in claim.keys.chunks(KEYS_AT_A_TIME) {
            if self.run(&EXTEND, keys, claim).await.ok() != Some(keys.len()) {
                return false;
            }
        }
        true
    }

    async fn run(&self, script: &Script, keys: &[String], claim: &Claim) -> RedisResult<usize> {
        let mut invocation = script.prepare_invoke();
        for key in keys {
            invocation.key(key);
        }
        let ttl_ms = u64::try_from(claim.ttl.as_millis()).unwrap_or(u64::MAX);
        invocation.arg(&claim.token).arg(ttl_ms).invoke_async(&mut self.connection.clone()).await
    }
}

/// All keys of a batch. A task renews them at a third of the TTL; the first renewal that leaves them without a majority, or
/// comes too late, loses all.
#[derive(Debug)]
pub struct Held {
    redlock: Redlock,
    claim: Arc<Claim>,
    /// By which masters.
    granted: Vec<bool>,
    since: Instant,
    /// `None` once they are lost.
    valid_until: watch::Receiver<Option<Instant>>,
    renewal: JoinHandle<()>,
}

impl Held {
    fn new(redlock: Redlock, claim: Arc<Claim>, granted: Vec<bool>, asked: Instant) -> Self {
        let (renewed, valid_until) = watch::channel(Some(asked + redlock.validity()));
        let renewal = tokio::spawn(renew(redlock.clone(), Arc::clone(&claim), granted.clone(), asked, renewed));
        Self { redlock, claim, granted, since: Instant::now(), valid_until, renewal }
    }

    pub fn is_lost(&self) -> bool {
        self.valid_until.borrow().is_none_or(|until| Instant::now() >= until)
    }

    pub async fn release(self) {
        self.redlock.metrics.lock_hold.with_label_values(&["redlock"]).observe(self.since.elapsed().as_secs_f64());
        self.renewal.abort();
        self.redlock.give_back(&self.claim, &self.granted).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

async fn renew(
    redlock: Redlock,
    claim: Arc<Claim>,
    granted: Vec<bool>,
    mut since: Instant,
    renewed: watch::Sender<Option<Instant>>,
) {
    let patience = redlock.patience(&claim);
    loop {
        sleep_until(since + redlock.ttl / 3).await;
        let begun = Instant::now();
        let extending = redlock.masters.iter().zip(&granted).map(|(master, granted)| {
            let claim = Arc::clone(&claim);
            async move { *granted && timeout(patience, master.extend(&claim)).await.unwrap_or(false) }
        });
        let extended = join_all(extending).await;
        if since.elapsed() >= redlock.validity() || !redlock.is_majority(extended.into_iter()) {
            let _receiver_gone = renewed.send(None);
            redlock.metrics.lock_failures.with_label_values(&["lost"]).inc();
            tracing::warn!("the locks of a batch were lost before it was done");
            return;
        }
        let _receiver_gone = renewed.send(Some(begun + redlock.validity()));
        since = begun;
    }
}
