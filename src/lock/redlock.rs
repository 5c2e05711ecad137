//! A multi-lock by the Redlock algorithm (Redis documentation, "Distributed Locks with Redis"): a key is held where a majority
//! of independent masters granted it, and a batch is held where each of its keys is.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use rslock::LockManager;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
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
    /// Requests that are still under way though nobody waits for them any more. While there are any, no further ones are made, so
    /// that they cannot pile up at a master that hangs.
    overdue: Arc<AtomicUsize>,
}

/// What one master granted: for each key a lock, or none.
type Granted = Vec<Option<rslock::Lock>>;

impl Redlock {
    pub fn new(lock: &config::Lock, urls: &[SecretUrl], metrics: &Metrics) -> Result<Self, LockError> {
        let masters = urls.iter().map(|url| {
            let client = redis::Client::open(url.expose()).map_err(|e| LockError::BadUrl(format!("{url}: {e}")))?;
            let mut manager = LockManager::from_clients(vec![client.clone()]);
            manager.set_retry(1, Duration::from_millis(1));
            Ok(Master { client, manager, overdue: Arc::default() })
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
        if begun.elapsed() < self.validity() && has_majority(&locks, keys.len(), Option::is_some) {
            return Ok(Held::new(self.clone(), locks, begun));
        }
        self.give_back(&Arc::new(locks)).await;
        Err(if answers >= self.majority() { LockError::Contended } else { LockError::Unavailable })
    }

    /// Asks one master for the keys, in their order. `None` where it did not answer in time; what it grants later is given back by
    /// the task that waits for it.
    async fn ask(&self, master: &Master, keys: &Arc<[String]>) -> Option<Granted> {
        if master.overdue.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let patience = self.patience(keys.len());
        let (master, keys, ttl) = (master.clone(), Arc::clone(keys), self.ttl);
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let mut locking = pin!(master.lock(&keys, ttl));
            let unwanted = if let Ok(granted) = timeout(patience, &mut locking).await {
                answer.send(granted).err().flatten()
            } else {
                master.overdue.fetch_add(1, Ordering::SeqCst);
                drop(answer);
                let granted = locking.await;
                master.overdue.fetch_sub(1, Ordering::SeqCst);
                granted
            };
            if let Some(granted) = unwanted {
                master.unlock(&granted).await;
            }
        });
        answered.await.ok().flatten()
    }

    /// How long one master may take for so many keys.
    fn patience(&self, keys: usize) -> Duration {
        self.node_timeout * u32::try_from(keys.div_ceil(KEYS_AT_A_TIME)).unwrap_or(u32::MAX)
    }

    /// How long a lock can be relied on: the TTL without Redlock's allowance for clocks that run at different speeds, 1 % of it
    /// and 2 ms.
    fn validity(&self) -> Duration {
        self.ttl.saturating_sub(self.ttl / 100 + Duration::from_millis(2))
    }

    fn majority(&self) -> usize {
        self.masters.len() / 2 + 1
    }

    /// Unlocks whatever was granted; a master that hangs is waited for in the background.
    async fn give_back(&self, granted: &Arc<Vec<Granted>>) {
        let unlocking =
            self.masters.iter().cloned().enumerate().filter(|(m, _)| granted[*m].iter().any(Option::is_some));
        let tasks = unlocking.map(|(m, master)| {
            let granted = Arc::clone(granted);
            tokio::spawn(async move { master.unlock(&granted[m]).await })
        });
        let patience = self.patience(granted.first().map_or(0, Vec::len));
        join_all(tasks.map(|task| timeout(patience, task))).await;
    }
}

