use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::{Produced, Relay, RelayError, SWEEP_LEASE};
use crate::{
    domain::{Horizon, OrderEvent, OrderId},
    kafka::ProduceError,
    lifecycle::Shutdown,
    store::{OrderStore, Schedule, StoreError},
    telemetry::{Component, Metrics},
};

/// Between passes; more where a pass takes long.
const PASS_EVERY: Duration = Duration::from_secs(1);
/// How much longer than its last pass the watch rests.
const REST: u32 = 4;
const MAX_REST: Duration = Duration::from_secs(5);
/// Releases that a pass publishes at most.
const CLAIM_MAX: u32 = 2_000;
/// A release that was published so often, and is owed still, is likely to be refused each time. Of
/// those few are published in a period, so that they do not fill a lane's allowance of dead
/// letters.
const STUBBORN_AFTER: u32 = 3;
const STUBBORN_MAX: usize = 50;
const STUBBORN_PERIOD: Duration = Duration::from_secs(60);

impl Relay {
    /// Publishes releases that have just become owed. Where it fails, the [`ReleaseWatch`]
    /// publishes them when their lease has run out.
    pub(crate) fn release_in_background(&self, events: Vec<OrderEvent>) {
        let relay = self.clone();
        self.in_background(events, async move |events| {
            let Produced { acknowledged, result } = relay.produce(&events).await;
            let due_at = Utc::now() + relay.wait_after(1);
            let published = acknowledged.iter().map(|event| Schedule {
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

/// Publishes the events of owed releases again, until a worker has reported each as done: what the
/// broker forgot costs time and no stock. Any number of processes may do so at once: each takes
/// others.
pub struct ReleaseWatch {
    relay: Relay,
    horizon: Horizon,
    metrics: Metrics,
    /// Stubborn releases that may be published until the period is over.
    stubborn_left: usize,
    period_ends_at: DateTime<Utc>,
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReleasePass {
    pub published: usize,
    /// Stubborn releases that have to wait.
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
            stubborn_left: STUBBORN_MAX,
            period_ends_at: DateTime::UNIX_EPOCH,
        }
    }

    /// Makes passes until a stop is requested.
    pub(crate) async fn run(mut self, health: Component, shutdown: Shutdown) {
        let mut delay = PASS_EVERY;
        loop {
            health.ready();
            if shutdown.sleep(crate::backoff::jittered(delay, 0.5..1.5)).await.is_err() {
                return;
            }
            let begun = Instant::now();
            // A pass that is broken off has done no harm: what it was publishing may be published
            // again.
            let Ok(pass) = shutdown.interruptible(self.pass(Utc::now())).await else { return };
            delay = (begun.elapsed() * REST).clamp(PASS_EVERY, MAX_REST);
            if let Err(error) = pass {
                tracing::warn!(%error, "owed releases were not published");
                let dependency =
                    if let RelayError::Store(_) = error { "order_store" } else { "kafka" };
                self.metrics.retries.with_label_values(&[dependency]).inc();
            }
        }
    }

    /// One pass: publishes releases that are due, as many as a pass may, gives up those beyond the
    /// horizon, and keeps the gauge.
    pub async fn pass(&mut self, now: DateTime<Utc>) -> Result<ReleasePass, RelayError> {
        let store = &self.relay.store;
        let owed = store.count_owed_releases().await?;
        self.metrics.releases_owed.set(i64::try_from(owed).unwrap_or(i64::MAX));
        let mut claimed = store.claim_releases(now, now + SWEEP_LEASE, CLAIM_MAX).await?;
        let decidable_from = self.horizon.decidable(now).start;
        let expired = claimed
            .owed
            .iter()
            .map(|(id, _)| *id)
            .filter(|id| *id < decidable_from)
            .collect::<Vec<_>>();
        let expired = give_up(store, &expired, &self.metrics).await?;
        claimed.owed.retain(|(id, _)| *id >= decidable_from);

        let (due, mut schedules) = self.choose(claimed.owed, now);
        let postponed = schedules.len();
        let ids: BTreeSet<_> = due.iter().map(|(id, _)| *id).collect();
        claimed.events.retain(|event| ids.contains(&event.order_id));
        if !due.is_empty() {
            match self.relay.produce(&claimed.events).await.result {
                // They wait as well, until somebody has raised the limit.
                Err(error @ ProduceError::TooLarge { .. }) => {
                    tracing::error!(%error, "releases were not published");
                }
                result => result?,
            }
        }
        // Those whose order cannot be read wait as well.
        schedules.extend(due.into_iter().map(|(order_id, sent)| {
            let sent = sent.saturating_add(1);
            Schedule { order_id, sent, due_at: now + self.relay.wait_after(sent) }
        }));
        let store = &self.relay.store;
        if !schedules.is_empty() {
            store.schedule_releases(schedules).await?;
        }
        let published = claimed.events.len();
        if published > 0 {
            self.metrics.owed_releases.with_label_values(&["produced"]).inc_by(published as u64);
            tracing::warn!(
                orders = published,
                owed,
                "releases published again, as they are still owed"
            );
        }
        Ok(ReleasePass { published, postponed, expired })
    }

    /// Divides claimed releases into those to be published and the schedules of stubborn ones that
    /// have to wait: for one period more each time that the allowance of a period is used up.
    fn choose(
        &mut self,
        claimed: Vec<(OrderId, u32)>,
        now: DateTime<Utc>,
    ) -> (Vec<(OrderId, u32)>, Vec<Schedule>) {
        if self.period_ends_at <= now {
            (self.stubborn_left, self.period_ends_at) = (STUBBORN_MAX, now + STUBBORN_PERIOD);
        }
        let (mut due, mut schedules) = (Vec::with_capacity(claimed.len()), Vec::new());
        for (order_id, sent) in claimed {
            if sent < STUBBORN_AFTER {
                due.push((order_id, sent));
            } else if self.stubborn_left > 0 {
                self.stubborn_left -= 1;
                due.push((order_id, sent));
            } else {
                let periods = u32::try_from(schedules.len() / STUBBORN_MAX).unwrap_or(u32::MAX);
                let due_at = self.period_ends_at + STUBBORN_PERIOD.saturating_mul(periods);
                schedules.push(Schedule { order_id, sent, due_at });
            }
        }
        (due, schedules)
    }
}

/// Releases beyond the horizon are left to people. Answers how many are given up now.
async fn give_up(
    store: &OrderStore,
    ids: &[OrderId],
    metrics: &Metrics,
) -> Result<u64, StoreError> {
    let Some(oldest) = ids.first() else { return Ok(0) };
    let expired = store.expire_releases(ids).await?;
    if expired > 0 {
        tracing::error!(orders = expired, %oldest, "releases are still owed and too old to be done, `stocklock verify` names their orders");
        metrics.owed_releases.with_label_values(&["expired"]).inc_by(expired);
    }
    Ok(expired)
}
