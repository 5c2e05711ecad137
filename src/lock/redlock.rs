//! A multi-lock by the Redlock algorithm (Redis documentation, "Distributed Locks with Redis"): a batch holds its keys where a
//! majority of independent masters granted it all of them.
//!
//! On a master a key of ours is what every Redlock client writes, `SET key token NX PX ttl`, so that we respect others and they us. But
//! all keys of a batch go in one script, which grants all of them or none: one round trip instead of one for each key. Whoever is
//! refused a key gets a place in its queue; docs/locking.md says what that means.

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use uuid::Uuid;

use super::{
    LockError, Wanted,
    master::{Claim, Master},
    turns::Turns,
};
use crate::{
    config::{self, SecretUrl},
    domain::ProductId,
    telemetry::Metrics,
};

const FIRST_RETRY: Duration = Duration::from_millis(2);
const LONGEST_RETRY: Duration = Duration::from_millis(100);

/// How long masters may be behind the majority that has answered: as long as the majority took, and at least this.
const LEAST_GRACE: Duration = Duration::from_millis(1);

/// Whoever has the same one waits once: each lane has its own.
#[derive(Debug)]
pub struct Redlock {
    masters: Vec<Master>,
    ttl: Duration,
    node_timeout: Duration,
    wait: Duration,
    prefix: Arc<str>,
    waiter: Arc<str>,
    turns: Turns,
    metrics: Metrics,
}

/// Why an attempt failed.
enum Failure {
    /// Some master refused these.
    Refused(BTreeSet<ProductId>),
    /// No majority answered in time.
    Unavailable,
}

impl Redlock {
    /// Connects to nothing yet. Fails where a URL does not parse.
    pub fn new(lock: &config::Lock, urls: &[SecretUrl], metrics: &Metrics) -> Result<Self, LockError> {
        let (mut masters, mut clients) = (Vec::new(), Vec::new());
        for url in urls {
            let bad_url = |error| LockError::BadUrl(format!("{url}: {error}"));
            let client = Master::client(url.expose()).map_err(bad_url)?;
            masters.push(Master::new(&client, lock.node_timeout).map_err(bad_url)?);
            clients.push(client);
        }
        let (prefix, waiter) = (Arc::from(lock.prefix.as_str()), Arc::from(Uuid::now_v7().simple().to_string()));
        Ok(Self {
            masters,
            ttl: lock.ttl,
            node_timeout: lock.node_timeout,
            wait: lock.wait,
            turns: Turns::new(clients, &prefix, Arc::clone(&waiter)),
            prefix,
            waiter,
            metrics: metrics.clone(),
        })
    }

    /// Locks all that is wanted, or as much of it as will do: `wanted` says what to try without the products that others hold, which are
    /// none at first. While that is nothing, it waits: until it is its turn, `lock.wait` at most, and no longer than `enough`. Fails at
    /// once where no majority of the masters answers.
    pub async fn acquire(
        self: &Arc<Self>,
        mut wanted: impl FnMut(&BTreeSet<ProductId>) -> Wanted,
        enough: impl Future<Output = ()>,
    ) -> Result<Held, LockError> {
        let begun = Instant::now();
        let (deadline, mut enough) = (begun + self.wait, pin!(enough));
        let mut bound = FIRST_RETRY;
        loop {
            let failure = match self.acquire_now(&mut wanted).await {
                Ok(held) => {
                    self.metrics.lock_wait.with_label_values(&["redlock"]).observe(begun.elapsed().as_secs_f64());
                    return Ok(held);
                }
                Err(failure) => failure,
            };
            let now = Instant::now();
            if failure != LockError::Contended {
                return Err(failure);
            }
            if now >= deadline {
                self.leave(&wanted(&BTreeSet::new()));
                return Err(failure);
            }
            let retry_at = deadline.min(now + bound.mul_f64(fastrand::f64()));
            bound = (bound * 2).min(LONGEST_RETRY);
            tokio::select! {
                () = self.turns.come() => bound = FIRST_RETRY,
                () = sleep_until(retry_at) => {}
                () = &mut enough => return Err(failure),
            }
        }
    }

