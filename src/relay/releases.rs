//! Releases are published while they are owed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::{LIKELY_REFUSED_AFTER, Produced, Relay, RelayError, SWEEP_LEASE};
use crate::{
    domain::{Horizon, OrderEvent, TracedOrders},
    kafka::ProduceError,
    lifecycle::Shutdown,
    store::{ClaimedRelease, OrderStore, ReleaseSchedule, StoreError},
    telemetry::{Component, Metrics},
};

/// The shortest and the longest pause between passes.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The pause after a pass, in times of the pass.
const PAUSE_FACTOR: u32 = 4;
/// The most releases that a pass publishes.
const MAX_CLAIMED_RELEASES: u32 = 2_000;
/// The most releases of [`LIKELY_REFUSED_AFTER`] that are published in a period.
const MAX_LIKELY_REFUSED_PER_PERIOD: usize = 50;
const PERIOD: Duration = Duration::from_secs(60);

impl Relay {
    /// Publishes releases that have just become owed. If that fails, the [`ReleaseWatch`] publishes
    /// them when their lease ends.
    pub(crate) fn release_in_background(&self, events: Vec<OrderEvent>, traced: TracedOrders) {
        if !self.can_publish() {
            return;
        }
        let relay = self.clone();
        self.background.publish(events, async move |events| {
            let Produced { acknowledged, result } = relay.produce(&events, &traced).await;
            let due_at = Utc::now() + relay.wait_after(1);
            let published = acknowledged.iter().map(|event| ReleaseSchedule {
                order_id: event.order_id,
                sent: 1,
                due_at,
            });
            if !acknowledged.is_empty() {
                relay.store.schedule_releases(published.collect()).await?;
            }
            Ok(result?)
        });
    }
}

/// Publishes the events of owed releases again, until a worker reports that they are done. So a
/// message that the broker loses costs time and no stock.
///
/// Any number of processes may run it: each claims other releases.
pub struct ReleaseWatch {
    relay: Relay,
    horizon: Horizon,
    metrics: Metrics,
    /// How many releases of [`LIKELY_REFUSED_AFTER`] may still be published in this period.
    likely_refused_left: usize,
    period_ends_at: DateTime<Utc>,
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReleasePass {
    pub published: usize,
    /// Releases that wait for the next period.
    pub postponed: usize,
    /// Releases of orders that are beyond the horizon.
    pub expired: u64,
}

impl ReleaseWatch {
    pub fn new(relay: Relay, horizon: Horizon, metrics: Metrics) -> Self {
        Self {
            relay,
            horizon,
            metrics,
            likely_refused_left: MAX_LIKELY_REFUSED_PER_PERIOD,
            period_ends_at: DateTime::UNIX_EPOCH,
        }
    }

    /// Makes passes until a stop is requested.
    pub(crate) async fn run(mut self, health: Component, shutdown: Shutdown) {
        let mut delay = MIN_PAUSE;
        loop {
            health.ready();
            if shutdown.sleep(crate::backoff::jittered(delay, 0.5..1.5)).await.is_err() {
                return;
            }
            let begun = Instant::now();
            // A pass may be dropped at any point: its releases may be published again.
            let Ok(pass) = shutdown.interruptible(self.pass(Utc::now())).await else { return };
            delay = (begun.elapsed() * PAUSE_FACTOR).clamp(MIN_PAUSE, MAX_PAUSE);
            if let Err(error) = pass {
                tracing::warn!(%error, "owed releases not published");
                self.metrics.retries.with_label_values(&[error.dependency()]).inc();
            }
        }
    }

