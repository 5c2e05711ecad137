//! Checks the invariants over both stores, the locks and the topics. One snapshot of the stock
//! store is checked exactly. For the two stores together, the order store is read first, and orders
//! in flight are awaited.

mod events;
mod ledger;
mod letters;
mod locks;
mod releases;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::Utc;
use serde::Serialize;

pub(crate) use releases::{LostReleases, find_lost_releases};
use releases::{Release, judge_overdue};

use crate::{
    config::{self, Config},
    domain::{Horizon, OrderId, OrderState, fold::Outcome},
    store::{Found, OrderRow, OrderStore, StockStore, StoreError},
    wire::{OrderEventCodec, OrderStatusCodec},
};

use letters::Letters;

const PAGE: u32 = 5_000;
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Violation {
    /// Its number in the list of invariants.
    pub(crate) invariant: u8,
    /// The product or the order.
    pub(crate) subject: String,
    pub(crate) detail: String,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) products: usize,
    pub(crate) outcomes: u64,
    pub(crate) orders: u64,
    /// Events that the workers have passed, as far as the topic retains them.
    pub(crate) events: u64,
    pub(crate) violations: Vec<Violation>,
    /// Orders that were still in flight when the time to settle was over.
    pub(crate) unsettled: Vec<(String, String)>,
    /// Orders that are not final until people see to their dead letters, and why.
    pub(crate) dead_lettered: Vec<(String, String)>,
    /// What could not be looked at, and why.
    pub(crate) unchecked: Vec<String>,
    /// What the user of a store may not look at.
    pub(crate) forbidden: Vec<String>,
    /// What was left out on purpose, and why.
    pub(crate) left_out: Vec<String>,
}

/// Orders in flight.
type Open = BTreeMap<OrderId, InFlight>;

/// What an order in flight lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InFlight {
    Decision,
    Release,
    /// Its release has been owed for long.
    OverdueRelease,
    /// What was read of the order may be older than what was read of its outcome.
    SecondLook,
}

impl InFlight {
    fn as_str(self) -> &'static str {
        match self {
            Self::Decision => "not decided yet",
            Self::Release | Self::OverdueRelease => "its stock is not released yet",
            Self::SecondLook => "completed, and its stock was released",
        }
    }
}

/// How an order and its outcome go together.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Holds,
    InFlight(InFlight),
    Violated(u8, String),
}

/// Both stores, and how far back the ledger reaches.
#[derive(Clone, Copy)]
struct Stores<'a> {
    orders: &'a OrderStore,
    stock: &'a StockStore,
    horizon: Horizon,
}

/// What is checked, and how.
pub(crate) struct Checks<'a> {
    pub(crate) orders: &'a OrderStore,
    pub(crate) stock: &'a StockStore,
    pub(crate) config: &'a Config,
    pub(crate) events: Arc<OrderEventCodec>,
    pub(crate) statuses: Arc<OrderStatusCodec>,
    /// The invariants that are left out knowingly: 6 and 7 may be.
    pub(crate) without: &'a [u8],
    /// How long orders in flight are waited for, at most.
    pub(crate) settle: Duration,
}

/// What it takes to read the topics, on a thread of its own.
struct Topics {
    kafka: config::KafkaConfig,
    names: config::TopicsConfig,
    events: Arc<OrderEventCodec>,
    statuses: Arc<OrderStatusCodec>,
}

impl Checks<'_> {
    fn is_without(&self, invariant: u8) -> bool {
        self.without.contains(&invariant)
    }

    fn topics(&self) -> Topics {
        Topics {
            kafka: self.config.kafka.clone(),
            names: self.config.topics.clone(),
            events: Arc::clone(&self.events),
            statuses: Arc::clone(&self.statuses),
        }
    }
}

/// Checks both stores, the locks, and the events that the workers have passed. Fails if a store
/// cannot be read. Anything else that cannot be read is named in the report.
pub(crate) async fn verify(checks: &Checks<'_>) -> Result<Report, StoreError> {
    if checks.is_without(7) {
        let mut report = check_stores(checks).await?;
        report.left_out.push(
            "invariant 7, the committed offsets, and the dead letters: --without 7".to_owned(),
        );
        return Ok(report);
    }
    let (mut report, passed) = tokio::try_join!(check_stores(checks), events::check(checks))?;
    report.events = passed.count;
    report.violations.extend(passed.violations);
    report.unchecked.extend(
        passed
            .unchecked
            .into_iter()
            .map(|why| format!("invariant 7, the committed offsets: {why}")),
    );
    Ok(report)
}

