//! Applies the statuses that workers and others report to the orders of the order store.

use std::{borrow::Borrow, collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};

use super::{
    OrderStore, StoreError,
    changes::{Change, Changed, Context, Event, MovedOrders, Plan},
    releases,
    rows::{expect_rows, hex, json, order_id, order_ids, order_state, text, wanted_orders},
    transaction::transaction,
};
use crate::{
    crash_point::crash_point,
    domain::{
        COMPENSATOR_SOURCE, Cause, Effect, Horizon, INGEST_SOURCE, OrderFacts, OrderId, OrderState,
        OrderStatus, ReportedStatus,
    },
};

/// What a batch of statuses did.
#[derive(Debug, Default)]
pub struct Applied {
    pub(crate) changed: Changed,
    /// How many statuses reported a release as done.
    pub(crate) released: usize,
}

/// An order whose row the transaction has locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LockedOrder {
    pub(super) order_id: OrderId,
    pub(super) state: OrderState,
    pub(super) reason: Option<String>,
    pub(super) reference: Option<String>,
    /// The hold that the order was placed with.
    pub(super) hold_seconds: Option<u32>,
    /// Somebody confirmed the order while it was pending.
    pub(super) is_hold_confirmed: bool,
}

/// The parameter has the ids in their order, so that two compensators lock rows in the same order.
macro_rules! lock_states {
    ($lock:literal) => {
        concat!(
            "SELECT o.order_id, o.status, o.reason, o.reference, o.hold_seconds,
                    o.is_hold_confirmed FROM ",
            wanted_orders!(),
            " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id ",
            $lock
        )
    };
}

const LOCK_STATES: &str = lock_states!("FOR UPDATE");
const LOCK_UNLOCKED: &str = lock_states!("FOR UPDATE SKIP LOCKED");

const COMPLETE_PENDING: &str = concat!(
    "UPDATE ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id
    SET o.status = 'COMPLETED', o.updated_at = ?
    WHERE o.status = 'PENDING' AND (o.hold_seconds IS NULL OR o.is_hold_confirmed)",
);

const FAIL_PENDING: &str = "
    UPDATE (SELECT UNHEX(hex) AS order_id, reason FROM JSON_TABLE(?, '$[*]' COLUMNS (
        hex    VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        reason VARCHAR(512) CHARACTER SET utf8mb4 PATH '$[1]')) AS refusals) AS refused
    STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = refused.order_id
    SET o.status = 'FAILED', o.reason = refused.reason, o.updated_at = ?
    WHERE o.status = 'PENDING'";

