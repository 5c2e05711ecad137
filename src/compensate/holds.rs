//! Ends holds that are due.

use std::{pin::Pin, time::Duration};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::Compensator;
use crate::{
    backoff::{Backoff, jittered},
    crash_point::crash_point,
    domain::{OrderId, TracedOrders},
    lifecycle::Shutdown,
    relay::COMMITTER_LEASE,
    store::{DueHold, StoreError},
    telemetry::Component,
};

/// The pause between two passes of the sweep.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The most holds that one transaction ends, and one page has.
const MAX_ENDED_HOLDS: u32 = 500;
/// The least pause between two counts of the open holds. A count reads all of them, so the pause is
/// at least [`PAUSE_FACTOR`] times the count.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);
const PAUSE_FACTOR: u32 = 100;
/// The least time between two log lines about orders that the store refuses to change.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Ends holds that are due, and measures the open ones.
///
/// Any number of compensators may run it: each leaves alone the orders that another has locked.
pub struct HoldSweep {
    compensator: Compensator,
    /// How many holds one transaction ends. It falls while transactions fail.
    batch: u32,
    /// The end of the oldest due hold, as far as it is known.
    oldest_due: Option<DateTime<Utc>>,
    count_at: Instant,
    /// When orders were logged that the store refuses to change.
    refusals_logged_at: Option<Instant>,
}

/// What a pass did.
#[derive(Default)]
struct Ended {
    orders: usize,
    /// The orders that the store refuses to change.
    refused: Vec<OrderId>,
}

impl HoldSweep {
    pub fn new(compensator: Compensator) -> Self {
        Self {
            compensator,
            batch: MAX_ENDED_HOLDS,
            oldest_due: None,
            count_at: Instant::now(),
            refusals_logged_at: None,
        }
    }

    /// Makes passes until a stop is requested.
    pub(crate) async fn run(mut self, health: Component, shutdown: Shutdown) {
        let mut failures = Backoff::default();
        loop {
            health.ready();
            // A pass that is dropped ends no hold, or leaves its publishing to ingest.
            let Ok(passed) = shutdown.interruptible(self.pass_now()).await else { return };
            let delay = match passed {
                Ok(()) => {
                    failures = Backoff::default();
                    self.batch = (self.batch * 2).min(MAX_ENDED_HOLDS);
                    jittered(SWEEP_INTERVAL, 0.5..1.0)
                }
                Err(error) => {
                    tracing::warn!(%error, "due holds not ended");
                    let metrics = &self.compensator.metrics;
                    metrics.retries.with_label_values(&["order_store"]).inc();
                    self.batch = (self.batch / 2).max(1);
                    self.observe_lag(Utc::now());
                    failures.next_delay().max(SWEEP_INTERVAL)
                }
            };
            if shutdown.sleep(delay).await.is_err() {
                return;
            }
        }
    }

    /// A pass by the clock of the order store, which all compensators share.
    async fn pass_now(&mut self) -> Result<(), StoreError> {
        let now = self.compensator.store.clock().await?;
        self.pass(now).await?;
        Ok(())
    }

    /// Ends the holds that are due at `now`, publishes their releases and announcements, and
    /// updates the gauges. Returns how many holds it ended.
    ///
    /// Passes over orders that the store refuses to change. Fails with the other errors of
    /// [`crate::store::OrderStore::end_holds`].
    pub async fn pass(&mut self, now: DateTime<Utc>) -> Result<usize, StoreError> {
        let (mut ended, mut after) = (Ended::default(), None);
        loop {
            let page = self.compensator.store.find_due_holds(now, after, self.batch).await?;
            if after.is_none() {
                self.oldest_due = page.first().map(|hold| hold.expires_at);
                self.observe_lag(now);
            }
            self.end(&page, now, &mut ended).await?;
            if page.len() < self.batch as usize {
                break;
            }
            after = page.last().copied();
        }
        self.log_refusals(&ended.refused);
        self.count().await;
        Ok(ended.orders)
    }

    /// Ends due holds. A page that the store refuses is split in halves, until the refused order is
    /// alone.
    fn end<'a>(
        &'a self,
        due: &'a [DueHold],
        now: DateTime<Utc>,
        ended: &'a mut Ended,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>> {
        Box::pin(async move {
            if due.is_empty() {
                return Ok(());
            }
            let Compensator { store, horizon, .. } = &self.compensator;
            match store.end_holds(due, now, *horizon, COMMITTER_LEASE).await {
                Ok(changed) => {
                    crash_point("holds.committed");
                    ended.orders += changed.moved.iter().map(|moved| moved.count).sum::<usize>();
                    self.compensator.publish_changes(changed, now, TracedOrders::default());
                    Ok(())
                }
                Err(StoreError::Refused(_) | StoreError::Corrupt(_)) if due.len() > 1 => {
                    let (first, second) = due.split_at(due.len() / 2);
                    self.end(first, now, ended).await?;
                    self.end(second, now, ended).await
                }
                Err(StoreError::Refused(_) | StoreError::Corrupt(_)) => {
                    ended.refused.extend(due.iter().map(|hold| hold.order_id));
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
    }

    fn observe_lag(&self, now: DateTime<Utc>) {
        let lag = self.oldest_due.map_or(0.0, |due| (now - due).as_seconds_f64().max(0.0));
        self.compensator.metrics.hold_expiry_lag.set(lag);
    }

    /// Logs the orders whose holds cannot be ended, once a minute at most.
    fn log_refusals(&mut self, refused: &[OrderId]) {
        let Some(first) = refused.first() else { return };
        if self.refusals_logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.refusals_logged_at = Some(Instant::now());
            let orders = refused.len();
            tracing::error!(orders, order_id = %first, "the order store refuses to end due holds");
        }
    }

    /// Counts the open holds, if it is time.
    async fn count(&mut self) {
        let begun = Instant::now();
        if begun < self.count_at {
            return;
        }
        match self.compensator.store.count_holds().await {
            Ok(open) => {
                self.compensator.metrics.holds_open.set(i64::try_from(open).unwrap_or(i64::MAX));
            }
            Err(error) => tracing::warn!(%error, "open holds not counted"),
        }
        self.count_at = Instant::now() + (begun.elapsed() * PAUSE_FACTOR).max(COUNT_INTERVAL);
    }
}
