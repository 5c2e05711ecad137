//! Invariants 3 and 5: each order against its outcome. The order store is read first, and orders in
//! flight are awaited.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use chrono::Utc;

use super::{
    Checks, OpenOrder, PAGE_ROWS, Report, ledger,
    letters::Letters,
    locks,
    releases::{Release, judge_overdue},
};
use crate::{
    domain::{Horizon, OrderId, OrderState, fold::Outcome},
    store::{FoundOrder, OrderContent, OrderStore, StockStore, StoreError},
};

/// How often the orders in flight are read again.
const SETTLE_INTERVAL: Duration = Duration::from_millis(500);

/// Orders in flight.
type Open = BTreeMap<OrderId, InFlight>;

/// What an order in flight lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InFlight {
    Decision,
    Release,
    /// Its release is owed for longer than workers need.
    OverdueRelease,
    /// The order is read before its outcome, so it may have changed between the two.
    SecondRead,
}

impl InFlight {
    fn as_str(self) -> &'static str {
        match self {
            Self::Decision => "not decided yet",
            Self::Release | Self::OverdueRelease => "its stock is not released yet",
            Self::SecondRead => "completed, and its stock was released",
        }
    }
}

/// Whether an order and its outcome agree.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Holds,
    InFlight(InFlight),
    Violated { invariant: u8, detail: String },
}

impl Verdict {
    pub(super) fn violated(invariant: u8, detail: impl Into<String>) -> Self {
        Self::Violated { invariant, detail: detail.into() }
    }
}

/// Both stores, and how far back the ledger reaches.
#[derive(Clone, Copy)]
struct Stores<'a> {
    orders: &'a OrderStore,
    stock: &'a StockStore,
    horizon: Horizon,
}

/// Checks both stores and the locks. Fails with the error of a store.
pub(super) async fn check(checks: &Checks<'_>) -> Result<Report, StoreError> {
    let Checks { orders, stock, .. } = *checks;
    let mut report = Report::default();
    let stores = Stores { orders, stock, horizon: checks.config.retention.horizon };
    let mut open = check_orders(stores, &mut report).await?;
    ledger::check(&stock.snapshot().await?, &mut report);
    check_decided(orders, stock, &mut report).await?;
    locks::check(checks, &mut report).await?;
    let mut letters = if open.is_empty() { None } else { Letters::read(checks).await };
    settle(stores, checks.settle, letters.as_ref(), &mut open, &mut report).await?;
    if letters.is_some() && is_any_in_flight(&open, letters.as_ref()) {
        letters = Letters::read(checks).await;
    }
    let mut overdue = Vec::new();
    for (id, lack) in open {
        let order_id = id.to_string();
        match letters.as_ref().and_then(|letters| letters.cause(id)) {
            Some(cause) => {
                let why = format!("{}; {cause}", lack.as_str());
                report.dead_lettered.push(OpenOrder { order_id, why });
            }
            None if lack == InFlight::OverdueRelease => overdue.push(id),
            None => report.unsettled.push(OpenOrder { order_id, why: lack.as_str().to_owned() }),
        }
    }
    if !overdue.is_empty() {
        judge_overdue(&checks.config.kafka, overdue, &mut report).await;
    }
    Ok(report)
}

/// Reads the open orders again until none is in flight, at most for `limit`.
async fn settle(
    stores: Stores<'_>,
    limit: Duration,
    letters: Option<&Letters>,
    open: &mut Open,
    report: &mut Report,
) -> Result<(), StoreError> {
    let deadline = Instant::now() + limit;
    while is_any_in_flight(open, letters) && Instant::now() < deadline {
        tokio::time::sleep(SETTLE_INTERVAL).await;
        let before = std::mem::take(open);
        let ids: Vec<_> = before.keys().copied().collect();
        for ids in ids.chunks(PAGE_ROWS as usize) {
            let page = stores.orders.find_orders(ids).await?;
            for id in find_missing(stores.orders, ids, &page).await? {
                report.violated(3, id, "has vanished from the order store");
            }
            check_page(stores, &page, &before, open, report).await?;
        }
    }
    Ok(())
}

