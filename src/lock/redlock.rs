//! A lock on many keys by the Redlock algorithm (Redis documentation, "Distributed Locks with
//! Redis"). A batch holds its keys if a majority of independent masters granted it all of them.
//!
//! On a master a key is what every Redlock client writes, `SET key token NX PX ttl`. So other
//! clients respect it, and it respects theirs. But one script sets all keys of a batch and grants
//! all of them or none: one round trip instead of one for each key.
//!
//! A lane that is refused a key enters the queue of the key; `docs/locking.md` has the rules.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use super::{
    Acquired, Held, HeldKeys, LockError, Selection,
    client::{MasterError, clients},
    master::{KeyClaim, Master, QueuePlaces},
    queue_notices::QueueNotices,
    scripts::ClaimAnswer,
    votes::collect_votes,
};
use crate::{
    backoff::jittered,
    config::{LockConfig, RedisConfig},
    domain::ProductId,
    telemetry::Metrics,
};

/// A refused claim is made again when the lane is first in a queue. It is made again after half of
/// this time to all of it in any case: nobody sends a notice of keys that expire, or that clients
/// other than stocklock release.
const MAX_RETRY_DELAY: Duration = Duration::from_millis(100);

/// How long the lane waits for the notices of the other masters after the first one.
const NOTICE_SPREAD: Duration = Duration::from_micros(500);

/// The Redis masters, as one lane uses them. A lane makes one claim at a time.
#[derive(Debug)]
pub struct Redlock {
    masters: Vec<Master>,
    ttl: Duration,
    node_timeout: Duration,
    wait: Duration,
    prefix: Arc<str>,
    /// The lane's name in the queues.
    waiter: Arc<str>,
    notices: QueueNotices,
    metrics: Metrics,
}

impl Redlock {
    /// Connects to nothing yet.
    ///
    /// Fails with [`MasterError::Url`], [`MasterError::Certificate`] or [`MasterError::NoPem`] if
    /// the settings of the masters are not usable.
    pub(crate) fn new(
        lock: &LockConfig,
        redis: &RedisConfig,
        metrics: &Metrics,
    ) -> Result<Self, MasterError> {
        let clients = clients(redis)?;
        let opened = clients.iter().zip(&redis.urls).map(|(client, url)| {
            Master::new(client, lock.node_timeout)
                .map_err(|source| MasterError::Url { url: url.clone(), source })
        });
        let masters = opened.collect::<Result<_, _>>()?;
        let (prefix, waiter) =
            (Arc::from(lock.prefix.as_str()), Arc::from(Uuid::now_v7().simple().to_string()));
        Ok(Self {
            masters,
            ttl: lock.ttl,
            node_timeout: lock.node_timeout,
            wait: lock.wait,
            notices: QueueNotices::new(clients, &prefix, Arc::clone(&waiter)),
            prefix,
            waiter,
            metrics: metrics.clone(),
        })
    }

    /// Acquires the keys of the whole batch or of a part of it; see [`super::Locks::acquire`].
    pub(super) async fn acquire(
        self: &Arc<Self>,
        since: Instant,
        select: impl Fn(&BTreeSet<ProductId>) -> Selection,
    ) -> Result<Acquired, LockError> {
        let begun = Instant::now();
        let acquired = self.attempt_until(begun + self.wait, since, select).await?;
        let waited = begun.elapsed().as_secs_f64();
        self.metrics.lock_wait.with_label_values(&["redlock"]).observe(waited);
        Ok(acquired)
    }

    /// The first attempt, and the last one after the deadline, try parts of the batch too. The
    /// attempts between them try the whole batch alone.
    ///
    /// Fails as [`super::Locks::acquire`] does.
    async fn attempt_until(
        self: &Arc<Self>,
        deadline: Instant,
        since: Instant,
        select: impl Fn(&BTreeSet<ProductId>) -> Selection,
    ) -> Result<Acquired, LockError> {
        let whole = select(&BTreeSet::new());
        let mut is_first = true;
        loop {
            self.notices.clear();
            let is_last = Instant::now() >= deadline;
            match self.attempt(&whole.products, since).await {
                Ok(keys) => return Ok(acquired(keys, whole)),
                Err(LockError::Contended) => {}
                Err(LockError::Unavailable) => return Err(LockError::Unavailable),
            }
            if is_first || is_last {
                match self.attempt_part(&whole, since, &select, is_last).await {
                    Err(LockError::Contended) if !is_last => {}
                    ended => return ended,
                }
            }
            is_first = false;
            let retry_at = Instant::now() + jittered(MAX_RETRY_DELAY, 0.5..1.0);
            tokio::select! {
                () = self.notices.wait() => sleep(NOTICE_SPREAD).await,
                () = sleep_until(retry_at.min(deadline)) => {}
            }
        }
    }

