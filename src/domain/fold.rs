//! Decides a batch of order events in memory, exactly as if they came one by one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use chrono::{DateTime, Utc};

use super::{
    Demand, EventKind, OrderEvent, OrderId, OrderStatus, ProductId, Reason, ReportedStatus,
    WORKER_SOURCE,
};

/// What the stock store records of an order. It changes at most once, from `Completed` to
/// `Released`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// These units were deducted, and the order holds them.
    Completed(Demand),
    /// Nothing was deducted.
    Failed(Reason),
    /// These units were deducted and released. They are none if the release came before the order.
    Released(Demand),
}

impl Outcome {
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Completed(_) => "COMPLETED",
            Self::Failed(_) => "FAILED",
            Self::Released(_) => "RELEASED",
        }
    }
}

/// An outcome that was recorded before a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub outcome: Outcome,
    pub decided_at: DateTime<Utc>,
}

/// What a batch changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// The new outcomes, of orders that had none.
    pub outcomes: BTreeMap<OrderId, Outcome>,
    /// Orders whose recorded outcome goes from `Completed` to `Released`.
    pub released: BTreeSet<OrderId>,
    /// The units available after the batch, for each product on which one of its decisions rests.
    pub available: BTreeMap<ProductId, i64>,
    /// The statuses to report, in the order of the events. An order placed gets its outcome. A
    /// release gets `Released`, whatever the order's outcome.
    pub statuses: Vec<OrderStatus>,
    /// Orders that were not decided because they are older than the horizon.
    pub expired: BTreeSet<OrderId>,
    /// Orders that were not decided because their id lies too far in the future.
    pub(crate) from_future: BTreeSet<OrderId>,
}

/// The batch releases units of products whose stock the caller did not read. The caller reads them
/// too and folds again.
#[derive(Debug, PartialEq, Eq)]
pub struct StockNotRead(pub BTreeSet<ProductId>);

/// Decides `events` in their order.
///
/// - `decidable`: the other orders are not decided. Their outcomes may be forgotten already.
/// - `available`: the units of each product. A product that is not in it is unknown.
/// - `recorded`: the outcomes of orders that were decided before.
/// - `now`: when the other orders are decided.
///
/// A repeated event and a release see what the batch did before them.
///
/// Fails with [`StockNotRead`] if a release returns units of products that are not in `available`.
pub fn fold<'a>(
    events: impl IntoIterator<Item = &'a OrderEvent>,
    decidable: &Range<OrderId>,
    available: &HashMap<ProductId, i64>,
    recorded: &HashMap<OrderId, Recorded>,
    now: DateTime<Utc>,
) -> Result<Decisions, StockNotRead> {
    let mut fold = Fold {
        before: available,
        recorded,
        now,
        changed: BTreeMap::new(),
        available: HashMap::new(),
        statuses: Vec::new(),
        not_read: BTreeSet::new(),
        expired: BTreeSet::new(),
        from_future: BTreeSet::new(),
    };
    for event in events {
        if event.order_id < decidable.start {
            fold.expired.insert(event.order_id);
        } else if event.order_id >= decidable.end {
            fold.from_future.insert(event.order_id);
        } else {
            match event.kind {
                EventKind::Placed => fold.place(event),
                EventKind::Release => fold.release(event),
            }
        }
    }
    fold.finish()
}

/// The state after some events of a batch.
struct Fold<'a> {
    /// The units available before the batch.
    before: &'a HashMap<ProductId, i64>,
    /// The outcomes before the batch.
    recorded: &'a HashMap<OrderId, Recorded>,
    /// When the batch is decided.
    now: DateTime<Utc>,
    /// The outcomes that the batch made or changed.
    changed: BTreeMap<OrderId, Outcome>,
    /// The units available now, of the products on which a decision rests.
    available: HashMap<ProductId, i64>,
    statuses: Vec<OrderStatus>,
    not_read: BTreeSet<ProductId>,
    expired: BTreeSet<OrderId>,
    from_future: BTreeSet<OrderId>,
}

