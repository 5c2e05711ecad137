//! A multi-lock by the Redlock algorithm (Redis documentation, "Distributed Locks with Redis"): a key is held where a majority
//! of independent masters granted it, and a batch is held where each of its keys is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use rslock::LockManager;
use tokio::{
    sync::{Mutex, oneshot},
    task::JoinHandle,
};

use super::LockError;
use crate::{
    config::{self, SecretUrl},
    domain::ProductId,
    telemetry::Metrics,
};

/// Keys that one master is asked for at a time; a contender that comes too late learns it from the first of them.
const KEYS_AT_A_TIME: usize = 256;
const FIRST_RETRY: Duration = Duration::from_millis(2);
const LONGEST_RETRY: Duration = Duration::from_millis(100);

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
    client: redis::Client,
    manager: LockManager,
}

/// What one master granted: for each key a lock, or none.
type Granted = Vec<Option<rslock::Lock>>;

impl Redlock {
    pub fn new(lock: &config::Lock, urls: &[SecretUrl], metrics: &Metrics) -> Result<Self, LockError> {
        let masters = urls.iter().map(|url| {
            let client = redis::Client::open(url.expose()).map_err(|e| LockError::BadUrl(format!("{url}: {e}")))?;
            let mut manager = LockManager::from_clients(vec![client.clone()]);
            manager.set_retry(1, Duration::from_millis(1));
            Ok(Master { client, manager })
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
        let keys: Arc<[String]> = products.iter().map(|id| format!("{}{id}", self.prefix)).collect();
        let begun = Instant::now();
        let mut bound = FIRST_RETRY;
        loop {
            let failure = match self.attempt(&keys).await {
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

    async fn attempt(&self, keys: &Arc<[String]>) -> Result<Held, LockError> {
        let begun = Instant::now();
        let granted = join_all(self.masters.iter().map(|master| self.ask(master, keys))).await;
        let answers = granted.iter().flatten().count();
        let nothing = || keys.iter().map(|_| None).collect();
        let locks: Vec<Granted> = granted.into_iter().map(|granted| granted.unwrap_or_else(nothing)).collect();
        let in_time = begun.elapsed() + self.drift() < self.ttl;
        if in_time && has_majority(&locks, self.majority()) {
            return Ok(Held::new(self.clone(), locks, begun));
        }
        self.give_back(locks).await;
        Err(if answers >= self.majority() { LockError::Contended } else { LockError::Unavailable })
    }

    /// Asks one master for the keys, in their order. `None` where it did not answer in time; what it grants later is given back by
    /// the task that waits for it.
    async fn ask(&self, master: &Master, keys: &Arc<[String]>) -> Option<Granted> {
        let patience = self.node_timeout * u32::try_from(keys.len().div_ceil(KEYS_AT_A_TIME)).unwrap_or(u32::MAX);
        let (master, keys, ttl) = (master.clone(), Arc::clone(keys), self.ttl);
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let granted = master.lock(&keys, ttl).await;
            if let Err(Some(too_late)) = answer.send(granted) {
                master.unlock(&too_late).await;
            }
        });
        tokio::time::timeout(patience, answered).await.ok()?.ok()?
    }

    /// Redlock's allowance for clocks that run at different speeds: 1 % of the TTL and 2 ms.
    fn drift(&self) -> Duration {
        self.ttl / 100 + Duration::from_millis(2)
    }

    fn majority(&self) -> usize {
        self.masters.len() / 2 + 1
    }

    /// Unlocks whatever was granted; a master that hangs is waited for in the background.
    async fn give_back(&self, granted: Vec<Granted>) {
        let unlocking =
            self.masters.iter().cloned().zip(granted).filter(|(_, granted)| granted.iter().any(Option::is_some));
        let tasks = unlocking.map(|(master, granted)| tokio::spawn(async move { master.unlock(&granted).await }));
        join_all(tasks.map(|task| tokio::time::timeout(self.node_timeout, task))).await;
    }
}

impl Master {
    /// Locks keys until one is refused. `None` where the master cannot be reached.
    async fn lock(&self, keys: &[String], ttl: Duration) -> Option<Granted> {
        let mut granted: Granted = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(KEYS_AT_A_TIME) {
            let locks = join_all(chunk.iter().map(|key| self.manager.lock(key.as_str(), ttl))).await;
            granted.extend(locks.into_iter().map(Result::ok));
            if granted.iter().any(Option::is_none) {
                break;
            }
        }
        granted.resize_with(keys.len(), || None);
        // rslock tells a refusal from a broken connection by neither its error nor its kind.
        let answered =
            granted.iter().any(Option::is_some) || self.client.get_multiplexed_async_connection().await.is_ok();
        answered.then_some(granted)
    }

    async fn unlock(&self, granted: &Granted) {
        join_all(granted.iter().flatten().map(|lock| self.manager.unlock(lock))).await;
    }

    /// Extends locks. Those that could not be extended are gone: rslock has unlocked them.
    async fn extend(&self, granted: Granted, ttl: Duration) -> Granted {
        join_all(granted.into_iter().map(|lock| async move {
            match lock {
                Some(lock) => self.manager.extend(&lock, ttl).await.ok(),
                None => None,
            }
        }))
        .await
    }
}

/// All keys of a batch. A task renews them at a third of the TTL; the first renewal that leaves a key without its majority, or
/// comes too late, loses all.
#[derive(Debug)]
pub struct Held {
    redlock: Redlock,
    since: Instant,
    lost: Arc<AtomicBool>,
    renewal: JoinHandle<()>,
    /// The locks are with the renewal while it extends them, and here in between.
    locks: Arc<Mutex<Vec<Granted>>>,
}

impl Held {
    fn new(redlock: Redlock, locks: Vec<Granted>, since: Instant) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let locks = Arc::new(Mutex::new(locks));
        let renewal = tokio::spawn(renew(redlock.clone(), Arc::clone(&locks), since, Arc::clone(&lost)));
        Self { redlock, since, lost, renewal, locks }
    }

    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    pub async fn release(self) -> Duration {
        let locks = std::mem::take(&mut *self.locks.lock().await);
        self.renewal.abort();
        self.redlock.give_back(locks).await;
        let held = self.since.elapsed();
        self.redlock.metrics.lock_hold.with_label_values(&["redlock"]).observe(held.as_secs_f64());
        held
    }
}

async fn renew(redlock: Redlock, locks: Arc<Mutex<Vec<Granted>>>, mut since: Instant, lost: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(redlock.ttl / 3).await;
        let mut locks = locks.lock().await;
        let begun = Instant::now();
        let extending = redlock.masters.iter().zip(std::mem::take(&mut *locks));
        let extended = join_all(extending.map(|(master, granted)| master.extend(granted, redlock.ttl)));
        *locks = extended.await;
        let in_time = since.elapsed() + redlock.drift() < redlock.ttl;
        if !in_time || !has_majority(&locks, redlock.majority()) {
            lost.store(true, Ordering::SeqCst);
            redlock.metrics.lock_failures.with_label_values(&["lost"]).inc();
            tracing::warn!("the locks of a batch were lost before it was done");
            return;
        }
        since = begun;
    }
}

/// Whether each key is granted by as many masters.
fn has_majority(granted: &[Granted], majority: usize) -> bool {
    let keys = granted.iter().map(Vec::len).max().unwrap_or(0);
    (0..keys).all(|key| granted.iter().filter(|g| g.get(key).is_some_and(Option::is_some)).count() >= majority)
}