/// Whether any of the open orders may still settle. A dead-lettered order waits for a person.
fn is_any_in_flight(open: &Open, letters: Option<&Letters>) -> bool {
    open.keys().any(|id| letters.is_none_or(|letters| letters.cause(*id).is_none()))
}

/// Checks all orders against their outcomes. Returns the orders in flight.
async fn check_orders(stores: Stores<'_>, report: &mut Report) -> Result<Open, StoreError> {
    let (mut open, mut after) = (BTreeMap::new(), None);
    loop {
        let page = stores.orders.page_of_orders(after, PAGE_ROWS).await?;
        after = page.last().map(|order| order.order_id);
        report.orders += page.len() as u64;
        check_page(stores, &page, &Open::new(), &mut open, report).await?;
        if page.len() < PAGE_ROWS as usize {
            return Ok(open);
        }
    }
}

/// Checks orders against their outcomes. Adds those in flight to `open`. `before` are the orders
/// that were in flight at the last read.
async fn check_page(
    Stores { orders, stock, horizon }: Stores<'_>,
    page: &[FoundOrder],
    before: &Open,
    open: &mut Open,
    report: &mut Report,
) -> Result<(), StoreError> {
    let ids: Vec<_> = page.iter().map(|order| order.order_id).collect();
    // Read between the orders and their outcomes: a release that is no longer owed was done before.
    let owed = orders.find_owed_releases(&ids).await?;
    let outcomes: HashMap<_, _> = stock.find_outcomes(&ids).await?;
    // Read after the outcomes: an outcome that was purged before that is not missing.
    let purged_below = stock.purged_below().await?;
    let decidable_from = horizon.decidable(Utc::now()).start.max(purged_below);
    for FoundOrder { order_id: id, content } in page {
        let verdict = match (content, outcomes.get(id)) {
            (Err(corrupt), _) => Verdict::violated(3, corrupt),
            // The snapshot of the stock store reports a corrupt outcome.
            (Ok(_), Some(Err(_))) => Verdict::Holds,
            (Ok(order), outcome) => {
                let outcome = outcome.and_then(|outcome| outcome.as_ref().ok());
                let is_purged = outcome.is_none() && *id < purged_below;
                let verdict = if is_purged { judge_purged(order) } else { judge(order, outcome) };
                let release =
                    Release { order_id: *id, state: order.state, outcome, owed: owed.get(id) };
                combine(verdict, release.judge(decidable_from, Utc::now()))
            }
        };
        match verdict {
            Verdict::Holds => {}
            Verdict::InFlight(InFlight::SecondRead)
                if before.get(id) == Some(&InFlight::SecondRead) =>
            {
                report.violated(3, *id, "is COMPLETED, and its stock was released");
            }
            Verdict::InFlight(lack) => {
                open.insert(*id, lack);
            }
            Verdict::Violated { invariant, detail } => report.violated(invariant, *id, detail),
        }
    }
    Ok(())
}

/// The verdict on an order, from that on its outcome and that on its release, if the latter decides
/// anything.
fn combine(of_outcome: Verdict, of_release: Option<Verdict>) -> Verdict {
    match (of_outcome, of_release) {
        (Verdict::InFlight(InFlight::Release), None) => Verdict::Holds,
        (violated @ Verdict::Violated { .. }, _) => violated,
        (_, Some(of_release)) => of_release,
        (of_outcome, None) => of_outcome,
    }
}

