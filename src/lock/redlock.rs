//! A multi-lock by the Redlock algorithm (Redis documentation, "Distributed Locks with Redis"): a batch holds its keys where a
//! majority of independent masters granted it all of them.
//!
//! On a master a key of ours is what every Redlock client writes, `SET key token NX PX ttl`, so that we respect others and they us. But
//! all keys of a batch go in one script, which grants all of them or none: one round trip instead of one for each key. Whoever is
//! refused a key gets a place in its queue; docs/locking.md says what that means.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use uuid::Uuid;

use super::{
    LockError, Patience, Wanted,
    client::clients,
    master::{Claim, Master, Unlock},
    scripts::Answer,
    turns::Turns,
};
use crate::{config, domain::ProductId, telemetry::Metrics};

/// A claim that was refused is made again at its turn, and after half this time to all of it in any case: keys that expire, or that
/// others than stocklock release, give no sign.
const LONGEST_RETRY: Duration = Duration::from_millis(100);

/// Between the first master's sign that it is one's turn and the others'.
const COALESCE: Duration = Duration::from_micros(500);

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

impl Redlock {
    /// Connects to nothing yet. Fails where a URL does not parse, or a file of certificates is
    /// none.
    pub(crate) fn new(
        lock: &config::LockConfig,
        redis: &config::RedisConfig,
        metrics: &Metrics,
    ) -> Result<Self, LockError> {
        let clients = clients(redis)?;
        let opened = clients.iter().zip(&redis.urls).map(|(client, url)| {
            Master::new(client, lock.node_timeout)
                .map_err(|error| LockError::BadUrl(format!("{url}: {error}")))
        });
        let masters = opened.collect::<Result<_, _>>()?;
        let (prefix, waiter) =
            (Arc::from(lock.prefix.as_str()), Arc::from(Uuid::now_v7().simple().to_string()));
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

    /// See [`super::Locks::acquire`].
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        mut wanted: impl FnMut(&BTreeSet<ProductId>, Patience) -> Wanted,
    ) -> Result<Held, LockError> {
        let begun = Instant::now();
        let deadline = begun + self.wait;
        let mut is_first = true;
        loop {
            self.turns.forget();
            let patience = if Instant::now() < deadline { Patience::Left } else { Patience::Over };
            let whole = wanted(&BTreeSet::new(), patience);
            let mut attempted = self.attempt(&whole).await;
            if matches!(attempted, Err(LockError::Contended))
                && (is_first || patience == Patience::Over)
            {
                attempted = self.attempt_less(&whole, |refused| wanted(refused, patience)).await;
            }
            match attempted {
                Ok(held) => {
                    self.metrics
                        .lock_wait
                        .with_label_values(&["redlock"])
                        .observe(begun.elapsed().as_secs_f64());
                    return Ok(held);
                }
                Err(LockError::Contended) if patience == Patience::Left => {}
                Err(failure) => return Err(failure),
            }
            is_first = false;
            let retry_at = Instant::now() + LONGEST_RETRY.mul_f64(fastrand::f64().midpoint(1.0));
            tokio::select! {
                () = self.turns.come() => sleep(COALESCE).await,
                () = sleep_until(retry_at.min(deadline)) => {}
            }
        }
    }

    /// Claims what is wanted without what was refused of the whole.
    async fn attempt_less(
        self: &Arc<Self>,
        whole: &Wanted,
        mut wanted: impl FnMut(&BTreeSet<ProductId>) -> Wanted,
    ) -> Result<Held, LockError> {
        for refused in self.peek(whole).await {
            // As old as the whole: by that age it was told what is refused.
            let less = Wanted { since: whole.since, ..wanted(&refused) };
            if less.products.is_empty() {
                continue;
            }
            match self.attempt(&less).await {
                Err(LockError::Contended) => {}
                attempted => return attempted,
            }
        }
        Err(LockError::Contended)
    }

