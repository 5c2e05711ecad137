use std::sync::Arc;

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    master::{KeyClaim, QueuePlaces},
    redlock::Redlock,
};

/// All keys of a batch, held on a majority of the masters.
///
/// A task renews them at a third of the TTL. They are lost, all at once and for good, at the first
/// renewal that fails on a majority or comes after the validity is over.
#[derive(Debug)]
pub struct HeldKeys {
    redlock: Arc<Redlock>,
    claim: Arc<KeyClaim>,
    /// Whether each master granted the claim, in the order of `redis.urls`.
    granted: Vec<bool>,
    acquired_at: Instant,
    /// `None` once the keys are lost.
    valid_until: watch::Receiver<Option<Instant>>,
    renewal: JoinHandle<()>,
}

impl HeldKeys {
    /// `claimed_at` is the time before the first master was asked: the validity counts from there.
    pub(super) fn new(
        redlock: Arc<Redlock>,
        claim: Arc<KeyClaim>,
        granted: Vec<bool>,
        claimed_at: Instant,
    ) -> Self {
        let (renewed, valid_until) = watch::channel(Some(claimed_at + redlock.validity()));
        let renewal = tokio::spawn(renew(
            Arc::clone(&redlock),
            Arc::clone(&claim),
            granted.clone(),
            claimed_at,
            renewed,
        ));
        Self { redlock, claim, granted, acquired_at: Instant::now(), valid_until, renewal }
    }

    /// Whether another holder may have the keys by now.
    pub(super) fn is_lost(&self) -> bool {
        self.valid_until.borrow().is_none_or(|until| Instant::now() >= until)
    }

    /// Stops the renewal and releases the keys. A slow master does so in the background.
    pub(super) async fn release(self) {
        self.redlock
            .metrics()
            .lock_hold
            .with_label_values(&["redlock"])
            .observe(self.acquired_at.elapsed().as_secs_f64());
        self.renewal.abort();
        self.redlock.unlock(&self.claim, &self.granted, QueuePlaces::Leave).await;
    }
}

impl Drop for HeldKeys {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// Renews a claim until it is lost. `renewed` gets the end of the validity after each renewal, and
/// `None` at the loss. There is no second attempt: another holder may have the keys.
async fn renew(
    redlock: Arc<Redlock>,
    claim: Arc<KeyClaim>,
    granted: Vec<bool>,
    mut renewed_at: Instant,
    renewed: watch::Sender<Option<Instant>>,
) {
    loop {
        sleep_until(renewed_at + redlock.renewal_interval()).await;
        let begun = Instant::now();
        let is_extended = redlock.extend(&claim, &granted).await;
        if renewed_at.elapsed() >= redlock.validity() || !is_extended {
            redlock.metrics().lock_failures.with_label_values(&["lost"]).inc();
            let _receiver_gone = renewed.send(None);
            tracing::warn!(
                keys = claim.keys.len(),
                "a batch lost its locks before it released them"
            );
            return;
        }
        let _receiver_gone = renewed.send(Some(begun + redlock.validity()));
        renewed_at = begun;
    }
}
