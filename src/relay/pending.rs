use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::{
    Relay, RelayError,
    oldest::{LOOK_EVERY, Oldest},
};
use crate::{
    domain::{Horizon, OrderId},
    lifecycle::Shutdown,
    store::StoreError,
    telemetry::{Component, Metrics},
};

/// How long after its id was made an order may still be committed, and be found.
const LATEST_COMMIT: Duration = Duration::from_secs(60);
/// Between turns; less where orders are produced again sooner.
const TURN_EVERY: Duration = Duration::from_secs(60);
/// Orders that a turn produces again.
const PRODUCED_MAX: usize = 500;
/// An order that was produced again so often, and is pending still, is likely to be refused each time. Of those a turn produces fewer, so
/// that they do not fill a lane's allowance of dead letters.
const STUBBORN_AFTER: u32 = 3;
const STUBBORN_MAX: usize = 50;
/// Pending orders that are remembered; while there are so many, the scan goes no further.
const WATCHED_MAX: usize = 10_000;
/// Orders that a scan reads in one statement, and statements of a turn.
const CHUNK: u32 = 10_000;
const CHUNKS_MAX: usize = 100;
/// How much longer than its last statement a scan rests.
const REST: u32 = 4;
const LONGEST_REST: Duration = Duration::from_secs(5);
/// After so long a turn goes on in the next.
const LONGEST_SCAN: Duration = Duration::from_secs(30);
/// Orders that one query asks about.
const ASK_MAX: usize = 2_000;

/// Produces orders again that stay pending: a broker may have lost its last seconds, or the workers may have been away for longer
/// than the topic keeps messages. The worker decides them, or repeats what it decided.
///
/// Every order is read once, in the order of the primary key: an index of the pending ones would cost each order two writes.
pub struct PendingWatch {
    relay: Relay,
    horizon: Horizon,
    metrics: Metrics,
    /// Orders up to this one are final, but for those that are watched.
    scanned: OrderId,
    /// Pending orders, and what was done about each.
    watched: BTreeMap<OrderId, Watched>,
    oldest: Oldest,
}

#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    produced_at: Option<DateTime<Utc>>,
    times: u32,
}

impl Watched {
    /// When the order is to be produced again: after its making, and after each time, twice as long
    /// as before it.
    fn due_at(&self, id: OrderId, relay: &Relay) -> DateTime<Utc> {
        self.produced_at.unwrap_or(id.made_at()) + relay.wait_after(self.times)
    }
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub produced: usize,
    /// Orders that became too old to be decided.
    pub expired: usize,
    /// Whether all orders were read, and not a part of them.
    pub is_complete: bool,
}

impl PendingWatch {
    /// Watches orders that are pending for longer than the relay's `again_after`.
    pub fn new(relay: Relay, horizon: Horizon, metrics: Metrics) -> Self {
        let scanned = OrderId::first_of(DateTime::UNIX_EPOCH);
        let oldest = Oldest::new(metrics.pending_oldest.clone());
        Self { relay, horizon, metrics, scanned, watched: BTreeMap::new(), oldest }
    }

    /// Takes turns until a stop is requested.
    pub(crate) async fn run(mut self, health: Component, shutdown: Shutdown) {
        let every = TURN_EVERY.min(self.relay.again_after / 2);
        let mut delay = every;
        loop {
            health.ready();
            let rest = self.rest(crate::backoff::jittered(delay, 0.5..1.5));
            if shutdown.interruptible(rest).await.is_err() {
                return;
            }
            // A turn that is broken off has done no harm: what it was producing may be produced again.
            let Ok(turn) = shutdown.interruptible(self.turn(Utc::now())).await else { return };
            delay = match turn {
                Ok(turn) if turn.is_complete => every,
                Ok(_) => Duration::ZERO,
                Err(error) => {
                    tracing::warn!(%error, "pending orders were not looked after");
                    let dependency =
                        if let RelayError::Store(_) = error { "order_store" } else { "kafka" };
                    self.metrics.retries.with_label_values(&[dependency]).inc();
                    every
                }
            };
        }
    }