async fn check_stores(checks: &Checks<'_>) -> Result<Report, StoreError> {
    let Checks { orders, stock, settle, .. } = *checks;
    let mut report = Report::default();
    let stores = Stores { orders, stock, horizon: checks.config.retention.horizon };
    let mut open = check_orders(stores, &mut report).await?;
    ledger::check(&stock.snapshot().await?, &mut report);
    check_decided(orders, stock, &mut report).await?;
    locks::check(checks, &mut report).await?;
    let mut letters = if open.is_empty() { None } else { Letters::read(checks).await };
    let deadline = Instant::now() + settle;
    while in_flight(&open, letters.as_ref()) && Instant::now() < deadline {
        tokio::time::sleep(ASK_AGAIN).await;
        let before = std::mem::take(&mut open);
        let ids: Vec<_> = before.keys().copied().collect();
        for ids in ids.chunks(PAGE as usize) {
            let page = orders.find_orders(ids).await?;
            for id in missing(orders, ids, &page).await? {
                report.violated(3, id, "has vanished from the order store");
            }
            check_page(stores, &page, &before, &mut open, &mut report).await?;
        }
    }
    if letters.is_some() && in_flight(&open, letters.as_ref()) {
        letters = Letters::read(checks).await;
    }
    let mut overdue = Vec::new();
    for (id, lack) in open {
        match letters.as_ref().and_then(|letters| letters.cause(id)) {
            Some(cause) => {
                report.dead_lettered.push((id.to_string(), format!("{}; {cause}", lack.as_str())));
            }
            None if lack == InFlight::OverdueRelease => overdue.push(id),
            None => report.unsettled.push((id.to_string(), lack.as_str().to_owned())),
        }
    }
    if !overdue.is_empty() {
        judge_overdue(&checks.config.kafka, overdue, &mut report).await;
    }
    Ok(report)
}

/// Whether any of the open orders may still settle. A dead-lettered one waits for people.
fn in_flight(open: &Open, letters: Option<&Letters>) -> bool {
    open.keys().any(|id| letters.is_none_or(|letters| letters.cause(*id).is_none()))
}

/// Every order against its outcome. Answers those in flight.
async fn check_orders(stores: Stores<'_>, report: &mut Report) -> Result<Open, StoreError> {
    let (mut open, mut after) = (BTreeMap::new(), None);
    loop {
        let page = stores.orders.page_of_orders(after, PAGE).await?;
        after = page.last().map(|(id, _)| *id);
        report.orders += page.len() as u64;
        check_page(stores, &page, &Open::new(), &mut open, report).await?;
        if page.len() < PAGE as usize {
            return Ok(open);
        }
    }
}

async fn check_page(
    Stores { orders, stock, horizon }: Stores<'_>,
    page: &[Found<OrderRow>],
    before: &Open,
    open: &mut Open,
    report: &mut Report,
) -> Result<(), StoreError> {
    let ids: Vec<_> = page.iter().map(|(id, _)| *id).collect();
    // Read between the orders and their outcomes: a release that is no longer owed was done before.
    let owed = orders.find_owed_releases(&ids).await?;
    let outcomes: HashMap<_, _> = stock.find_outcomes(&ids).await?;
    // Read after the outcomes: one that was purged before they were read is not missing.
    let purged_below = stock.purged_below().await?;
    let decidable_from = horizon.decidable(Utc::now()).start.max(purged_below);
    for (id, order) in page {
        let verdict = match (order, outcomes.get(id)) {
            (Err(damage), _) => Verdict::Violated(3, damage.clone()),
            // What is damaged in the stock store, its snapshot tells.
            (_, Some(Err(_))) => Verdict::Holds,
            (Ok(order), outcome) => {
                let outcome = outcome.and_then(|outcome| outcome.as_ref().ok());
                let is_forgotten = outcome.is_none() && *id < purged_below;
                let verdict =
                    if is_forgotten { judge_forgotten(order) } else { judge(order, outcome) };
                let release =
                    Release { order_id: *id, state: order.status, outcome, owed: owed.get(id) };
                match (verdict, release.judge(decidable_from, Utc::now())) {
                    (Verdict::InFlight(InFlight::Release), None) => Verdict::Holds,
                    (verdict @ Verdict::Violated(..), _) | (_, Some(verdict)) | (verdict, None) => {
                        verdict
                    }
                }
            }
        };
        match verdict {
            Verdict::Holds => {}
            Verdict::InFlight(InFlight::SecondLook)
                if before.get(id) == Some(&InFlight::SecondLook) =>
            {
                report.violated(3, *id, "is COMPLETED, and its stock was released");
            }
            Verdict::InFlight(lack) => {
                open.insert(*id, lack);
            }
            Verdict::Violated(invariant, detail) => report.violated(invariant, *id, detail),
        }
    }
    Ok(())
}

