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
    /// Since when it is pending. `None` if the scan found none.
    pub(crate) since: Option<DateTime<Utc>>,
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
        let age = found.since.map_or(0.0, |since| (now - since).as_seconds_f64());
        self.age_seconds.set(age.max(0.0));
    }

    /// Finds the oldest pending order: among the `watched` ones, with the time since when each is
    /// pending, or else among the younger ones from `decidable_from` on. Its work is bounded, so it
    /// may miss an order if orders come fast. The next pass finds that order.
    ///
    /// Fails with the error of the store.
    pub(super) async fn measure(
        &mut self,
        store: &OrderStore,
        watched: Vec<(OrderId, DateTime<Utc>)>,
        decidable_from: OrderId,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let mut watched = watched;
        watched.sort_unstable_by_key(|(id, since)| (*since, *id));
        watched.truncate(MAX_ASKED_ORDERS);
        if !watched.is_empty() {
            let ids: Vec<_> = watched.iter().map(|(id, _)| *id).collect();
            let decided = store.find_decided(&ids).await?;
            let decided: HashSet<_> = decided.iter().map(|order| order.order_id).collect();
            let oldest = watched.into_iter().find(|(id, _)| !decided.contains(id));
            if let Some((_, since)) = oldest {
                self.set(OldestFound { since: Some(since), scanned_to: self.from }, now);
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
        let since = oldest.map(OrderId::made_at);
        self.set(OldestFound { since, scanned_to: from }, now);
        Ok(())
    }
}