impl OrderStore {
    /// Applies statuses to their orders in one transaction, as if one by one in their order. The
    /// releases that are owed then and the announcements are leased to the caller for `lease`. A
    /// completed order that is too old for a release stays completed.
    ///
    /// Fails with [`StoreError::Corrupt`] if an order's row cannot be read, with
    /// [`StoreError::Refused`] if the server refuses a reason, and with the errors of a
    /// transaction.
    pub async fn apply<S: Borrow<OrderStatus> + Sync>(
        &self,
        statuses: &[S],
        now: DateTime<Utc>,
        horizon: Horizon,
        lease: Duration,
    ) -> Result<Applied, StoreError> {
        let statuses: Vec<&OrderStatus> =
            statuses.iter().map(S::borrow).filter(|status| may_have_effect(status)).collect();
        if statuses.is_empty() {
            return Ok(Applied::default());
        }
        let mut ids: Vec<_> = statuses.iter().map(|status| status.order_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let released =
            statuses.iter().filter(|status| status.status == ReportedStatus::Released).count();
        let first_decisions = FirstDecisions::new(&statuses, ids.len())?;
        let ids = order_ids(ids)?;
        transaction!(self.db, ApplyStatuses, |conn, attempt| {
            let changed = match first_decisions.as_ref().filter(|_| attempt == 0) {
                Some(decisions) => {
                    let moved = decisions.apply(conn, now).await?;
                    Changed { moved, ..Changed::default() }
                }
                None => {
                    let locked = lock_states(conn, &ids).await?;
                    let context = Context { now, horizon, announcer: COMPENSATOR_SOURCE, lease };
                    let events = statuses.iter().map(|status| Event::Reported(status));
                    Plan::new(events, locked, context).write(conn).await?
                }
            };
            crash_point("compensate.written");
            Ok(Applied { changed, released })
        })
    }

    /// Changes orders on the request of clients in one transaction, as if one by one in their
    /// order. The releases that are owed then and the announcements are leased to the caller for
    /// `lease`.
    ///
    /// Fails as [`OrderStore::apply`] does.
    pub async fn change(
        &self,
        changes: &[(OrderId, Change)],
        now: DateTime<Utc>,
        horizon: Horizon,
        lease: Duration,
    ) -> Result<Changed, StoreError> {
        let ids: BTreeSet<_> = changes.iter().map(|(id, _)| *id).collect();
        let ids = order_ids(ids)?;
        transaction!(self.db, ChangeOrders, |conn, _| {
            let locked = lock_states(conn, &ids).await?;
            let context = Context { now, horizon, announcer: INGEST_SOURCE, lease };
            let events = changes.iter().map(|(id, change)| Event::Requested(*id, *change));
            let changed = Plan::new(events, locked, context).write(conn).await?;
            crash_point("ingest.changed");
            Ok(changed)
        })
    }
}

/// Whether a status has an effect on any order. The announcement of a state that the order store
/// has already has none.
fn may_have_effect(status: &OrderStatus) -> bool {
    OrderState::ALL.into_iter().any(|state| {
        let facts = OrderFacts { state, wants_hold: false, is_releasable: true };
        Cause::Reported(status).effect_on(Some(facts)) != Effect::Nothing
    })
}

/// Locks the orders of `ids` (a JSON parameter) that exist, until the transaction ends.
pub(super) async fn lock_states(
    conn: &mut MySqlConnection,
    ids: &str,
) -> Result<Vec<LockedOrder>, StoreError> {
    locked(sqlx::query(LOCK_STATES).bind(ids).fetch_all(conn).await?)
}

/// Locks the orders of `ids` (a JSON parameter) that no other transaction has locked.
pub(super) async fn lock_unlocked(
    conn: &mut MySqlConnection,
    ids: &str,
) -> Result<Vec<LockedOrder>, StoreError> {
    locked(sqlx::query(LOCK_UNLOCKED).bind(ids).fetch_all(conn).await?)
}

fn locked(rows: Vec<MySqlRow>) -> Result<Vec<LockedOrder>, StoreError> {
    let locked = |row: &MySqlRow| {
        Ok(LockedOrder {
            order_id: order_id(row)?,
            state: order_state(row)?,
            reason: text(row, "reason")?,
            reference: text(row, "reference")?,
            hold_seconds: row.try_get("hold_seconds")?,
            is_hold_confirmed: row.try_get("is_hold_confirmed")?,
        })
    };
    rows.iter().map(locked).collect()
}

/// A batch as most are: a worker's first status of each of its orders, and releases that are done.
///
/// It is applied without a read before. The statements move pending orders alone, so another state
/// shows as a row that was not written.
struct FirstDecisions {
    completed: OrdersParameter,
    failed: OrdersParameter,
    released: OrdersParameter,
}

/// The parameter of a statement about distinct orders.
struct OrdersParameter {
    /// The number of the orders.
    count: usize,
    text: String,
}

impl FirstDecisions {
    /// `None` if an order has more than one status, or if the source of one is not a worker.
    /// `orders` is the number of distinct orders.
    fn new(statuses: &[&OrderStatus], orders: usize) -> Result<Option<Self>, StoreError> {
        if !statuses.iter().all(|status| status.is_from_worker()) {
            return Ok(None);
        }
        let (mut completed, mut failed) = (Vec::with_capacity(statuses.len()), Vec::new());
        let mut released = Vec::new();
        for status in statuses {
            match &status.status {
                ReportedStatus::Completed => completed.push(status.order_id),
                ReportedStatus::Failed(reason) => failed.push((status.order_id, reason.as_str())),
                ReportedStatus::Released => released.push(status.order_id),
                ReportedStatus::Reserved
                | ReportedStatus::Confirmed
                | ReportedStatus::Cancelled(_) => return Ok(None),
            }
        }
        completed.sort_unstable();
        failed.sort_unstable();
        released.sort_unstable();
        // A worker may repeat this status.
        released.dedup();
        if orders < completed.len() + failed.len() + released.len() {
            return Ok(None);
        }
        let refusals: Vec<_> = failed.iter().map(|(id, reason)| (hex(*id), reason)).collect();
        Ok(Some(Self {
            failed: OrdersParameter { count: failed.len(), text: json(&refusals)? },
            completed: OrdersParameter { count: completed.len(), text: order_ids(completed)? },
            released: OrdersParameter { count: released.len(), text: order_ids(released)? },
        }))
    }

