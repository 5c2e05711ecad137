//! Invariants 3 and 5: each order against its outcome. The order store is read first, and orders in
//! flight are awaited.

use std::{collections::BTreeMap, time::Instant};

use chrono::Utc;

use super::{
    Checks, OpenOrder, PAGE_ROWS, Report, SETTLE_INTERVAL,
    judge::{InFlight, Verdict, judge},
    ledger,
    letters::{Letters, LettersFilter},
    locks,
    overdue::{Overdue, report_announcements},
    walk::{Page, Stores, Walk},
};
use crate::{domain::OrderId, store::StoreError};

/// Most orders in flight that are awaited. The others are counted as not settled at once.
const MAX_AWAITED: usize = 1_000_000;

/// The orders in flight that are awaited.
type Open = BTreeMap<OrderId, InFlight>;

/// Checks both stores and the locks. Fails with the error of a store.
pub(super) async fn check(checks: &Checks<'_>) -> Result<Report, StoreError> {
    let mut report = Report { since: checks.since, ..Report::default() };
    let stores = Stores {
        orders: checks.orders,
        stock: checks.stock,
        horizon: checks.config.retention.horizon,
    };
    if checks.progress.is_shown() {
        expect_rows(checks).await?;
    }
    let mut open = check_orders(stores, checks, &mut report).await?;
    let snapshot = checks.stock.snapshot_with(&|rows| checks.progress.advance(rows)).await?;
    ledger::check(&snapshot, &mut report);
    drop(snapshot);
    locks::check(checks, &mut report).await?;
    let deadline = Instant::now() + checks.settle;
    let mut letters = letters_of(checks, &open, &mut report).await;
    settle(stores, checks, deadline, letters.as_ref(), &mut open, &mut report).await?;
    if letters.is_some() && is_any_in_flight(&open, letters.as_ref()) {
        letters = letters_of(checks, &open, &mut report).await;
    }
    report_open(checks, open, letters.as_ref(), &mut report).await;
    report_announcements(checks, deadline, &mut report).await?;
    Ok(report)
}

/// Reports the orders that are still in flight: dead-lettered ones apart.
async fn report_open(
    checks: &Checks<'_>,
    open: Open,
    letters: Option<&Letters>,
    report: &mut Report,
) {
    let (mut releases, mut holds) = (Overdue::releases(), Overdue::holds());
    for (id, lack) in open {
        let order_id = id.to_string();
        match (letters.and_then(|letters| letters.cause(id)), lack) {
            (Some(cause), _) => {
                let why = format!("{}; {cause}", lack.as_str());
                report.dead_lettered.add(OpenOrder { order_id, why });
            }
            (None, InFlight::OverdueRelease) => releases.orders.push(id),
            (None, InFlight::OverdueHold) => holds.orders.push(id),
            (None, InFlight::Decision | InFlight::Status | InFlight::Release) => {
                report.unsettled.add(OpenOrder { order_id, why: lack.as_str().to_owned() });
            }
        }
    }
    releases.report(checks, &checks.config.kafka.group_id, report).await;
    holds.report(checks, &checks.config.compensator.group_id, report).await;
}

/// Tells the progress bar how many rows there are. Orders older than `--since` are not read.
async fn expect_rows(checks: &Checks<'_>) -> Result<(), StoreError> {
    if checks.since.is_none() {
        checks.progress.expect(checks.orders.estimate_orders().await?);
    }
    checks.progress.expect(checks.stock.estimate_outcomes().await?);
    Ok(())
}

/// Reads the open orders again until none is in flight, at most until `deadline`.
async fn settle(
    stores: Stores<'_>,
    checks: &Checks<'_>,
    deadline: Instant,
    letters: Option<&Letters>,
    open: &mut Open,
    report: &mut Report,
) -> Result<(), StoreError> {
    while is_any_in_flight(open, letters) && Instant::now() < deadline {
        checks.progress.say(format!("waiting for {} orders in flight", open.len()));
        tokio::time::sleep(SETTLE_INTERVAL).await;
        let ids: Vec<_> = open.keys().copied().collect();
        for ids in ids.chunks(PAGE_ROWS as usize) {
            if Instant::now() >= deadline {
                break;
            }
            let page = stores.read(ids).await?;
            for id in ids {
                open.remove(id);
            }
            check_page(stores, &page, ids, open, report).await?;
        }
    }
    Ok(())
}

/// Whether any of the open orders may still settle. A dead-lettered order waits for a person.
fn is_any_in_flight(open: &Open, letters: Option<&Letters>) -> bool {
    open.keys().any(|id| letters.is_none_or(|letters| letters.cause(*id).is_none()))
}

/// Checks the orders against their outcomes. Returns the orders in flight.
async fn check_orders(
    stores: Stores<'_>,
    checks: &Checks<'_>,
    report: &mut Report,
) -> Result<Open, StoreError> {
    let mut open = Open::new();
    let mut walk = Walk::new(stores, checks.first_order());
    while let Some(page) = walk.next().await? {
        report.orders += page.order_count();
        check_page(stores, &page, &page.ids(), &mut open, report).await?;
        checks.progress.advance(page.order_count());
    }
    Ok(open)
}

/// Checks the orders `ids` of a page. Adds those in flight to `open`. Reads orders again that seem
/// to violate an invariant, and reports those that still do.
async fn check_page(
    stores: Stores<'_>,
    page: &Page,
    ids: &[OrderId],
    open: &mut Open,
    report: &mut Report,
) -> Result<(), StoreError> {
    let mut suspects = Vec::new();
    let now = Utc::now();
    for id in ids {
        match judge(&page.find(*id), now) {
            Verdict::Holds => {}
            Verdict::InFlight(lack) => add_open(*id, lack, open, report),
            Verdict::Violated { .. } => suspects.push(*id),
        }
    }
    for ids in suspects.chunks(PAGE_ROWS as usize) {
        let page = stores.read(ids).await?;
        for id in ids {
            match judge(&page.find(*id), now) {
                Verdict::Holds => {}
                Verdict::InFlight(lack) => add_open(*id, lack, open, report),
                Verdict::Violated { invariant, detail } => report.violated(invariant, *id, detail),
            }
        }
    }
    Ok(())
}

fn add_open(id: OrderId, lack: InFlight, open: &mut Open, report: &mut Report) {
    if open.len() < MAX_AWAITED {
        open.insert(id, lack);
    } else {
        report.unsettled.add_unlisted(1);
    }
}

/// The letters of open orders. `None` if there are none, or if they are not read.
async fn letters_of(checks: &Checks<'_>, open: &Open, report: &mut Report) -> Option<Letters> {
    if open.is_empty() {
        return None;
    }
    let wanted = LettersFilter::of_orders(open.keys().copied());
    match Letters::read(checks, wanted).await {
        Ok(letters) => letters,
        Err(error) => {
            report.unchecked.push(format!("invariant 3, which orders are dead-lettered: {error}"));
            None
        }
    }
}
