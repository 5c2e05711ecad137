//! Orders that stay pending are produced again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::{
    LIKELY_REFUSED_AFTER, Relay, RelayError,
    oldest::{MEASURE_INTERVAL, OldestFound, OldestPending},
};
use crate::{
    domain::{Horizon, OrderId},
    lifecycle::Shutdown,
    store::StoreError,
    telemetry::{Component, Metrics},
};

/// The longest time from the making of an order's id to its commit. The scan stays behind it, so
/// that it misses no order.
const MAX_COMMIT_DELAY: Duration = Duration::from_secs(60);
/// The pause between passes. It is shorter if orders are produced again sooner.
const MAX_PASS_INTERVAL: Duration = Duration::from_secs(60);
/// The most orders that a pass produces again.
const MAX_PRODUCED_PER_PASS: usize = 500;
/// The most orders of [`LIKELY_REFUSED_AFTER`] among them.
const MAX_LIKELY_REFUSED_PER_PASS: usize = 50;
/// The most pending orders that are watched. The scan goes no further while there are so many.
const MAX_WATCHED_ORDERS: usize = 10_000;
/// Orders that one statement of a scan reads, and the statements of a pass.
const CHUNK_ORDERS: u32 = 10_000;
const MAX_CHUNKS_PER_PASS: usize = 100;
/// The pause after a statement of a scan, in times of the statement.
const PAUSE_FACTOR: u32 = 4;
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A scan that takes longer goes on in the next pass.
const MAX_SCAN_TIME: Duration = Duration::from_secs(30);
/// The most orders that one query asks about.
const MAX_ASKED_ORDERS: usize = 2_000;

/// Produces orders again that stay pending. A worker decides them, or repeats its decision.
///
/// A broker may have lost its last seconds, or the workers may have been away for longer than the
/// topic keeps messages.
///
/// The watch reads each order once, in the order of the primary key. An index of the pending orders
/// would cost two more writes for each order.
pub struct PendingWatch {
    relay: Relay,
    horizon: Horizon,
    metrics: Metrics,
    /// Orders up to this one are decided, or watched.
    scanned: OrderId,
    /// The pending orders that the scan has found.
    watched: BTreeMap<OrderId, Watched>,
    oldest: OldestPending,
}

/// How often a pending order was produced again, and when last.
#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    produced_at: Option<DateTime<Utc>>,
    times: u32,
}

impl Watched {
    /// When the order is produced again. The wait begins at the making of its id, and doubles each
    /// time.
    fn due_at(&self, id: OrderId, relay: &Relay) -> DateTime<Utc> {
        self.produced_at.unwrap_or(id.made_at()) + relay.wait_after(self.times)
    }
}

/// What a pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingPass {
    pub produced: usize,
    /// Orders that became too old to be decided.
    pub expired: usize,
    /// Whether the scan has come to the end of the orders.
    pub is_complete: bool,
}

impl PendingWatch {
    /// Watches orders that are pending for longer than the relay's `again_after`.
    pub fn new(relay: Relay, horizon: Horizon, metrics: Metrics) -> Self {
        let scanned = OrderId::first_of(DateTime::UNIX_EPOCH);
        let oldest = OldestPending::new(metrics.pending_oldest.clone());
        Self { relay, horizon, metrics, scanned, watched: BTreeMap::new(), oldest }
    }

    /// Makes passes until a stop is requested.
    pub(crate) async fn run(mut self, health: Component, shutdown: Shutdown) {
        let interval = MAX_PASS_INTERVAL.min(self.relay.again_after / 2);
        let mut delay = interval;
        loop {
            health.ready();
            let rest = self.rest(crate::backoff::jittered(delay, 0.5..1.5));
            if shutdown.interruptible(rest).await.is_err() {
                return;
            }
            // A pass may be dropped at any point: its orders may be produced again.
            let Ok(pass) = shutdown.interruptible(self.pass(Utc::now())).await else { return };
            delay = match pass {
                Ok(pass) if pass.is_complete => interval,
                Ok(_) => Duration::ZERO,
                Err(error) => {
                    tracing::warn!(%error, "pass over pending orders failed");
                    self.metrics.retries.with_label_values(&[error.dependency()]).inc();
                    interval
                }
            };
        }
    }

