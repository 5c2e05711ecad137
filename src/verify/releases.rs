//! Releases that are owed, too late, or lost.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::{InFlight, PAGE, Report, Verdict};
use crate::{
    config,
    domain::{Horizon, OrderId, OrderState, fold::Outcome},
    kafka::has_workers,
    store::{OrderStore, OwedRelease, StockStore, StoreError},
};

/// How long a release may be owed while workers run.
const LONGEST_OWED: TimeDelta = TimeDelta::minutes(10);

/// What is known of an order's release.
pub(super) struct Release<'a> {
    pub(crate) order_id: OrderId,
    pub(crate) state: OrderState,
    pub(crate) outcome: Option<&'a Outcome>,
    pub(crate) owed: Option<&'a OwedRelease>,
}

impl Release<'_> {
    /// Whether the order failed or was cancelled, no worker released its stock, and no release is
    /// owed: read what is owed after the order and before its outcome. An order that was not
    /// decided and can be decided no longer holds nothing.
    fn is_lost(&self, decidable_from: OrderId) -> bool {
        let is_final = matches!(self.state, OrderState::Failed | OrderState::Cancelled);
        let is_open = match self.outcome {
            Some(Outcome::Completed(_)) => true,
            Some(Outcome::Failed(_) | Outcome::Released(_)) => false,
            None => self.order_id >= decidable_from,
        };
        is_final && is_open && self.owed.is_none()
    }

    /// `None` where the release decides nothing. No order below `decidable_from` can be decided or
    /// released any more.
    pub(super) fn judge(&self, decidable_from: OrderId, now: DateTime<Utc>) -> Option<Verdict> {
        let is_expired = self.order_id < decidable_from;
        let restock = "`stocklock stock restock` returns its units, `stocklock releases dismiss` closes the release";
        match self.owed {
            // It was released before: a repeated status owed it again.
            Some(owed)
                if (is_expired || owed.due_at.is_none())
                    && matches!(self.outcome, Some(Outcome::Failed(_) | Outcome::Released(_))) =>
            {
                None
            }
            Some(owed) if is_expired || owed.due_at.is_none() => Some(Verdict::Violated(
                3,
                format!("its release was still owed when it passed the horizon: {restock}"),
            )),
            Some(owed) if now - owed.owed_at > LONGEST_OWED => {
                Some(Verdict::InFlight(InFlight::OverdueRelease))
            }
            Some(_) => Some(Verdict::InFlight(InFlight::Release)),
            None if self.is_lost(decidable_from) => {
                let remedy =
                    if is_expired { "`stocklock stock restock` returns its units" } else { OWE };
                Some(Verdict::Violated(
                    3,
                    format!(
                        "is {}, and its release is neither done nor owed: {remedy}",
                        self.state
                    ),
                ))
            }
            None => None,
        }
    }
}

const OWE: &str = "`stocklock releases owe` owes it again";

/// Releases that have been owed for too long are violations only while workers run.
pub(super) async fn judge_overdue(
    kafka: &config::KafkaConfig,
    overdue: Vec<OrderId>,
    report: &mut Report,
) {
    let kafka = kafka.clone();
    let asked = tokio::task::spawn_blocking(move || has_workers(&kafka)).await;
    let why = match asked {
        Ok(Ok(true)) => {
            for id in overdue {
                report.violated(
                    3,
                    id,
                    "its release has been owed for more than ten minutes while workers run",
                );
            }
            return;
        }
        Ok(Ok(false)) => {
            "its release has been owed for more than ten minutes, and no worker runs".to_owned()
        }
        Ok(Err(error)) => format!(
            "its release has been owed for more than ten minutes, and Kafka does not say whether workers run: {error}"
        ),
        Err(error) => format!(
            "its release has been owed for more than ten minutes, and Kafka was not asked: {error}"
        ),
    };
    report.unsettled.extend(overdue.into_iter().map(|id| (id.to_string(), why.clone())));
}

/// Failed and cancelled orders whose stock was not released, and whose release nobody owes.
#[derive(Debug, Default)]
pub(crate) struct LostReleases {
    /// Those that a worker can still release.
    pub(crate) owable: Vec<OrderId>,
    /// Those beyond the horizon.
    pub(crate) expired: Vec<OrderId>,
}

/// Reads every order, and what became of it, for releases that are lost.
pub(crate) async fn find_lost_releases(
    orders: &OrderStore,
    stock: &StockStore,
    horizon: Horizon,
) -> Result<LostReleases, StoreError> {
    let (mut lost, mut after) = (LostReleases::default(), None);
    loop {
        let page = orders.page_of_orders(after, PAGE).await?;
        after = page.last().map(|(id, _)| *id);
        let ids: Vec<_> = page.iter().map(|(id, _)| *id).collect();
        let owed = orders.find_owed_releases(&ids).await?;
        let outcomes: HashMap<_, _> = stock.find_outcomes(&ids).await?;
        let purged_below = stock.purged_below().await?;
        let decidable_from = horizon.decidable(Utc::now()).start.max(purged_below);
        for (order_id, order) in &page {
            // `verify` names what cannot be read.
            let (Ok(order), Ok(outcome)) =
                (order, outcomes.get(order_id).map_or(Ok(None), |read| read.as_ref().map(Some)))
            else {
                continue;
            };
            let release = Release {
                order_id: *order_id,
                state: order.status,
                outcome,
                owed: owed.get(order_id),
            };
            if release.is_lost(decidable_from) {
                let lost =
                    if *order_id < decidable_from { &mut lost.expired } else { &mut lost.owable };
                lost.push(*order_id);
            }
        }
        if page.len() < PAGE as usize {
            return Ok(lost);
        }
    }
}
