//! Decides a batch of order events in memory, exactly as if they came one by one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use super::{Demand, EventKind, OrderEvent, OrderId, ProductId, Reason, ReportedStatus};

/// What the stock store records of an order, once and for all but for the step from `Completed` to `Released`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// These units were deducted and are held.
    Completed(Demand),
    /// Nothing was deducted.
    Failed(Reason),
    /// These units were deducted and given back; none, when the release came before the order.
    Released(Demand),
}

/// What a batch changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Orders that had no outcome, with the one they have now.
    pub outcomes: BTreeMap<OrderId, Outcome>,
    /// Orders whose recorded outcome goes from `Completed` to `Released`.
    pub released: BTreeSet<OrderId>,
    /// What is available afterwards, of every product on which a decision of this batch rests.
    pub(crate) available: BTreeMap<ProductId, i64>,
    /// What to report, in the order of the events: of an order placed its outcome, unless that is
    /// released; of each release that it is done, whatever the order's outcome.
    pub statuses: Vec<(OrderId, ReportedStatus)>,
    /// Orders that were left alone, as they are not decidable.
    pub untimely: BTreeSet<OrderId>,
}

/// A release gives back units of products that the batch did not read: read them too and fold again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unread(pub BTreeSet<ProductId>);

/// Folds `events` in their order over what is `available` and what is `recorded` of their orders.
///
/// A product that is not in `available` is unknown. A repeat, or a release, sees what its own batch did before it. Orders that are
/// not `decidable` are left alone: what was recorded of them may be forgotten.
pub(crate) fn fold<'a>(
    events: impl IntoIterator<Item = &'a OrderEvent>,
    decidable: &Range<OrderId>,
    available: &HashMap<ProductId, i64>,
    recorded: &HashMap<OrderId, Outcome>,
) -> Result<Decisions, Unread> {
    let mut fold = Fold {
        before: available,
        recorded,
        changed: BTreeMap::new(),
        available: HashMap::new(),
        statuses: Vec::new(),
        unread: BTreeSet::new(),
        untimely: BTreeSet::new(),
    };
    for event in events {
        match event.kind {
            _ if !decidable.contains(&event.order_id) => drop(fold.untimely.insert(event.order_id)),
            EventKind::Placed => fold.place(event),
            EventKind::Release => fold.release(event.order_id),
        }
    }
    fold.finish()
}

struct Fold<'a> {
    before: &'a HashMap<ProductId, i64>,
    recorded: &'a HashMap<OrderId, Outcome>,
    changed: BTreeMap<OrderId, Outcome>,
    available: HashMap<ProductId, i64>,
    statuses: Vec<(OrderId, ReportedStatus)>,
    unread: BTreeSet<ProductId>,
    untimely: BTreeSet<OrderId>,
}

impl Fold<'_> {
    fn place(&mut self, event: &OrderEvent) {
        let status = if let Some(outcome) = self.outcome(event.order_id) {
            reported(outcome)
        } else {
            let outcome = self.decide(event.lines.demand());
            let status = reported(&outcome);
            self.changed.insert(event.order_id, outcome);
            status
        };
        self.statuses.push((event.order_id, status));
    }

    fn decide(&mut self, demand: Demand) -> Outcome {
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

    /// Releases what the ledger holds of the order, if anything. The status says in each case that
    /// the release is done.
    fn release(&mut self, order_id: OrderId) {
        self.statuses.push((order_id, ReportedStatus::Released));
        let held = match self.outcome(order_id) {
            Some(Outcome::Completed(demand)) => demand.clone(),
            Some(Outcome::Failed(_) | Outcome::Released(_)) => return,
            None => Demand::default(),
        };
        for (id, quantity) in held.iter() {
            self.add(id, quantity);
        }
        self.changed.insert(order_id, Outcome::Released(held));
    }

    /// The outcome of an order as this batch has left it so far.
    fn outcome(&self, order_id: OrderId) -> Option<&Outcome> {
        self.changed.get(&order_id).or_else(|| self.recorded.get(&order_id))
    }

    fn left(&self, id: &ProductId) -> Option<i64> {
        self.available.get(id).or_else(|| self.before.get(id)).copied()
    }

    /// Books a change, and that a decision rests on the product.
    fn add(&mut self, id: &ProductId, quantity: i64) {
        if let Some(left) = self.available.get_mut(id) {
            *left += quantity;
        } else if let Some(before) = self.before.get(id) {
            self.available.insert(id.clone(), before + quantity);
        } else {
            self.unread.insert(id.clone());
        }
    }

    fn finish(self) -> Result<Decisions, Unread> {
        if !self.unread.is_empty() {
            return Err(Unread(self.unread));
        }
        let (updated, outcomes): (BTreeMap<_, _>, _) =
            self.changed.into_iter().partition(|(id, _)| self.recorded.contains_key(id));
        let released = updated.into_keys().collect();
        let Self { available, statuses, untimely, .. } = self;
        Ok(Decisions {
            outcomes,
            released,
            available: available.into_iter().collect(),
            statuses,
            untimely,
        })
    }
}

/// What a worker says of an order.
fn reported(outcome: &Outcome) -> ReportedStatus {
    match outcome {
        Outcome::Completed(_) => ReportedStatus::Completed,
        Outcome::Failed(reason) => ReportedStatus::Failed(reason.clone()),
        Outcome::Released(_) => ReportedStatus::Released,
    }
}

#[cfg(test)]
mod tests;