    /// Waits between passes, and measures the age of the oldest pending order meanwhile.
    async fn rest(&mut self, duration: Duration) {
        let ends_at = Instant::now() + duration;
        loop {
            let left = ends_at.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(MEASURE_INTERVAL)).await;
            if left <= MEASURE_INTERVAL {
                return;
            }
            let (watched, now) = (self.watched.keys().copied(), Utc::now());
            let decidable_from = self.horizon.decidable(now).start;
            let store = &self.relay.store;
            if let Err(error) = self.oldest.measure(store, watched, decidable_from, now).await {
                tracing::debug!(%error, "age of the oldest pending order not measured");
            }
        }
    }

    /// One pass: reads the orders that came since the last pass, and produces due orders again, 500
    /// at most.
    ///
    /// Fails with [`RelayError`]. The next pass goes on at the same point.
    pub async fn pass(&mut self, now: DateTime<Utc>) -> Result<PendingPass, RelayError> {
        self.forget_decided().await?;
        let expired = self.forget_expired(now);
        let is_complete = self.scan(now).await?;
        let oldest = match self.watched.keys().next() {
            None if is_complete => self.find_young().await?,
            order => OldestFound { order: order.copied(), scanned_to: self.scanned },
        };
        self.oldest.set(oldest, now);
        let produced = self.produce_due(now).await?;
        Ok(PendingPass { produced, expired, is_complete })
    }

    async fn forget_decided(&mut self) -> Result<(), StoreError> {
        let watched: Vec<_> = self.watched.keys().copied().collect();
        for ids in watched.chunks(MAX_ASKED_ORDERS) {
            for decided in self.relay.store.find_decided(ids).await? {
                self.watched.remove(&decided.order_id);
            }
        }
        Ok(())
    }

    /// Stops watching orders that are too old to be decided. `verify` reports them, and a person
    /// handles them. Returns their number.
    fn forget_expired(&mut self, now: DateTime<Utc>) -> usize {
        let young = self.watched.split_off(&self.horizon.decidable(now).start);
        let expired = std::mem::replace(&mut self.watched, young);
        if let Some(oldest) = expired.keys().next() {
            tracing::error!(
                orders = expired.len(),
                %oldest,
                "pending orders are too old to be decided"
            );
            self.metrics
                .pending_orders
                .with_label_values(&["expired"])
                .inc_by(expired.len() as u64);
        }
        expired.len()
    }

    /// Reads on from the end of the last scan. Returns whether it came to the end of the orders.
    async fn scan(&mut self, now: DateTime<Utc>) -> Result<bool, StoreError> {
        let settled = OrderId::first_of(now - MAX_COMMIT_DELAY.min(self.relay.again_after));
        self.scanned = self.scanned.max(self.horizon.decidable(now).start);
        let scanning = Instant::now();
        for _ in 0..MAX_CHUNKS_PER_PASS {
            if scanning.elapsed() >= MAX_SCAN_TIME {
                break;
            }
            let room = MAX_WATCHED_ORDERS - self.watched.len();
            if room == 0 {
                return Ok(true);
            }
            let begun = Instant::now();
            let scan =
                self.relay.store.scan_pending(self.scanned, settled, CHUNK_ORDERS, room).await?;
            self.watched.extend(scan.pending.into_iter().map(|id| (id, Watched::default())));
            let Some(last) = scan.last else { return Ok(true) };
            self.scanned = last;
            tokio::time::sleep((begun.elapsed() * PAUSE_FACTOR).min(MAX_PAUSE)).await;
        }
        Ok(false)
    }

    /// Scans for the oldest pending order among those that are too young to be watched.
    async fn find_young(&self) -> Result<OldestFound, StoreError> {
        let mut found = OldestFound { order: None, scanned_to: self.scanned };
        let end = OrderId::first_of(DateTime::<Utc>::MAX_UTC);
        let scanning = Instant::now();
        for _ in 0..MAX_CHUNKS_PER_PASS {
            if scanning.elapsed() >= MAX_SCAN_TIME {
                break;
            }
            let store = &self.relay.store;
            let scan = store.scan_pending(found.scanned_to, end, CHUNK_ORDERS, 1).await?;
            found.order = scan.pending.first().copied();
            match scan.last {
                Some(last) if found.order.is_none() => found.scanned_to = last,
                _ => break,
            }
        }
        Ok(found)
    }

    /// Produces due orders again. Returns the number of their events.
    async fn produce_due(&mut self, now: DateTime<Utc>) -> Result<usize, RelayError> {
        let due =
            self.watched.iter().filter(|(id, watched)| watched.due_at(**id, &self.relay) <= now);
        // Orders that were not produced again yet come first, then those that have waited longest.
        let mut due: Vec<_> = due.map(|(id, watched)| (*id, *watched)).collect();
        due.sort_unstable_by_key(|(id, watched)| (watched.produced_at, *id));
        let mut likely_refused = 0;
        due.retain(|(_, watched)| {
            let is_likely_refused = watched.times >= LIKELY_REFUSED_AFTER;
            likely_refused += usize::from(is_likely_refused);
            !is_likely_refused || likely_refused <= MAX_LIKELY_REFUSED_PER_PASS
        });
        due.truncate(MAX_PRODUCED_PER_PASS);
        if due.is_empty() {
            return Ok(0);
        }
        let ids: Vec<_> = due.into_iter().map(|(id, _)| id).collect();
        let events = self.relay.store.find_pending(&ids).await?;
        self.relay.publish(&events).await?;
        for id in &ids {
            let watched = self.watched.entry(*id).or_default();
            *watched = Watched { produced_at: Some(now), times: watched.times.saturating_add(1) };
        }
        self.metrics.pending_orders.with_label_values(&["produced"]).inc_by(events.len() as u64);
        tracing::warn!(
            orders = events.len(),
            watched = self.watched.len(),
            "orders produced again, as they are still pending"
        );
        Ok(events.len())
    }
}