    /// One pass: gives up the releases beyond the horizon, publishes the due ones, 2,000 at most,
    /// and updates the gauges.
    ///
    /// Fails with [`RelayError`]. Then the claimed releases are due again when their lease ends.
    pub async fn pass(&mut self, now: DateTime<Utc>) -> Result<ReleasePass, RelayError> {
        if !self.relay.can_publish() {
            return Ok(ReleasePass::default());
        }
        let store = self.relay.store.clone();
        let claimed = store.claim_releases(now, now + SWEEP_LEASE, MAX_CLAIMED_RELEASES).await?;
        let decidable_from = self.horizon.decidable(now).start;
        let (decidable, expired): (Vec<_>, Vec<_>) =
            claimed.owed.into_iter().partition(|release| release.order_id >= decidable_from);
        let expired = give_up(&store, &expired, &self.metrics).await?;

        let Chosen { due, postponed: mut schedules } = self.choose(decidable, now);
        let postponed = schedules.len();
        let published = self.publish_due(&due, claimed.events).await?;
        // A release whose order cannot be read waits as long as a published one.
        schedules.extend(due.into_iter().map(|ClaimedRelease { order_id, sent }| {
            let sent = sent.saturating_add(1);
            ReleaseSchedule { order_id, sent, due_at: now + self.relay.wait_after(sent) }
        }));
        if !schedules.is_empty() {
            store.schedule_releases(schedules).await?;
        }
        if published > 0 {
            self.metrics.owed_releases.with_label_values(&["produced"]).inc_by(published as u64);
            tracing::warn!(orders = published, "releases published again, as they are still owed");
        }
        // The count reads all of them, so it comes last: it may fail, and holds up nothing.
        let state = store.owed_releases_state().await?;
        self.metrics.releases_owed.set(i64::try_from(state.owed).unwrap_or(i64::MAX));
        let age = state.oldest.map_or(0.0, |oldest| (now - oldest).as_seconds_f64().max(0.0));
        self.metrics.releases_owed_oldest.set(age);
        Ok(ReleasePass { published, postponed, expired })
    }

    /// Publishes the events of the due releases. Returns the number of the events.
    ///
    /// Fails with [`RelayError::Kafka`], unless the broker refuses events for their size alone.
    /// Those wait as published ones do, until a person raises the limit.
    async fn publish_due(
        &self,
        due: &[ClaimedRelease],
        mut events: Vec<OrderEvent>,
    ) -> Result<usize, RelayError> {
        let ids: BTreeSet<_> = due.iter().map(|release| release.order_id).collect();
        events.retain(|event| ids.contains(&event.order_id));
        if due.is_empty() {
            return Ok(0);
        }
        match self.relay.produce(&events, &TracedOrders::default()).await.result {
            Ok(()) => {}
            Err(error @ ProduceError::TooLarge { .. }) => {
                tracing::error!(%error, "releases too large to publish");
            }
            Err(error @ ProduceError::Kafka(_)) => return Err(error.into()),
        }
        Ok(events.len())
    }

    /// Chooses the releases that are published now. If the allowance of this period for releases
    /// that are likely refused is used up, the others wait: one period for each allowance of them.
    fn choose(&mut self, claimed: Vec<ClaimedRelease>, now: DateTime<Utc>) -> Chosen {
        if self.period_ends_at <= now {
            self.likely_refused_left = MAX_LIKELY_REFUSED_PER_PERIOD;
            self.period_ends_at = now + PERIOD;
        }
        let mut chosen = Chosen::default();
        for release in claimed {
            if release.sent < LIKELY_REFUSED_AFTER {
                chosen.due.push(release);
            } else if self.likely_refused_left > 0 {
                self.likely_refused_left -= 1;
                chosen.due.push(release);
            } else {
                let periods = chosen.postponed.len() / MAX_LIKELY_REFUSED_PER_PERIOD;
                let wait = PERIOD.saturating_mul(u32::try_from(periods).unwrap_or(u32::MAX));
                let ClaimedRelease { order_id, sent } = release;
                let due_at = self.period_ends_at + wait;
                chosen.postponed.push(ReleaseSchedule { order_id, sent, due_at });
            }
        }
        chosen
    }
}

/// Claimed releases, divided by whether they are published now.
#[derive(Debug, Default)]
struct Chosen {
    due: Vec<ClaimedRelease>,
    /// Their next try.
    postponed: Vec<ReleaseSchedule>,
}

/// Gives up releases beyond the horizon, which a person handles. Returns how many were not given up
/// before.
async fn give_up(
    store: &OrderStore,
    expired: &[ClaimedRelease],
    metrics: &Metrics,
) -> Result<u64, StoreError> {
    let Some(oldest) = expired.first() else { return Ok(0) };
    let ids: Vec<_> = expired.iter().map(|release| release.order_id).collect();
    let count = store.expire_releases(&ids).await?;
    if count > 0 {
        tracing::error!(
            orders = count,
            oldest = %oldest.order_id,
            "owed releases have expired, `stocklock verify` names their orders"
        );
        metrics.owed_releases.with_label_values(&["expired"]).inc_by(count);
    }
    Ok(count)
}
