//! Invariant 3 of releases: those that are owed for too long, expired, or lost.

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    judge::{InFlight, Verdict},
    walk::{Found, Stores, Walk},
};
use crate::{
    domain::{Horizon, OrderId, OrderState, fold::Outcome},
    store::{OrderStore, StockStore, StoreError},
};

/// The longest time for which a release may be owed while workers run.
const MAX_OWED: TimeDelta = TimeDelta::minutes(10);

/// Whether the order failed or was cancelled, no worker released its stock, and no release is owed.
/// An order without an outcome that is too old to be decided holds nothing.
///
/// `found.owed` was read with the order and before its outcome.
fn is_lost(found: &Found<'_>, state: OrderState, outcome: Option<&Outcome>) -> bool {
    let may_hold_stock = match outcome {
        Some(Outcome::Completed(_)) => true,
        Some(Outcome::Failed(_) | Outcome::Released(_)) => false,
        None => found.is_decidable,
    };
    state.is_final() && may_hold_stock && found.owed.is_none()
}

/// The verdict on an order's release. `None` if the release decides nothing.
pub(super) fn judge(
    found: &Found<'_>,
    state: OrderState,
    outcome: Option<&Outcome>,
    now: DateTime<Utc>,
) -> Option<Verdict> {
    let restock = "`stocklock stock restock` returns its units, \
                   `stocklock releases dismiss` closes the release";
    match found.owed {
        // The stock was released before, and a repeated status owed the release again.
        Some(owed)
            if (!found.is_decidable || owed.due_at.is_none())
                && matches!(outcome, Some(Outcome::Failed(_) | Outcome::Released(_))) =>
        {
            None
        }
        Some(owed) if !found.is_decidable || owed.due_at.is_none() => Some(Verdict::violated(
            3,
            format!("its release was still owed when it passed the horizon: {restock}"),
        )),
        Some(owed) if now - owed.owed_at > MAX_OWED => {
            Some(Verdict::InFlight(InFlight::OverdueRelease))
        }
        Some(_) => Some(Verdict::InFlight(InFlight::Release)),
        None if is_lost(found, state, outcome) => {
            let remedy = if found.is_decidable {
                OWE
            } else {
                "unless a person returned its units, `stocklock stock restock` returns them"
            };
            Some(Verdict::violated(
                3,
                format!("is {state}, and its release is neither done nor owed: {remedy}"),
            ))
        }
        None => None,
    }
}

const OWE: &str = "`stocklock releases owe` owes it again";

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
    let mut lost = LostReleases::default();
    let mut walk = Walk::new(Stores { orders, stock, horizon }, None);
    while let Some(page) = walk.next().await? {
        for id in page.ids() {
            let found = page.find(id);
            // `verify` reports the rows that are corrupt.
            let (Some(Ok(order)), Ok(outcome)) = (found.order, found.outcome.transpose()) else {
                continue;
            };
            if is_lost(&found, order.state, outcome) {
                let lost = if found.is_decidable { &mut lost.owable } else { &mut lost.expired };
                lost.push(id);
            }
        }
    }
    Ok(lost)
}