    /// Tries what is wanted, and then with ever less of it, until that is granted or nothing is left.
    async fn acquire_now(
        self: &Arc<Self>,
        wanted: &mut impl FnMut(&BTreeSet<ProductId>) -> Wanted,
    ) -> Result<Held, LockError> {
        let mut refused = BTreeSet::new();
        loop {
            let wanted = wanted(&refused);
            if wanted.is_empty() {
                return Err(LockError::Contended);
            }
            match self.attempt(&wanted).await {
                Ok(held) => return Ok(held),
                Err(Failure::Refused(more)) => {
                    self.metrics.lock_failures.with_label_values(&["contended"]).inc();
                    refused.extend(more);
                }
                Err(Failure::Unavailable) => {
                    self.metrics.lock_failures.with_label_values(&["unavailable"]).inc();
                    return Err(LockError::Unavailable);
                }
            }
        }
    }

    async fn attempt(self: &Arc<Self>, wanted: &Wanted) -> Result<Held, Failure> {
        let (claim, begun) = (Arc::new(self.claim(wanted)), Instant::now());
        let asked = self.masters.iter().map(|master| master.lock(&claim, self.node_timeout));
        let is_granted = |answer: &Option<Vec<usize>>| answer.as_ref().is_some_and(Vec::is_empty);
        let answers: Vec<_> = hear(asked, self.quorum(), is_granted).await.into_iter().map(Option::flatten).collect();
        let granted: Vec<_> = answers.iter().map(is_granted).collect();
        if self.is_quorum(&granted) && begun.elapsed() < self.validity() {
            return Ok(Held::new(Arc::clone(self), claim, granted, begun));
        }
        self.give_back(&claim, &granted).await;
        let answered: Vec<_> = answers.iter().map(Option::is_some).collect();
        let refused: BTreeSet<_> = answers.into_iter().flatten().flatten().collect();
        if refused.is_empty() || !self.is_quorum(&answered) {
            return Err(Failure::Unavailable);
        }
        let products = wanted.keys().enumerate().filter(|(number, _)| refused.contains(number));
        Err(Failure::Refused(products.map(|(_, product)| product.clone()).collect()))
    }

    fn claim(&self, wanted: &Wanted) -> Claim {
        let now = Instant::now();
        Claim {
            keys: wanted.keys().map(|product| format!("{}{product}", self.prefix)).collect(),
            waited: wanted.values().map(|since| now.saturating_duration_since(*since)).collect(),
            token: Uuid::now_v7().simple().to_string(),
            ttl: self.ttl,
            prefix: Arc::clone(&self.prefix),
            waiter: Arc::clone(&self.waiter),
        }
    }

    /// How long a lock can be relied on: the TTL without Redlock's allowance for clocks that run at different speeds, 1 % of it
    /// and 2 ms.
    fn validity(&self) -> Duration {
        self.ttl.saturating_sub(self.ttl / 100 + Duration::from_millis(2))
    }

    fn quorum(&self) -> usize {
        self.masters.len() / 2 + 1
    }

    fn is_quorum(&self, masters: &[bool]) -> bool {
        masters.iter().filter(|yes| **yes).count() >= self.quorum()
    }

    /// Unlocks where it was granted; a master that is slow does so in the background.
    async fn give_back(&self, claim: &Arc<Claim>, granted: &[bool]) {
        let patience = Master::patience(claim, self.node_timeout);
        let granting = self.masters.iter().cloned().zip(granted).filter(|(_, granted)| **granted);
        let unlocking: Vec<_> = granting
            .map(|(master, _)| {
                let claim = Arc::clone(claim);
                let unlocking = tokio::spawn(async move { master.unlock(&claim).await });
                async move { matches!(timeout(patience, unlocking).await, Ok(Ok(true))) }
            })
            .collect();
        let most = unlocking.len() / 2 + 1;
        hear(unlocking, most, |unlocked| *unlocked).await;
    }