impl Fold<'_> {
    fn place(&mut self, event: &OrderEvent) {
        if self.outcome(event.order_id).is_none() {
            let outcome = self.deduct(event.lines.demand());
            self.changed.insert(event.order_id, outcome);
        }
        let Some(outcome) = self.outcome(event.order_id) else { return };
        let status = match outcome {
            Outcome::Completed(_) if event.hold_seconds.is_some() => ReportedStatus::Reserved,
            Outcome::Completed(_) => ReportedStatus::Completed,
            Outcome::Failed(reason) => ReportedStatus::Failed(reason.clone()),
            Outcome::Released(_) => ReportedStatus::Released,
        };
        let recorded = self.recorded.get(&event.order_id).map(|recorded| recorded.decided_at);
        let is_released = status == ReportedStatus::Released;
        let occurred_at = recorded.filter(|_| !is_released).unwrap_or(self.now);
        self.report(event, status, occurred_at);
    }

    fn report(&mut self, event: &OrderEvent, status: ReportedStatus, occurred_at: DateTime<Utc>) {
        self.statuses.push(OrderStatus {
            order_id: event.order_id,
            status,
            source: WORKER_SOURCE.to_owned(),
            occurred_at,
            reference: event.reference.clone(),
        });
    }

    /// Deducts all of the demand, or nothing if a product is unknown or short.
    fn deduct(&mut self, demand: Demand) -> Outcome {
        if demand.product_ids().any(|id| !self.before.contains_key(id)) {
            return Outcome::Failed(Reason::UnknownProduct);
        }
        let short =
            demand.iter().find(|(id, quantity)| self.left(id).is_some_and(|left| left < *quantity));
        if let Some((id, _)) = short {
            self.add(id, 0);
            return Outcome::Failed(Reason::InsufficientStock);
        }
        for (id, quantity) in demand.iter() {
            self.add(id, -quantity);
        }
        Outcome::Completed(demand)
    }

    /// Releases the units that the ledger holds for the order, if any. The status reports the
    /// release in each case.
    fn release(&mut self, event: &OrderEvent) {
        self.report(event, ReportedStatus::Released, self.now);
        let held = match self.outcome(event.order_id) {
            Some(Outcome::Completed(demand)) => demand.clone(),
            Some(Outcome::Failed(_) | Outcome::Released(_)) => return,
            None => Demand::default(),
        };
        for (id, quantity) in held.iter() {
            self.add(id, quantity);
        }
        self.changed.insert(event.order_id, Outcome::Released(held));
    }

    /// The outcome of an order after the events so far.
    fn outcome(&self, order_id: OrderId) -> Option<&Outcome> {
        let recorded = self.recorded.get(&order_id).map(|recorded| &recorded.outcome);
        self.changed.get(&order_id).or(recorded)
    }

    fn left(&self, id: &ProductId) -> Option<i64> {
        self.available.get(id).or_else(|| self.before.get(id)).copied()
    }

    /// Changes the units of a product, and notes that a decision rests on it. A quantity of 0 notes
    /// that alone.
    fn add(&mut self, id: &ProductId, quantity: i64) {
        if let Some(left) = self.available.get_mut(id) {
            *left += quantity;
        } else if let Some(before) = self.before.get(id) {
            self.available.insert(id.clone(), before + quantity);
        } else {
            self.not_read.insert(id.clone());
        }
    }

    fn finish(self) -> Result<Decisions, StockNotRead> {
        if !self.not_read.is_empty() {
            return Err(StockNotRead(self.not_read));
        }
        let (updated, outcomes): (BTreeMap<_, _>, _) =
            self.changed.into_iter().partition(|(id, _)| self.recorded.contains_key(id));
        let released = updated.into_keys().collect();
        let Self { available, statuses, expired, from_future, .. } = self;
        Ok(Decisions {
            outcomes,
            released,
            available: available.into_iter().collect(),
            statuses,
            expired,
            from_future,
        })
    }
}

#[cfg(test)]
mod tests;
