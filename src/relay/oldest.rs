//! The age of the oldest pending order.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use prometheus::Gauge;

use crate::{
    domain::OrderId,
    store::{OrderStore, StoreError},
};

/// How often the age is measured.
pub(super) const MEASURE_INTERVAL: Duration = Duration::from_secs(5);
/// Watched orders that one measurement asks about.
const MAX_ASKED_ORDERS: usize = 2_000;
/// Orders that one statement reads, and the statements of one measurement.
const CHUNK_ORDERS: u32 = 10_000;
const MAX_CHUNKS: usize = 2;

/// The gauge of the oldest pending order's age. It is measured more often than orders are produced
/// again.
#[derive(Debug)]
pub(super) struct OldestPending {
    age_seconds: Gauge,
    /// A scan for the oldest pending order begins here. Orders below it are decided, except orders
    /// that were committed late.
    from: OrderId,
}

/// What a scan says about the oldest pending order.
#[derive(Debug, Clone, Copy)]
pub(super) struct OldestFound {
    /// `None` if the scan found none.
    pub(crate) order: Option<OrderId>,
    /// No order below this one is pending, except watched ones.
    pub(crate) scanned_to: OrderId,
}

impl OldestPending {
    pub(super) fn new(age_seconds: Gauge) -> Self {
        Self { age_seconds, from: OrderId::first_of(DateTime::UNIX_EPOCH) }
    }

    /// Sets the gauge to the age of the order, or to 0. The next scan goes on from there.
    pub(super) fn set(&mut self, found: OldestFound, now: DateTime<Utc>) {
        self.from = found.scanned_to;
        let age = found.order.map_or(0.0, |oldest| (now - oldest.made_at()).as_seconds_f64());
        self.age_seconds.set(age.max(0.0));
    }

    /// Finds the oldest pending order: among the `watched` ones, or else among the younger ones
    /// from `decidable_from` on. Its work is bounded, so it may miss an order if orders come fast.
    /// The next pass finds that order.
    ///
    /// Fails with the error of the store.
    pub(super) async fn measure(
        &mut self,
        store: &OrderStore,
        watched: impl Iterator<Item = OrderId>,
        decidable_from: OrderId,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let watched: Vec<_> = watched.take(MAX_ASKED_ORDERS).collect();
        if !watched.is_empty() {
            let decided = store.find_decided(&watched).await?;
            let decided: HashSet<_> = decided.iter().map(|order| order.order_id).collect();
            if let Some(oldest) = watched.into_iter().find(|id| !decided.contains(id)) {
                self.set(OldestFound { order: Some(oldest), scanned_to: self.from }, now);
                return Ok(());
            }
        }
        let (end, mut from) =
            (OrderId::first_of(DateTime::<Utc>::MAX_UTC), self.from.max(decidable_from));
        let mut oldest = None;
        for _ in 0..MAX_CHUNKS {
            let scan = store.scan_pending(from, end, CHUNK_ORDERS, 1).await?;
            oldest = scan.pending.first().copied();
            match scan.last {
                Some(last) if oldest.is_none() => from = last,
                _ => break,
            }
        }
        self.set(OldestFound { order: oldest, scanned_to: from }, now);
        Ok(())
    }
}