    /// Acquires the keys of the part that can be decided without the keys that were refused.
    /// `is_last`: a part smaller than half of the batch will do.
    ///
    /// Fails with [`LockError::Contended`] if there is no such part or its keys are refused, and
    /// with [`LockError::Unavailable`] if no majority of the masters answers in time.
    async fn attempt_part(
        self: &Arc<Self>,
        whole: &Selection,
        since: Instant,
        select: impl Fn(&BTreeSet<ProductId>) -> Selection,
        is_last: bool,
    ) -> Result<Acquired, LockError> {
        for refused in self.refused_products(&whole.products, since).await {
            let part = select(&refused);
            if part.products.is_empty() || !(part.covers_half || is_last) {
                continue;
            }
            // The part counts as old as the whole batch: the masters named the refused keys for a
            // claim of that age.
            match self.attempt(&part.products, since).await {
                Ok(keys) => return Ok(acquired(keys, part)),
                Err(LockError::Contended) => {}
                Err(LockError::Unavailable) => return Err(LockError::Unavailable),
            }
        }
        Err(LockError::Contended)
    }

    /// Claims the keys of all these products on all masters, once.
    ///
    /// Fails with [`LockError::Contended`] if a majority answered and too few masters granted the
    /// claim. Fails with [`LockError::Unavailable`] if no majority answered in time, or if the
    /// majority granted the claim after its validity was over.
    async fn attempt(
        self: &Arc<Self>,
        products: &BTreeSet<ProductId>,
        since: Instant,
    ) -> Result<HeldKeys, LockError> {
        let (claim, begun) = (Arc::new(self.claim(products, since)), Instant::now());
        let asked = self.masters.iter().map(|master| master.lock(&claim, self.node_timeout));
        let vote =
            |answer: &Option<ClaimAnswer>| answer.map(|answer| answer == ClaimAnswer::Granted);
        let answers: Vec<_> = collect_votes(asked, self.quorum(), vote)
            .await
            .into_iter()
            .map(Option::flatten)
            .collect();
        let granted: Vec<_> =
            answers.iter().map(|answer| *answer == Some(ClaimAnswer::Granted)).collect();
        let is_granted = self.is_quorum(&granted);
        if is_granted && begun.elapsed() < self.validity() {
            return Ok(HeldKeys::new(Arc::clone(self), claim, granted, begun));
        }
        let answered: Vec<_> = answers.iter().map(Option::is_some).collect();
        let is_refused = self.is_quorum(&answered) && !is_granted;
        // The masters disagree on which claim is older. They may, if the ages differ by less than
        // the ways to the masters. One of the two lanes must give way, so each tosses a coin.
        let is_split = granted.contains(&true) && !answers.contains(&Some(ClaimAnswer::Held));
        let gives_way = is_refused && is_split && fastrand::bool();
        let places = if gives_way { QueuePlaces::Leave } else { QueuePlaces::Keep };
        self.unlock(&claim, &granted, places).await;
        let (failure, cause) = if is_refused {
            (LockError::Contended, "contended")
        } else {
            (LockError::Unavailable, "unavailable")
        };
        self.metrics.lock_failures.with_label_values(&[cause]).inc();
        Err(failure)
    }