    /// Waits between turns, and looks after the age of the oldest pending order meanwhile.
    async fn rest(&mut self, rest: Duration) {
        let ends_at = Instant::now() + rest;
        loop {
            let left = ends_at.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(LOOK_EVERY)).await;
            if left <= LOOK_EVERY {
                return;
            }
            let (watched, now) = (self.watched.keys().copied(), Utc::now());
            let decidable = self.horizon.decidable(now).start;
            if let Err(error) = self.oldest.look(&self.relay.store, watched, decidable, now).await {
                tracing::debug!(%error, "the oldest pending order is not known");
            }
        }
    }

    /// One turn: reads the orders that came since the last, and produces again what is due, as much as a turn may.
    pub async fn turn(&mut self, now: DateTime<Utc>) -> Result<Turn, RelayError> {
        self.forget_decided().await?;
        let expired = self.forget_expired(now);
        let is_complete = self.scan(now).await?;
        let (oldest, from) = match self.watched.keys().next() {
            None if is_complete => self.find_young().await?,
            oldest => (oldest.copied(), self.scanned),
        };
        self.oldest.found(oldest, from, now);
        let produced = self.produce_due(now).await?;
        Ok(Turn { produced, expired, is_complete })
    }

    async fn forget_decided(&mut self) -> Result<(), StoreError> {
        let watched: Vec<_> = self.watched.keys().copied().collect();
        for ids in watched.chunks(ASK_MAX) {
            for (id, _, _) in self.relay.store.find_decided(ids).await? {
                self.watched.remove(&id);
            }
        }
        Ok(())
    }

    /// Orders that no worker decides any more are left to people. Answers how many those are.
    fn forget_expired(&mut self, now: DateTime<Utc>) -> usize {
        let young = self.watched.split_off(&self.horizon.decidable(now).start);
        let expired = std::mem::replace(&mut self.watched, young);
        if let Some(oldest) = expired.keys().next() {
            tracing::error!(orders = expired.len(), %oldest, "pending orders are too old to be decided");
            self.metrics
                .pending_orders
                .with_label_values(&["expired"])
                .inc_by(expired.len() as u64);
        }
        expired.len()
    }

    /// Reads on from where the last scan ended. Answers whether it came to the end.
    async fn scan(&mut self, now: DateTime<Utc>) -> Result<bool, StoreError> {
        let settled = OrderId::first_of(now - LATEST_COMMIT.min(self.relay.again_after));
        self.scanned = self.scanned.max(self.horizon.decidable(now).start);
        let scanning = Instant::now();
        for _ in 0..CHUNKS_MAX {
            if scanning.elapsed() >= LONGEST_SCAN {
                break;
            }
            let room = WATCHED_MAX - self.watched.len();
            if room == 0 {
                return Ok(true);
            }
            let begun = Instant::now();
            let scan = self.relay.store.scan_pending(self.scanned, settled, CHUNK, room).await?;
            self.watched.extend(scan.pending.into_iter().map(|id| (id, Watched::default())));
            let Some(last) = scan.last else { return Ok(true) };
            self.scanned = last;
            tokio::time::sleep((begun.elapsed() * REST).min(LONGEST_REST)).await;
        }
        Ok(false)
    }

    /// The oldest pending order among those that are too young to be watched, and up to where all
    /// were read.
    async fn find_young(&self) -> Result<(Option<OrderId>, OrderId), StoreError> {
        let (mut from, end) = (self.scanned, OrderId::first_of(DateTime::<Utc>::MAX_UTC));
        let scanning = Instant::now();
        for _ in 0..CHUNKS_MAX {
            if scanning.elapsed() >= LONGEST_SCAN {
                break;
            }
            let scan = self.relay.store.scan_pending(from, end, CHUNK, 1).await?;
            match (scan.pending.first(), scan.last) {
                (None, Some(last)) => from = last,
                (oldest, _) => return Ok((oldest.copied(), from)),
            }
        }
        Ok((None, from))
    }

    async fn produce_due(&mut self, now: DateTime<Utc>) -> Result<usize, RelayError> {
        let due =
            self.watched.iter().filter(|(id, watched)| watched.due_at(**id, &self.relay) <= now);
        // Those that were not produced again yet come first.
        let mut due: Vec<_> =
            due.map(|(id, watched)| (watched.produced_at, *id, watched.times)).collect();
        due.sort_unstable();
        let mut stubborn = 0;
        due.retain(|(_, _, times)| {
            stubborn += usize::from(*times >= STUBBORN_AFTER);
            *times < STUBBORN_AFTER || stubborn <= STUBBORN_MAX
        });
        due.truncate(PRODUCED_MAX);
        if due.is_empty() {
            return Ok(0);
        }
        let ids: Vec<_> = due.into_iter().map(|(_, id, _)| id).collect();
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
            "produced again, as they are still pending"
        );
        Ok(events.len())
    }
}