fn judge(order: &OrderRow, outcome: Option<&Outcome>) -> Verdict {
    match (order.status, outcome) {
        (_, Some(Outcome::Completed(held))) if *held != order.lines.demand() => {
            Verdict::Violated(5, format!("asks for {:?}, holds {held:?}", order.lines.demand()))
        }
        (OrderState::Pending, _) => Verdict::InFlight(InFlight::Decision),
        (OrderState::Completed, Some(Outcome::Completed(_)))
        | (
            OrderState::Failed | OrderState::Cancelled,
            Some(Outcome::Failed(_) | Outcome::Released(_)),
        ) => Verdict::Holds,
        (OrderState::Completed, Some(Outcome::Released(_))) => {
            Verdict::InFlight(InFlight::SecondLook)
        }
        (OrderState::Completed, Some(Outcome::Failed(reason))) => Verdict::Violated(
            3,
            format!("is COMPLETED, and the worker refused it: {}", reason.as_str()),
        ),
        (OrderState::Completed, None) => {
            Verdict::Violated(3, "is COMPLETED, and no worker decided it".to_owned())
        }
        (OrderState::Failed | OrderState::Cancelled, Some(Outcome::Completed(_)) | None) => {
            Verdict::InFlight(InFlight::Release)
        }
    }
}

/// Of an order whose outcome is purged, if it had one, only this can be told: it cannot be decided any more.
fn judge_forgotten(order: &OrderRow) -> Verdict {
    match order.status {
        OrderState::Pending => {
            Verdict::Violated(3, "is PENDING, and too old to be decided any more".to_owned())
        }
        OrderState::Completed | OrderState::Failed | OrderState::Cancelled => Verdict::Holds,
    }
}

impl Report {
    /// Whether every check was made that was asked for, and every order is final or dead-lettered.
    pub(crate) fn is_complete(&self) -> bool {
        self.unsettled.is_empty() && self.unchecked.is_empty() && self.forbidden.is_empty()
    }

    fn violated(&mut self, invariant: u8, order_id: OrderId, detail: impl Into<String>) {
        self.violations.push(Violation {
            invariant,
            subject: format!("order {order_id}"),
            detail: detail.into(),
        });
    }
}

/// Every outcome has an order.
async fn check_decided(
    orders: &OrderStore,
    stock: &StockStore,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let ids = stock.page_of_decided(after, PAGE).await?;
        after = ids.last().copied();
        let page = orders.find_orders(&ids).await?;
        for id in missing(orders, &ids, &page).await? {
            report.violated(3, id, "was decided, and the order store does not have it");
        }
        if ids.len() < PAGE as usize {
            return Ok(());
        }
    }
}

/// Those of the orders that were not found and were not purged.
async fn missing(
    orders: &OrderStore,
    ids: &[OrderId],
    found: &[Found<OrderRow>],
) -> Result<Vec<OrderId>, StoreError> {
    let found: BTreeSet<_> = found.iter().map(|(id, _)| *id).collect();
    let purged_below = orders.purged_below().await?;
    Ok(ids.iter().filter(|id| !found.contains(id) && **id >= purged_below).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Demand, Reason};

    fn order(status: OrderState) -> OrderRow {
        OrderRow { status, lines: serde_json::from_str(r#"[["a",1],["a",1]]"#).unwrap() }
    }

    fn demand(json: &str) -> Demand {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_completed_order_holds_exactly_its_demand() {
        let completed = order(OrderState::Completed);
        assert_eq!(
            judge(&completed, Some(&Outcome::Completed(demand(r#"[["a",2]]"#)))),
            Verdict::Holds
        );
        let part = Outcome::Completed(demand(r#"[["a",1]]"#));
        assert!(matches!(judge(&completed, Some(&part)), Verdict::Violated(5, _)));
        assert!(matches!(judge(&completed, None), Verdict::Violated(3, _)));
        assert!(matches!(
            judge(&completed, Some(&Outcome::Failed(Reason::InsufficientStock))),
            Verdict::Violated(3, _)
        ));
    }

    #[test]
    fn a_failed_order_holds_nothing_in_the_end() {
        let failed = order(OrderState::Failed);
        let held = Outcome::Completed(demand(r#"[["a",2]]"#));
        assert!(matches!(judge(&failed, Some(&held)), Verdict::InFlight(_)));
        assert!(matches!(judge(&failed, None), Verdict::InFlight(_)));
        assert_eq!(judge(&failed, Some(&Outcome::Released(Demand::default()))), Verdict::Holds);
    }

    #[test]
    fn an_order_whose_outcome_was_purged_is_final() {
        assert_eq!(judge_forgotten(&order(OrderState::Completed)), Verdict::Holds);
        assert_eq!(judge_forgotten(&order(OrderState::Failed)), Verdict::Holds);
        assert!(matches!(judge_forgotten(&order(OrderState::Pending)), Verdict::Violated(3, _)));
    }
}