fn judge(order: &OrderContent, outcome: Option<&Outcome>) -> Verdict {
    match (order.state, outcome) {
        (_, Some(Outcome::Completed(held))) if *held != order.lines.demand() => {
            Verdict::violated(5, format!("asks for {:?}, holds {held:?}", order.lines.demand()))
        }
        (OrderState::Pending, _) => Verdict::InFlight(InFlight::Decision),
        (OrderState::Completed | OrderState::Reserved, Some(Outcome::Completed(_)))
        | (
            OrderState::Failed | OrderState::Cancelled,
            Some(Outcome::Failed(_) | Outcome::Released(_)),
        ) => Verdict::Holds,
        (OrderState::Completed | OrderState::Reserved, Some(Outcome::Released(_))) => {
            Verdict::InFlight(InFlight::SecondRead)
        }
        (state @ (OrderState::Completed | OrderState::Reserved), Some(Outcome::Failed(reason))) => {
            let reason = reason.as_str();
            Verdict::violated(3, format!("is {state}, and the worker refused it: {reason}"))
        }
        (state @ (OrderState::Completed | OrderState::Reserved), None) => {
            Verdict::violated(3, format!("is {state}, and no worker decided it"))
        }
        (OrderState::Failed | OrderState::Cancelled, Some(Outcome::Completed(_)) | None) => {
            Verdict::InFlight(InFlight::Release)
        }
    }
}

/// Judges an order without an outcome, whose outcome may be purged: no worker decides it any more.
fn judge_purged(order: &OrderContent) -> Verdict {
    match order.state {
        OrderState::Pending => {
            Verdict::violated(3, "is PENDING, and too old to be decided any more")
        }
        OrderState::Reserved
        | OrderState::Completed
        | OrderState::Failed
        | OrderState::Cancelled => Verdict::Holds,
    }
}

/// Checks that each outcome has an order.
async fn check_decided(
    orders: &OrderStore,
    stock: &StockStore,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let ids = stock.page_of_decided(after, PAGE_ROWS).await?;
        after = ids.last().copied();
        let page = orders.find_orders(&ids).await?;
        for id in find_missing(orders, &ids, &page).await? {
            report.violated(3, id, "was decided, and the order store does not have it");
        }
        if ids.len() < PAGE_ROWS as usize {
            return Ok(());
        }
    }
}

/// The orders among `ids` that were not found and were not purged.
async fn find_missing(
    orders: &OrderStore,
    ids: &[OrderId],
    found: &[FoundOrder],
) -> Result<Vec<OrderId>, StoreError> {
    let found: BTreeSet<_> = found.iter().map(|order| order.order_id).collect();
    let purged_below = orders.purged_below().await?;
    Ok(ids.iter().filter(|id| !found.contains(id) && **id >= purged_below).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Demand, Reason};

    fn order(state: OrderState) -> OrderContent {
        OrderContent { state, lines: serde_json::from_str(r#"[["a",1],["a",1]]"#).unwrap() }
    }

    fn demand(json: &str) -> Demand {
        serde_json::from_str(json).unwrap()
    }

    fn is_violation(verdict: &Verdict, of: u8) -> bool {
        matches!(verdict, Verdict::Violated { invariant, .. } if *invariant == of)
    }

    #[test]
    fn a_completed_order_holds_exactly_its_demand() {
        let completed = order(OrderState::Completed);
        let full = Outcome::Completed(demand(r#"[["a",2]]"#));
        let part = Outcome::Completed(demand(r#"[["a",1]]"#));
        let refused = Outcome::Failed(Reason::InsufficientStock);

        assert_eq!(judge(&completed, Some(&full)), Verdict::Holds);
        assert!(is_violation(&judge(&completed, Some(&part)), 5));
        assert!(is_violation(&judge(&completed, None), 3));
        assert!(is_violation(&judge(&completed, Some(&refused)), 3));
    }

    #[test]
    fn a_failed_order_holds_nothing_in_the_end() {
        let failed = order(OrderState::Failed);
        let held = Outcome::Completed(demand(r#"[["a",2]]"#));
        let released = Outcome::Released(Demand::default());

        assert!(matches!(judge(&failed, Some(&held)), Verdict::InFlight(_)));
        assert!(matches!(judge(&failed, None), Verdict::InFlight(_)));
        assert_eq!(judge(&failed, Some(&released)), Verdict::Holds);
    }

    #[test]
    fn an_order_whose_outcome_was_purged_is_final() {
        assert_eq!(judge_purged(&order(OrderState::Completed)), Verdict::Holds);
        assert_eq!(judge_purged(&order(OrderState::Failed)), Verdict::Holds);
        assert!(is_violation(&judge_purged(&order(OrderState::Pending)), 3));
    }
}
