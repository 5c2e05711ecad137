//! Both stores, side by side in the order of the ids, one page after the other.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::PAGE_ROWS;
use crate::{
    backoff::Backoff,
    domain::{Horizon, OrderId, fold::Outcome},
    store::{
        IdRange, OrderContent, OrderPage, OrderStore, OutcomePage, OwedRelease, StockStore,
        StoreError,
    },
};

/// Attempts to read a page again. Their pauses take some seconds.
const MAX_RETRIES: u32 = 7;

/// Both stores, and how far back the ledger reaches.
#[derive(Clone, Copy)]
pub(super) struct Stores<'a> {
    pub(crate) orders: &'a OrderStore,
    pub(crate) stock: &'a StockStore,
    pub(crate) horizon: Horizon,
}

/// Reads both stores from one end of the ids to the other. A page has up to `PAGE_ROWS` rows of a
/// table, so the memory is bounded.
pub(super) struct Walk<'a> {
    stores: Stores<'a>,
    /// `None` once both stores are read.
    rest: Option<IdRange>,
}

/// What both stores have of some orders. The order store was read first.
pub(super) struct Page {
    of_orders: OrderPage,
    of_stock: OutcomePage,
    /// No order below it can be decided or released any more.
    decidable_from: OrderId,
}

/// What both stores have of one order.
pub(super) struct Found<'a> {
    /// `Err` has a text that says what is corrupt.
    pub(crate) order: Option<Result<&'a OrderContent, &'a str>>,
    pub(crate) outcome: Option<Result<&'a Outcome, &'a str>>,
    pub(crate) owed: Option<&'a OwedRelease>,
    /// The end of its open hold.
    pub(crate) hold: Option<DateTime<Utc>>,
    /// Retention may have deleted the order.
    pub(crate) is_order_purged: bool,
    /// Retention may have deleted the outcome.
    pub(crate) is_outcome_purged: bool,
    /// The order can be decided and released.
    pub(crate) is_decidable: bool,
}

impl<'a> Walk<'a> {
    /// A walk over the ids from `first` on, or over all.
    pub(super) fn new(stores: Stores<'a>, first: Option<OrderId>) -> Self {
        Self { stores, rest: Some(IdRange::from(first, PAGE_ROWS)) }
    }

    /// The next page. `None` at the end. Fails with the error of a store.
    pub(super) async fn next(&mut self) -> Result<Option<Page>, StoreError> {
        let Some(range) = self.rest else { return Ok(None) };
        let Stores { orders, stock, .. } = self.stores;
        let mut order_page = patiently(async || orders.page_of_orders(range).await).await?;
        let outcomes_of = range.up_to(order_page.end);
        let outcome_page = patiently(async || stock.page_of_outcomes(outcomes_of).await).await?;
        if outcome_page.end.is_some() {
            // There are more outcomes than orders here. The next page reads these orders again.
            order_page.cut(outcome_page.end);
        }
        self.rest = order_page.end.map(|end| range.after(end));
        Ok(Some(Page::new(self.stores, order_page, outcome_page)))
    }
}

impl Stores<'_> {
    /// Reads the orders `ids`: at most as many as a page has.
    ///
    /// Fails with the error of a store.
    pub(super) async fn read(self, ids: &[OrderId]) -> Result<Page, StoreError> {
        let order_page = patiently(async || self.orders.find_page(ids).await).await?;
        let outcome_page = patiently(async || self.stock.find_outcome_page(ids).await).await?;
        Ok(Page::new(self, order_page, outcome_page))
    }
}

impl Page {
    fn new(stores: Stores<'_>, of_orders: OrderPage, of_stock: OutcomePage) -> Self {
        let decidable = stores.horizon.decidable(Utc::now());
        let decidable_from = decidable.start.max(of_stock.purged_below);
        Self { of_orders, of_stock, decidable_from }
    }

    /// The number of orders.
    pub(super) fn order_count(&self) -> u64 {
        self.of_orders.orders.len() as u64
    }

    /// All orders of which one of the stores has something.
    pub(super) fn ids(&self) -> Vec<OrderId> {
        let Self { of_orders, of_stock, .. } = self;
        let mut ids: Vec<_> = of_orders.orders.keys().copied().collect();
        let has_no_order = |id: &&OrderId| !of_orders.orders.contains_key(id);
        let others = of_orders.owed.keys().chain(of_orders.holds.keys());
        let others = others.chain(of_stock.outcomes.keys());
        ids.extend(others.filter(has_no_order));
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    pub(super) fn find(&self, order_id: OrderId) -> Found<'_> {
        let Self { of_orders, of_stock, decidable_from } = self;
        Found {
            order: readable(&of_orders.orders, order_id),
            outcome: readable(&of_stock.outcomes, order_id),
            owed: of_orders.owed.get(&order_id),
            hold: of_orders.holds.get(&order_id).copied(),
            is_order_purged: order_id < of_orders.purged_below,
            is_outcome_purged: order_id < of_stock.purged_below,
            is_decidable: order_id >= *decidable_from,
        }
    }
}

/// Reads again while the database is away: after a failover, a walk goes on where it was.
///
/// Fails with the last error after `MAX_RETRIES`.
async fn patiently<T>(read: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut failures = Backoff::default();
    loop {
        match read().await {
            Err(error @ StoreError::Unavailable(_)) if failures.failures() < MAX_RETRIES => {
                tracing::warn!(%error, "page not read, trying again");
                tokio::time::sleep(failures.next_delay()).await;
            }
            done => return done,
        }
    }
}

fn readable<T>(
    found: &BTreeMap<OrderId, Result<T, String>>,
    id: OrderId,
) -> Option<Result<&T, &str>> {
    found.get(&id).map(|read| read.as_ref().map_err(String::as_str))
}