    /// Claims all that is wanted, once.
    async fn attempt(self: &Arc<Self>, wanted: &Wanted) -> Result<Held, LockError> {
        let (claim, begun) = (Arc::new(self.claim(wanted)), Instant::now());
        let asked = self.masters.iter().map(|master| master.lock(&claim, self.node_timeout));
        let vote = |answer: &Option<Answer>| answer.map(|answer| answer == Answer::Granted);
        let answers: Vec<_> =
            hear(asked, self.quorum(), vote).await.into_iter().map(Option::flatten).collect();
        let granted: Vec<_> =
            answers.iter().map(|answer| *answer == Some(Answer::Granted)).collect();
        let is_granted = self.is_quorum(&granted);
        if is_granted && begun.elapsed() < self.validity() {
            return Ok(Held::new(Arc::clone(self), claim, granted, begun));
        }
        let answered: Vec<_> = answers.iter().map(Option::is_some).collect();
        let is_refused = self.is_quorum(&answered) && !is_granted;
        // The masters do not agree on who has waited for longer, as they may not where ages differ by less than ways do.
        let is_split = granted.contains(&true) && !answers.contains(&Some(Answer::Held));
        let unlock =
            if is_refused && is_split && fastrand::bool() { Unlock::Done } else { Unlock::Failed };
        self.unlock(&claim, &granted, unlock).await;
        let (failure, cause) = if is_refused {
            (LockError::Contended, "contended")
        } else {
            (LockError::Unavailable, "unavailable")
        };
        self.metrics.lock_failures.with_label_values(&[cause]).inc();
        Err(failure)
    }

    /// The products that a majority of the masters would not grant, and, where they are more, those that any would not: masters may
    /// hold different ones, so that no majority refuses any of them, and none grants all.
    async fn peek(&self, wanted: &Wanted) -> Vec<BTreeSet<ProductId>> {
        let claim = self.claim(wanted);
        let patience = Master::patience(&claim, self.node_timeout);
        let asked = self.masters.iter().map(|master| async {
            // One whose last answer is overdue is asked nothing, so that requests cannot pile up at
            // it.
            if !master.is_settled() {
                return None;
            }
            timeout(patience, master.peek(&claim)).await.ok()?.ok()
        });
        let answers = hear(asked, self.quorum(), |answer| answer.as_ref().map(|_| true)).await;
        let answers: Vec<_> = answers.into_iter().flatten().flatten().collect();
        let mut refusals = HashMap::new();
        for number in answers.iter().flatten() {
            *refusals.entry(*number).or_insert(0) += 1;
        }
        let enough_to_refuse = (answers.len() + 1).saturating_sub(self.quorum());
        let refused_by = |enough: usize| {
            let is_refused =
                |number| refusals.get(&number).is_some_and(|masters| *masters >= enough);
            let products =
                wanted.products.iter().enumerate().filter(|(number, _)| is_refused(*number));
            products.map(|(_, product)| product.clone()).collect::<BTreeSet<_>>()
        };
        let mut refused = vec![refused_by(enough_to_refuse), refused_by(1)];
        refused.dedup();
        refused.retain(|products| !products.is_empty());
        refused
    }

