//! Invariant 3 of releases: those that are owed for too long, expired, or lost.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    OpenOrder, PAGE_ROWS, Report,
    stores::{InFlight, Verdict},
};
use crate::{
    config,
    domain::{Horizon, OrderId, OrderState, fold::Outcome},
    kafka::has_workers,
    store::{FoundOrder, OrderStore, OwedRelease, StockStore, StoreError},
};

/// The longest time for which a release may be owed while workers run.
const MAX_OWED: TimeDelta = TimeDelta::minutes(10);

/// What is known of an order's release.
pub(super) struct Release<'a> {
    pub(crate) order_id: OrderId,
    pub(crate) state: OrderState,
    pub(crate) outcome: Option<&'a Outcome>,
    pub(crate) owed: Option<&'a OwedRelease>,
}

impl Release<'_> {
    /// Whether the order failed or was cancelled, no worker released its stock, and no release is
    /// owed. An order without an outcome that is too old to be decided holds nothing.
    ///
    /// The caller reads `owed` after the order and before its outcome.
    fn is_lost(&self, decidable_from: OrderId) -> bool {
        let is_final = self.state.is_final();
        let may_hold_stock = match self.outcome {
            Some(Outcome::Completed(_)) => true,
            Some(Outcome::Failed(_) | Outcome::Released(_)) => false,
            None => self.order_id >= decidable_from,
        };
        is_final && may_hold_stock && self.owed.is_none()
    }

    /// `None` if the release decides nothing. No order below `decidable_from` can be decided or
    /// released any more.
    pub(super) fn judge(&self, decidable_from: OrderId, now: DateTime<Utc>) -> Option<Verdict> {
        let is_expired = self.order_id < decidable_from;
        let restock = "`stocklock stock restock` returns its units, \
                       `stocklock releases dismiss` closes the release";
        match self.owed {
            // The stock was released before, and a repeated status owed the release again.
            Some(owed)
                if (is_expired || owed.due_at.is_none())
                    && matches!(self.outcome, Some(Outcome::Failed(_) | Outcome::Released(_))) =>
            {
                None
            }
            Some(owed) if is_expired || owed.due_at.is_none() => Some(Verdict::violated(
                3,
                format!("its release was still owed when it passed the horizon: {restock}"),
            )),
            Some(owed) if now - owed.owed_at > MAX_OWED => {
                Some(Verdict::InFlight(InFlight::OverdueRelease))
            }
            Some(_) => Some(Verdict::InFlight(InFlight::Release)),
            None if self.is_lost(decidable_from) => {
                let remedy =
                    if is_expired { "`stocklock stock restock` returns its units" } else { OWE };
                let state = self.state;
                Some(Verdict::violated(
                    3,
                    format!("is {state}, and its release is neither done nor owed: {remedy}"),
                ))
            }
            None => None,
        }
    }
}

const OWE: &str = "`stocklock releases owe` owes it again";

/// Reports orders whose release is owed for too long: as violations if workers run, and else as not
/// settled.
pub(super) async fn judge_overdue(
    kafka: &config::KafkaConfig,
    overdue: Vec<OrderId>,
    report: &mut Report,
) {
    let kafka = kafka.clone();
    let asked = tokio::task::spawn_blocking(move || has_workers(&kafka)).await;
    let fact = "its release has been owed for more than ten minutes";
    let why = match asked {
        Ok(Ok(true)) => {
            for id in overdue {
                report.violated(3, id, format!("{fact} while workers run"));
            }
            return;
        }
        Ok(Ok(false)) => format!("{fact}, and no worker runs"),
        Ok(Err(error)) => format!("{fact}, and Kafka does not say whether workers run: {error}"),
        Err(error) => format!("{fact}, and Kafka was not asked: {error}"),
    };
    let open = |id: OrderId| OpenOrder { order_id: id.to_string(), why: why.clone() };
    report.unsettled.extend(overdue.into_iter().map(open));
}

/// Failed and cancelled orders whose stock was not released, and whose release is not owed.
#[derive(Debug, Default)]
pub(crate) struct LostReleases {
    /// Orders that a worker can still release.
    pub(crate) owable: Vec<OrderId>,
    /// Orders beyond the horizon.
    pub(crate) expired: Vec<OrderId>,
}

/// Reads all orders and their outcomes, and returns those whose release is lost.
///
/// Fails with the error of a store.
pub(crate) async fn find_lost_releases(
    orders: &OrderStore,
    stock: &StockStore,
    horizon: Horizon,
) -> Result<LostReleases, StoreError> {
    let (mut lost, mut after) = (LostReleases::default(), None);
    loop {
        let page = orders.page_of_orders(after, PAGE_ROWS).await?;
        after = page.last().map(|order| order.order_id);
        let ids: Vec<_> = page.iter().map(|order| order.order_id).collect();
        let owed = orders.find_owed_releases(&ids).await?;
        let outcomes: HashMap<_, _> = stock.find_outcomes(&ids).await?;
        let purged_below = stock.purged_below().await?;
        let decidable_from = horizon.decidable(Utc::now()).start.max(purged_below);
        for FoundOrder { order_id, content } in &page {
            // `verify` reports the rows that are corrupt.
            let (Ok(order), Ok(outcome)) =
                (content, outcomes.get(order_id).map_or(Ok(None), |read| read.as_ref().map(Some)))
            else {
                continue;
            };
            let release = Release {
                order_id: *order_id,
                state: order.state,
                outcome,
                owed: owed.get(order_id),
            };
            if release.is_lost(decidable_from) {
                let lost =
                    if *order_id < decidable_from { &mut lost.expired } else { &mut lost.owable };
                lost.push(*order_id);
            }
        }
        if page.len() < PAGE_ROWS as usize {
            return Ok(lost);
        }
    }
}
