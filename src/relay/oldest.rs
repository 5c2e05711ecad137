use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use prometheus::Gauge;

use crate::{
    domain::OrderId,
    store::{OrderStore, StoreError},
};

/// Between two looks at the oldest pending order.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Watched orders that a look asks about.
const ASK_MAX: usize = 2_000;
/// Orders that a look reads in one statement, and statements of a look.
const CHUNK: u32 = 10_000;
const CHUNKS_MAX: usize = 2;

/// The age of the oldest pending order, looked at more often than orders are produced again.
#[derive(Debug)]
pub(super) struct Oldest {
    age_seconds: Gauge,
    /// Where a look begins that knows of no pending order. Orders below were decided, but for those
    /// that were committed late.
    from: OrderId,
}

impl Oldest {
    pub(super) fn new(age_seconds: Gauge) -> Self {
        Self { age_seconds, from: OrderId::first_of(DateTime::UNIX_EPOCH) }
    }

    /// A turn found this one, or none below `from`.
    pub(super) fn found(&mut self, oldest: Option<OrderId>, from: OrderId, now: DateTime<Utc>) {
        self.from = from;
        let age = oldest.map_or(0.0, |oldest| (now - oldest.made_at()).as_seconds_f64());
        self.age_seconds.set(age.max(0.0));
    }

    /// Asks whether the oldest of the watched orders are still pending, or else looks among the
    /// young ones, none below `decidable`. Its work is bounded, so that it may be behind where
    /// orders come fast; the next turn finds out.
    pub(super) async fn look(
        &mut self,
        store: &OrderStore,
        watched: impl Iterator<Item = OrderId>,
        decidable: OrderId,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let watched: Vec<_> = watched.take(ASK_MAX).collect();
        if !watched.is_empty() {
            let decided: HashSet<_> =
                store.find_decided(&watched).await?.into_iter().map(|(id, ..)| id).collect();
            if let Some(oldest) = watched.into_iter().find(|id| !decided.contains(id)) {
                self.found(Some(oldest), self.from, now);
                return Ok(());
            }
        }
        let (end, mut from) =
            (OrderId::first_of(DateTime::<Utc>::MAX_UTC), self.from.max(decidable));
        let mut oldest = None;
        for _ in 0..CHUNKS_MAX {
            let scan = store.scan_pending(from, end, CHUNK, 1).await?;
            oldest = scan.pending.first().copied();
            match scan.last {
                Some(last) if oldest.is_none() => from = last,
                _ => break,
            }
        }
        self.found(oldest, from, now);
        Ok(())
    }
}