    fn claim(&self, wanted: &Wanted) -> Claim {
        Claim {
            keys: wanted
                .products
                .iter()
                .map(|product| format!("{}{product}", self.prefix))
                .collect(),
            waited: wanted.since.elapsed(),
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

    /// Unlocks where it was granted; a master that is slow does so in the background. Where it was not, there may be a place in a queue to
    /// be given up, which nobody waits for.
    async fn unlock(&self, claim: &Arc<Claim>, granted: &[bool], unlock: Unlock) {
        let patience = Master::patience(claim, self.node_timeout);
        let start = |master: &Master| {
            let (master, claim) = (master.clone(), Arc::clone(claim));
            tokio::spawn(async move { master.unlock(&claim, unlock).await })
        };
        let (mut unlocking, masters) = (Vec::new(), self.masters.iter().zip(granted));
        for (master, granted) in masters {
            if *granted {
                let unlocked = timeout(patience, start(master));
                unlocking.push(async { matches!(unlocked.await, Ok(Ok(Ok(())))) });
            } else if unlock == Unlock::Done && master.is_settled() {
                start(master);
            }
        }
        let most = unlocking.len() / 2 + 1;
        hear(unlocking, most, |unlocked| Some(*unlocked)).await;
    }
}

/// Waits for answers, each of which is a vote or, `None`, no answer in fact, until so many as are `needed` say yes, or so many have
/// voted and not enough of them can say yes any more. Those that have not come then may take as long again, and are `None` after that. So
/// the slowest never sets the pace.
async fn hear<T>(
    asked: impl IntoIterator<Item = impl Future<Output = T>>,
    needed: usize,
    vote: impl Fn(&T) -> Option<bool>,
) -> Vec<Option<T>> {
    let begun = Instant::now();
    let numbered =
        asked.into_iter().enumerate().map(|(number, answer)| async move { (number, answer.await) });
    let mut coming: FuturesUnordered<_> = numbered.collect();
    let mut answers: Vec<_> = std::iter::repeat_with(|| None).take(coming.len()).collect();
    let (mut yes, mut no) = (0, 0);
    let mut closes_at = None;
    while let Ok(Some((number, answer))) = match closes_at {
        Some(at) => timeout_at(at, coming.next()).await,
        None => Ok(coming.next().await),
    } {
        match vote(&answer) {
            Some(true) => yes += 1,
            Some(false) => no += 1,
            None => {}
        }
        answers[number] = Some(answer);
        let is_decided = yes >= needed || (yes + no >= needed && yes + coming.len() < needed);
        if is_decided && closes_at.is_none() {
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
        let renewal = tokio::spawn(renew(
            Arc::clone(&redlock),
            Arc::clone(&claim),
            granted.clone(),
            asked,
            renewed,
        ));
        Self { redlock, claim, granted, since: Instant::now(), valid_until, renewal }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.valid_until.borrow().is_none_or(|until| Instant::now() >= until)
    }

    pub(crate) async fn release(self) {
        self.redlock
            .metrics
            .lock_hold
            .with_label_values(&["redlock"])
            .observe(self.since.elapsed().as_secs_f64());
        self.renewal.abort();
        self.redlock.unlock(&self.claim, &self.granted, Unlock::Done).await;
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
        let extending = granting.map(|(master, _)| async {
            timeout(patience, master.extend(&claim)).await.unwrap_or(false)
        });
        let extended = hear(extending, redlock.quorum(), |extended| Some(*extended)).await;
        let extended: Vec<_> =
            extended.into_iter().map(|extended| extended == Some(true)).collect();
        if since.elapsed() >= redlock.validity() || !redlock.is_quorum(&extended) {
            redlock.metrics.lock_failures.with_label_values(&["lost"]).inc();
            let _receiver_gone = renewed.send(None);
            tracing::warn!("the locks of a batch were lost before it was done");
            return;
        }
        let _receiver_gone = renewed.send(Some(begun + redlock.validity()));
        since = begun;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is heard where a majority of three is needed and each votes after a time, or never.
    async fn heard(votes: [(Option<bool>, Option<u64>); 3]) -> Vec<Option<Option<bool>>> {
        let asked = votes.map(|(vote, after_ms)| async move {
            match after_ms {
                Some(after_ms) => sleep(Duration::from_millis(after_ms)).await,
                None => std::future::pending().await,
            }
            vote
        });
        hear(asked, 2, |vote| *vote).await
    }

    #[tokio::test]
    async fn the_slowest_is_not_waited_for_once_a_majority_has_decided() {
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(
            heard([(yes, Some(0)), (yes, Some(1)), (yes, None)]).await,
            [Some(yes), Some(yes), None]
        );
        assert_eq!(
            heard([(no, Some(0)), (no, Some(1)), (yes, None)]).await,
            [Some(no), Some(no), None]
        );
    }

    #[tokio::test]
    async fn one_that_is_silent_does_not_count_against_what_the_others_say() {
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(
            heard([(None, Some(0)), (no, Some(1)), (yes, Some(50))]).await,
            [Some(None), Some(no), Some(yes)]
        );
        assert_eq!(
            heard([(None, Some(0)), (yes, Some(1)), (yes, Some(50))]).await,
            [Some(None), Some(yes), Some(yes)]
        );
    }
}