    /// Gives up its places in the queues, in the background.
    fn leave(&self, wanted: &Wanted) {
        let claim = Arc::new(self.claim(wanted));
        for master in &self.masters {
            let (master, claim) = (master.clone(), Arc::clone(&claim));
            tokio::spawn(async move { master.leave(&claim).await });
        }
    }
}

/// Waits for answers until so many as are `needed` said yes, or cannot any more; those that have not come then may take as long again, and
/// are `None` after that. So the slowest never sets the pace.
async fn hear<T>(
    asked: impl IntoIterator<Item = impl Future<Output = T>>,
    needed: usize,
    is_yes: impl Fn(&T) -> bool,
) -> Vec<Option<T>> {
    let begun = Instant::now();
    let numbered = asked.into_iter().enumerate().map(|(number, answer)| async move { (number, answer.await) });
    let mut coming: FuturesUnordered<_> = numbered.collect();
    let mut answers: Vec<_> = std::iter::repeat_with(|| None).take(coming.len()).collect();
    let (mut yes, mut no) = (0, 0);
    let mut closes_at = None;
    while let Ok(Some((number, answer))) = match closes_at {
        Some(at) => timeout_at(at, coming.next()).await,
        None => Ok(coming.next().await),
    } {
        if is_yes(&answer) {
            yes += 1;
        } else {
            no += 1;
        }
        answers[number] = Some(answer);
        if closes_at.is_none() && (yes >= needed || no + needed > answers.len()) {
            closes_at = Some(Instant::now() + begun.elapsed().max(LEAST_GRACE));
        }
    }
    answers
}

/// All keys of a batch. A task renews them at a third of the TTL; the first renewal that leaves them without a majority, or
/// comes too late, loses all.
#[derive(Debug)]
pub struct Held {
    redlock: Arc<Redlock>,
    claim: Arc<Claim>,
    /// By which masters.
    granted: Vec<bool>,
    since: Instant,
    /// `None` once they are lost.
    valid_until: watch::Receiver<Option<Instant>>,
    renewal: JoinHandle<()>,
}

impl Held {
    fn new(redlock: Arc<Redlock>, claim: Arc<Claim>, granted: Vec<bool>, asked: Instant) -> Self {
        let (renewed, valid_until) = watch::channel(Some(asked + redlock.validity()));
        let renewal = tokio::spawn(renew(Arc::clone(&redlock), Arc::clone(&claim), granted.clone(), asked, renewed));
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
    redlock: Arc<Redlock>,
    claim: Arc<Claim>,
    granted: Vec<bool>,
    mut since: Instant,
    renewed: watch::Sender<Option<Instant>>,
) {
    let patience = Master::patience(&claim, redlock.node_timeout);
    loop {
        sleep_until(since + redlock.ttl / 3).await;
        let begun = Instant::now();
        let granting = redlock.masters.iter().zip(&granted).filter(|(_, granted)| **granted);
        let extending =
            granting.map(|(master, _)| async { timeout(patience, master.extend(&claim)).await.unwrap_or(false) });
        let extended = hear(extending, redlock.quorum(), |extended| *extended).await;
        let extended: Vec<_> = extended.into_iter().map(|extended| extended == Some(true)).collect();
        if since.elapsed() >= redlock.validity() || !redlock.is_quorum(&extended) {
            let _receiver_gone = renewed.send(None);
            redlock.metrics.lock_failures.with_label_values(&["lost"]).inc();
            tracing::warn!("the locks of a batch were lost before it was done");
            return;
        }
        let _receiver_gone = renewed.send(Some(begun + redlock.validity()));
        since = begun;
    }
}