    /// Fails with [`StoreError::Conflict`] if one of the orders is not pending or not there, or if
    /// a release that is done was not owed.
    async fn apply(
        &self,
        conn: &mut MySqlConnection,
        now: DateTime<Utc>,
    ) -> Result<Vec<MovedOrders>, StoreError> {
        let mut moved = Vec::with_capacity(2);
        for (statement, to, parameter) in [
            (COMPLETE_PENDING, OrderState::Completed, &self.completed),
            (FAIL_PENDING, OrderState::Failed, &self.failed),
        ] {
            if parameter.count > 0 {
                let moving = sqlx::query(statement).bind(&parameter.text).bind(now);
                let written = moving.execute(&mut *conn).await?.rows_affected();
                expect_rows("pending orders moved", parameter.count, written)?;
                moved.push(MovedOrders { to, count: parameter.count });
            }
        }
        if self.released.count > 0 {
            let ended = releases::end(conn, &self.released.text).await?;
            expect_rows("releases ended", self.released.count, ended)?;
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Reason, WORKER_SOURCE};

    /// Whether a batch of these statuses is applied without a read before.
    fn is_fast(reported: &[(OrderId, ReportedStatus, &str)]) -> bool {
        let status = |(order_id, status, source): &(OrderId, ReportedStatus, &str)| OrderStatus {
            order_id: *order_id,
            status: status.clone(),
            source: (*source).to_owned(),
            occurred_at: DateTime::UNIX_EPOCH,
            reference: None,
        };
        let statuses: Vec<_> = reported.iter().map(status).collect();
        let orders: std::collections::BTreeSet<_> = reported.iter().map(|(id, ..)| *id).collect();
        FirstDecisions::new(&statuses.iter().collect::<Vec<_>>(), orders.len()).unwrap().is_some()
    }

    #[test]
    fn releases_that_are_done_leave_a_batch_of_first_decisions_fast() {
        let [one, two, three] = [(); 3].map(|()| OrderId::generate());
        let completed = |id| (id, ReportedStatus::Completed, WORKER_SOURCE);
        let released = |id| (id, ReportedStatus::Released, WORKER_SOURCE);
        let failed = |id, source| (id, ReportedStatus::Failed(Reason::InsufficientStock), source);

        assert!(is_fast(&[
            completed(one),
            failed(two, WORKER_SOURCE),
            released(three),
            released(three)
        ]));
        assert!(is_fast(&[released(one), released(two)]));
        assert!(!is_fast(&[completed(one), released(one)]), "an order has two statuses");
        assert!(!is_fast(&[completed(one), completed(one), released(two)]));
        assert!(!is_fast(&[released(one), failed(two, "payments")]));
    }
}
