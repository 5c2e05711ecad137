//! Ends holds that are due.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::Compensator;
use crate::{
    backoff::{Backoff, jittered},
    crash_point::crash_point,
    lifecycle::Shutdown,
    relay::COMMITTER_LEASE,
    store::StoreError,
    telemetry::Component,
};

/// The pause between two passes of the sweep.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The most holds that one transaction ends.
const MAX_ENDED_HOLDS: u32 = 500;
/// The least pause between two counts of the open holds. A count reads all of them, so the pause is
/// at least [`PAUSE_FACTOR`] times the count.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);
const PAUSE_FACTOR: u32 = 100;

/// Ends holds that are due, and measures the open ones.
///
/// Any number of compensators may run it: each leaves alone the orders that another has locked.
pub struct HoldSweep {
    compensator: Compensator,
    count_at: Instant,
}

impl HoldSweep {
    pub fn new(compensator: Compensator) -> Self {
        Self { compensator, count_at: Instant::now() }
    }

    /// Makes passes until a stop is requested.
    pub(crate) async fn run(mut self, health: Component, shutdown: Shutdown) {
        let mut failures = Backoff::default();
        loop {
            health.ready();
            // A pass that is dropped ends no hold, or leaves its publishing to ingest.
            let delay = match shutdown.interruptible(self.pass(Utc::now())).await {
                Err(_) => return,
                Ok(Ok(ended)) => {
                    failures = Backoff::default();
                    let has_more = ended >= MAX_ENDED_HOLDS as usize;
                    if has_more { Duration::ZERO } else { jittered(SWEEP_INTERVAL, 0.5..1.0) }
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "due holds not ended");
                    let retries = &self.compensator.metrics.retries;
                    retries.with_label_values(&["order_store"]).inc();
                    failures.next_delay().max(SWEEP_INTERVAL)
                }
            };
            if shutdown.sleep(delay).await.is_err() {
                return;
            }
        }
    }

    /// One pass: ends up to 500 due holds, publishes their releases and announcements, and updates
    /// the gauges. Returns how many holds it ended.
    ///
    /// Fails as [`crate::store::OrderStore::end_due_holds`] does.
    pub async fn pass(&mut self, now: DateTime<Utc>) -> Result<usize, StoreError> {
        let Compensator { store, horizon, metrics, .. } = &self.compensator;
        let expires_at = store.next_expiry().await?;
        let lag = expires_at.map_or(0.0, |due| (now - due).as_seconds_f64().max(0.0));
        metrics.hold_expiry_lag.set(lag);
        let mut ended = 0;
        if expires_at.is_some_and(|due| due <= now) {
            let limit = MAX_ENDED_HOLDS;
            let holds = store.end_due_holds(now, *horizon, limit, COMMITTER_LEASE).await?;
            crash_point("holds.committed");
            ended = holds.changed.moved.iter().map(|moved| moved.count).sum();
            self.compensator.publish_changes(holds.changed, now);
        }
        self.count().await?;
        Ok(ended)
    }

    /// Counts the open holds, if it is time.
    async fn count(&mut self) -> Result<(), StoreError> {
        let begun = Instant::now();
        if begun < self.count_at {
            return Ok(());
        }
        let open = self.compensator.store.count_holds().await?;
        self.compensator.metrics.holds_open.set(i64::try_from(open).unwrap_or(i64::MAX));
        self.count_at = begun + (begun.elapsed() * PAUSE_FACTOR).max(COUNT_INTERVAL);
        Ok(())
    }
}