    /// Asks the masters which of the products they would refuse. Answers up to two sets, none of
    /// them empty:
    ///
    /// 1. The products that a majority could not grant.
    /// 2. The products that any master would refuse, if these are more. Masters may hold different
    ///    keys: then no majority refuses any key, and no master grants all of them.
    async fn refused_products(
        &self,
        products: &BTreeSet<ProductId>,
        since: Instant,
    ) -> Vec<BTreeSet<ProductId>> {
        let claim = self.claim(products, since);
        let limit = Master::claim_timeout(&claim, self.node_timeout);
        let asked = self.masters.iter().map(|master| async {
            // A master whose last answer is overdue gets no questions, so that they cannot pile up.
            if !master.is_settled() {
                return None;
            }
            timeout(limit, master.peek(&claim)).await.ok()?.ok()
        });
        let answers =
            collect_votes(asked, self.quorum(), |answer| answer.as_ref().map(|_| true)).await;
        let answers: Vec<_> = answers.into_iter().flatten().flatten().collect();
        let mut refusals = HashMap::new();
        for number in answers.iter().flatten() {
            *refusals.entry(*number).or_insert(0) += 1;
        }
        let enough_to_refuse = (answers.len() + 1).saturating_sub(self.quorum());
        let refused_by = |enough: usize| {
            let is_refused =
                |number| refusals.get(&number).is_some_and(|masters| *masters >= enough);
            let refused = products.iter().enumerate().filter(|(number, _)| is_refused(*number));
            refused.map(|(_, product)| product.clone()).collect::<BTreeSet<_>>()
        };
        let mut refused = vec![refused_by(enough_to_refuse), refused_by(1)];
        refused.dedup();
        refused.retain(|products| !products.is_empty());
        refused
    }

    fn claim(&self, products: &BTreeSet<ProductId>, since: Instant) -> KeyClaim {
        KeyClaim {
            keys: products.iter().map(|product| format!("{}{product}", self.prefix)).collect(),
            waited: since.elapsed(),
            token: Uuid::now_v7().simple().to_string(),
            ttl: self.ttl,
            prefix: Arc::clone(&self.prefix),
            waiter: Arc::clone(&self.waiter),
        }
    }

    /// How long a lock can be relied on: the TTL minus Redlock's allowance for clocks that run at
    /// different speeds, 1 % of the TTL and 2 ms.
    pub(super) fn validity(&self) -> Duration {
        self.ttl.saturating_sub(self.ttl / 100 + Duration::from_millis(2))
    }

    pub(super) fn quorum(&self) -> usize {
        self.masters.len() / 2 + 1
    }

    pub(super) fn is_quorum(&self, masters: &[bool]) -> bool {
        masters.iter().filter(|yes| **yes).count() >= self.quorum()
    }

    /// Extends a claim on the masters that granted it. Answers whether a majority still holds all
    /// of its keys, each for a further TTL.
    pub(super) async fn extend(&self, claim: &KeyClaim, granted: &[bool]) -> bool {
        let limit = Master::claim_timeout(claim, self.node_timeout);
        let granting = self.masters.iter().zip(granted).filter(|(_, granted)| **granted);
        let extending = granting.map(|(master, _)| async {
            timeout(limit, master.extend(claim)).await.unwrap_or(false)
        });
        let extended = collect_votes(extending, self.quorum(), |extended| Some(*extended)).await;
        let extended: Vec<_> =
            extended.into_iter().map(|extended| extended == Some(true)).collect();
        self.is_quorum(&extended)
    }

    /// Unlocks the claim on the masters that granted it; a slow master does so in the background.
    /// On the other masters the lane may have places in queues. If it leaves them, nobody waits for
    /// that.
    pub(super) async fn unlock(
        &self,
        claim: &Arc<KeyClaim>,
        granted: &[bool],
        places: QueuePlaces,
    ) {
        let limit = Master::claim_timeout(claim, self.node_timeout);
        let start = |master: &Master| {
            let (master, claim) = (master.clone(), Arc::clone(claim));
            tokio::spawn(async move { master.unlock(&claim, places).await })
        };
        let (mut unlocking, masters) = (Vec::new(), self.masters.iter().zip(granted));
        for (master, granted) in masters {
            if *granted {
                let unlocked = timeout(limit, start(master));
                unlocking.push(async { matches!(unlocked.await, Ok(Ok(Ok(())))) });
            } else if places == QueuePlaces::Leave && master.is_settled() {
                start(master);
            }
        }
        let majority = unlocking.len() / 2 + 1;
        collect_votes(unlocking, majority, |unlocked| Some(*unlocked)).await;
    }

    pub(super) fn renewal_interval(&self) -> Duration {
        self.ttl / 3
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

fn acquired(keys: HeldKeys, selection: Selection) -> Acquired {
    Acquired { held: Held::Redlock(Box::new(keys)), selection }
}