impl Master {
    /// Locks keys until one is refused. `None` where the master cannot be reached, or cannot lock anything.
    ///
    /// The first key goes alone: rslock would try to connect again for each key in turn.
    async fn lock(&self, keys: &[String], ttl: Duration) -> Option<Granted> {
        let (first, others) = keys.split_at(keys.len().min(1));
        let mut granted: Granted = Vec::with_capacity(keys.len());
        for chunk in std::iter::once(first).chain(others.chunks(KEYS_AT_A_TIME)) {
            let locks = join_all(chunk.iter().map(|key| self.manager.lock(key.as_str(), ttl))).await;
            granted.extend(locks.into_iter().map(Result::ok));
            if granted.iter().any(Option::is_none) {
                break;
            }
        }
        granted.resize_with(keys.len(), || None);
        match keys.first() {
            Some(key) if granted[0].is_none() => self.is_held(key).await.then_some(granted),
            _ => Some(granted),
        }
    }

    /// Whether somebody holds the key, which rslock does not tell from a master that is away, full or read-only.
    async fn is_held(&self, key: &str) -> bool {
        let Ok(mut connection) = self.client.get_multiplexed_async_connection().await else { return false };
        redis::cmd("EXISTS").arg(key).query_async(&mut connection).await.unwrap_or(false)
    }

    async fn unlock(&self, granted: &Granted) {
        join_all(granted.iter().flatten().map(|lock| self.manager.unlock(lock))).await;
    }

    /// Extends locks, and answers for each key whether it is still held. rslock unlocks those that it could not extend.
    async fn extend(&self, granted: &Granted, ttl: Duration) -> Vec<bool> {
        join_all(granted.iter().map(|lock| async move {
            match lock {
                Some(lock) => self.manager.extend(lock, ttl).await.is_ok(),
                None => false,
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
    granted: Arc<Vec<Granted>>,
    since: Instant,
    /// `None` once they are lost.
    valid_until: watch::Receiver<Option<Instant>>,
    renewal: JoinHandle<()>,
}

impl Held {
    fn new(redlock: Redlock, granted: Vec<Granted>, asked: Instant) -> Self {
        let granted = Arc::new(granted);
        let (renewed, valid_until) = watch::channel(Some(asked + redlock.validity()));
        let renewal = tokio::spawn(renew(redlock.clone(), Arc::clone(&granted), asked, renewed));
        Self { redlock, granted, since: Instant::now(), valid_until, renewal }
    }

    pub fn is_lost(&self) -> bool {
        self.valid_until.borrow().is_none_or(|until| Instant::now() >= until)
    }

    pub async fn release(self) {
        self.redlock.metrics.lock_hold.with_label_values(&["redlock"]).observe(self.since.elapsed().as_secs_f64());
        self.renewal.abort();
        self.redlock.give_back(&self.granted).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

async fn renew(
    redlock: Redlock,
    granted: Arc<Vec<Granted>>,
    mut since: Instant,
    renewed: watch::Sender<Option<Instant>>,
) {
    let keys = granted.first().map_or(0, Vec::len);
    let patience = redlock.patience(keys);
    loop {
        sleep_until(since + redlock.ttl / 3).await;
        let begun = Instant::now();
        let extending = redlock.masters.iter().zip(granted.iter());
        let extending = extending.map(|(master, granted)| timeout(patience, master.extend(granted, redlock.ttl)));
        let extended: Vec<_> = join_all(extending).await.into_iter().map(Result::unwrap_or_default).collect();
        if since.elapsed() >= redlock.validity() || !has_majority(&extended, keys, |held| *held) {
            let _receiver_gone = renewed.send(None);
            redlock.metrics.lock_failures.with_label_values(&["lost"]).inc();
            tracing::warn!("the locks of a batch were lost before it was done");
            return;
        }
        let _receiver_gone = renewed.send(Some(begun + redlock.validity()));
        since = begun;
    }
}

/// Whether each of so many keys is held at a majority of the masters, of which some may have answered nothing.
fn has_majority<K>(masters: &[Vec<K>], keys: usize, is_held: fn(&K) -> bool) -> bool {
    let held_at = |key| masters.iter().filter(|answers| answers.get(key).is_some_and(is_held)).count();
    (0..keys).all(|key| held_at(key) > masters.len() / 2)
}
