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
    domain::{Horizon, OrderId, TracedOrders},
    lifecycle::Shutdown,
    store::{StoreError, UnscannedOrder},
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
/// would cost two more writes for each order. The scan passes over orders whose callers made the
/// ids at another time. The table `unscanned_orders` has these, and each pass reads it.
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

/// A pending order: since when it is pending, how often it was produced again, and when last.
#[derive(Debug, Clone, Copy)]
struct Watched {
    since: DateTime<Utc>,
    produced_at: Option<DateTime<Utc>>,
    times: u32,
}

impl Watched {
    fn since(since: DateTime<Utc>) -> Self {
        Self { since, produced_at: None, times: 0 }
    }

    /// When the order is produced again. The wait doubles each time.
    fn due_at(&self, relay: &Relay) -> DateTime<Utc> {
        self.produced_at.unwrap_or(self.since) + relay.wait_after(self.times)
    }
}

/// How far the scan stays behind the present.
fn scan_delay(again_after: Duration) -> Duration {
    MAX_COMMIT_DELAY.min(again_after)
}

/// Half of the delay is for the age of an id, and half for the time until its order is committed.
pub(super) fn max_id_skew(again_after: Duration) -> Duration {
    scan_delay(again_after) / 2
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
            let watched = self.watched.iter().map(|(id, watched)| (*id, watched.since)).collect();
            let now = Utc::now();
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
        self.watch_unscanned(now).await?;
        let is_complete = self.scan(now).await?;
        let oldest = match self.watched.values().map(|watched| watched.since).min() {
            None if is_complete => self.find_young().await?,
            since => OldestFound { since, scanned_to: self.scanned },
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

    /// Watches the pending orders that the scan would pass over. Forgets those that are no longer
    /// pending, or too old to be decided.
    async fn watch_unscanned(&mut self, now: DateTime<Utc>) -> Result<(), StoreError> {
        let settled = now - self.scan_delay();
        let decidable_from = self.horizon.decidable(now).start;
        let mut after = OrderId::first_of(DateTime::UNIX_EPOCH);
        for _ in 0..MAX_CHUNKS_PER_PASS {
            let begun = Instant::now();
            let orders = self.relay.store.read_unscanned(after, CHUNK_ORDERS).await?;
            let Some(last) = orders.last() else { return Ok(()) };
            after = last.order_id;
            let is_open =
                |order: &&UnscannedOrder| order.is_pending && order.order_id >= decidable_from;
            let done = orders.iter().filter(|order| !is_open(order));
            let done: Vec<_> = done.map(|order| order.order_id).collect();
            for ids in done.chunks(MAX_ASKED_ORDERS) {
                self.relay.store.forget_unscanned(ids).await?;
            }
            for order in orders.iter().filter(is_open) {
                if order.created_at <= settled && self.watched.len() < MAX_WATCHED_ORDERS {
                    let watched = Watched::since(order.created_at);
                    self.watched.entry(order.order_id).or_insert(watched);
                }
            }
            tokio::time::sleep((begun.elapsed() * PAUSE_FACTOR).min(MAX_PAUSE)).await;
        }
        Ok(())
    }

    fn scan_delay(&self) -> Duration {
        scan_delay(self.relay.again_after)
    }

    /// Reads on from the end of the last scan. Returns whether it came to the end of the orders.
    async fn scan(&mut self, now: DateTime<Utc>) -> Result<bool, StoreError> {
        let settled = OrderId::first_of(now - self.scan_delay());
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
            for id in scan.pending {
                self.watched.entry(id).or_insert(Watched::since(id.made_at()));
            }
            let Some(last) = scan.last else { return Ok(true) };
            self.scanned = last;
            tokio::time::sleep((begun.elapsed() * PAUSE_FACTOR).min(MAX_PAUSE)).await;
        }
        Ok(false)
    }

    /// Scans for the oldest pending order among those that are too young to be watched.
    async fn find_young(&self) -> Result<OldestFound, StoreError> {
        let mut found = OldestFound { since: None, scanned_to: self.scanned };
        let end = OrderId::first_of(DateTime::<Utc>::MAX_UTC);
        let scanning = Instant::now();
        for _ in 0..MAX_CHUNKS_PER_PASS {
            if scanning.elapsed() >= MAX_SCAN_TIME {
                break;
            }
            let store = &self.relay.store;
            let scan = store.scan_pending(found.scanned_to, end, CHUNK_ORDERS, 1).await?;
            found.since = scan.pending.first().map(|id| id.made_at());
            match scan.last {
                Some(last) if found.since.is_none() => found.scanned_to = last,
                _ => break,
            }
        }
        Ok(found)
    }

    /// Produces due orders again. Returns the number of their events.
    async fn produce_due(&mut self, now: DateTime<Utc>) -> Result<usize, RelayError> {
        let due = self.watched.iter().filter(|(_, watched)| watched.due_at(&self.relay) <= now);
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
        if due.is_empty() || !self.relay.can_publish() {
            return Ok(0);
        }
        let ids: Vec<_> = due.into_iter().map(|(id, _)| id).collect();
        let events = self.relay.store.find_pending(&ids).await?;
        self.relay.produce(&events, &TracedOrders::default()).await.result?;
        for id in &ids {
            if let Some(watched) = self.watched.get_mut(id) {
                watched.produced_at = Some(now);
                watched.times = watched.times.saturating_add(1);
            }
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
