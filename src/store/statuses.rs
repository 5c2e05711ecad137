//! Applies the statuses that workers and others report to the orders of the order store.

use std::{borrow::Borrow, collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::MySqlConnection;

use super::{
    OrderStore, StoreError, releases,
    rows::{expect_rows, hex, json, order_id, order_ids, order_state, wanted_orders},
    transaction::transaction,
};
use crate::{
    crash_point::crash_point,
    domain::{Effect, OrderEvent, OrderId, OrderState, OrderStatus, Reason, ReportedStatus},
};

/// What a batch of statuses did.
#[derive(Debug, Default)]
pub struct Applied {
    pub(crate) moved: Vec<MovedOrders>,
    /// The events of the releases that are owed now, leased to the caller.
    pub(crate) events: Vec<OrderEvent>,
    /// How many statuses reported a release as done.
    pub(crate) released: usize,
    /// Orders that the store does not have.
    pub(crate) unknown: Vec<OrderId>,
    /// Completed orders that were reported failed or cancelled too late to release their stock.
    /// They stay completed.
    pub(crate) too_late: Vec<OrderId>,
}

/// How many orders a batch of statuses moved to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MovedOrders {
    pub(crate) to: OrderState,
    pub(crate) count: usize,
}

/// An order whose row the transaction has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LockedOrder {
    pub(crate) order_id: OrderId,
    pub(crate) state: OrderState,
}

/// The parameter has the ids in their order, so that two compensators lock rows in the same order.
const LOCK_STATES: &str = concat!(
    "SELECT o.order_id, o.status FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id FOR UPDATE",
);

const MOVE_ORDERS: &str = "
    UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
        order_id VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        expected VARCHAR(16) CHARACTER SET ascii PATH '$[1]',
        next     VARCHAR(16) CHARACTER SET ascii PATH '$[2]',
        reason   VARCHAR(512) CHARACTER SET utf8mb4 PATH '$[3]')) AS moved
    STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY)
        ON o.order_id = UNHEX(moved.order_id) AND o.status = moved.expected
    SET o.status = moved.next, o.reason = moved.reason, o.updated_at = ?";

const COMPLETE_PENDING: &str = concat!(
    "UPDATE ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id
    SET o.status = 'COMPLETED', o.updated_at = ? WHERE o.status = 'PENDING'",
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
    /// releases that are owed then are leased to the caller for `lease`. A completed order below
    /// `releasable_from` stays completed.
    ///
    /// Fails with [`StoreError::Corrupt`] if an order's row cannot be read, with
    /// [`StoreError::Refused`] if the server refuses a reason, and with the errors of a
    /// transaction.
    pub async fn apply<S: Borrow<OrderStatus> + Sync>(
        &self,
        statuses: &[S],
        now: DateTime<Utc>,
        releasable_from: OrderId,
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
            if let Some(decisions) = first_decisions.as_ref().filter(|_| attempt == 0) {
                let moved = decisions.apply(conn, now).await?;
                crash_point("compensate.written");
                return Ok(Applied { moved, released, ..Applied::default() });
            }
            let plan = Plan::new(&statuses, &lock_states(conn, &ids).await?, releasable_from);
            plan.write_moves(conn, &statuses, now).await?;
            let events = plan.write_releases(conn, now, lease).await?;
            crash_point("compensate.written");
            Ok(Applied {
                moved: plan.count_moves(),
                events,
                released,
                unknown: plan.unknown,
                too_late: plan.too_late,
            })
        })
    }
}

/// Whether a status has an effect on an order in any state. The announcement of a state that the
/// order store has already has none.
fn may_have_effect(status: &OrderStatus) -> bool {
    OrderState::ALL.into_iter().any(|state| status.effect_on(Some(state), true) != Effect::Nothing)
}

/// Locks the orders of `ids` (a JSON parameter) that exist, until the transaction ends.
pub(super) async fn lock_states(
    conn: &mut MySqlConnection,
    ids: &str,
) -> Result<Vec<LockedOrder>, StoreError> {
    let rows = sqlx::query(LOCK_STATES).bind(ids).fetch_all(conn).await?;
    let locked = |row| Ok(LockedOrder { order_id: order_id(row)?, state: order_state(row)? });
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
                ReportedStatus::Cancelled(_) => return Ok(None),
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

/// What a batch of statuses does to orders in their present states: at most one move for each
/// order, and what its last status says about its release.
struct Plan {
    moves: Vec<Move>,
    /// Orders whose release is owed from now on.
    owed: Vec<OrderId>,
    /// Orders whose release is done.
    ended: Vec<OrderId>,
    unknown: Vec<OrderId>,
    too_late: Vec<OrderId>,
}

struct Move {
    order_id: OrderId,
    from: OrderState,
    to: OrderState,
    /// The index of the status that moves the order last.
    cause: usize,
}

impl Plan {
    fn new(statuses: &[&OrderStatus], locked: &[LockedOrder], releasable_from: OrderId) -> Self {
        let before: BTreeMap<_, _> =
            locked.iter().map(|order| (order.order_id, order.state)).collect();
        let mut moves: BTreeMap<OrderId, Move> = BTreeMap::new();
        // Whether the release of an order is owed, or done.
        let mut is_owed = BTreeMap::new();
        let (mut unknown, mut too_late) = (Vec::new(), Vec::new());
        for (cause, status) in statuses.iter().enumerate() {
            let id = status.order_id;
            let first = before.get(&id).copied();
            let state = moves.get(&id).map(|moved| moved.to).or(first);
            match status.effect_on(state, id >= releasable_from) {
                Effect::Nothing => {}
                Effect::Move { to, owes_release } => {
                    // Only an order that exists moves.
                    if let Some(from) = first {
                        moves.insert(id, Move { order_id: id, from, to, cause });
                    }
                    if owes_release {
                        is_owed.insert(id, true);
                    }
                }
                Effect::OweRelease => drop(is_owed.insert(id, true)),
                Effect::EndRelease => drop(is_owed.insert(id, false)),
                Effect::TooLate => too_late.push(id),
                Effect::UnknownOrder => unknown.push(id),
            }
        }
        let (owed, ended): (Vec<_>, Vec<_>) = is_owed.into_iter().partition(|(_, owed)| *owed);
        let ids = |orders: Vec<(OrderId, bool)>| orders.into_iter().map(|(id, _)| id).collect();
        let moves = moves.into_values().collect();
        Self { moves, owed: ids(owed), ended: ids(ended), unknown, too_late }
    }

    /// Moves the orders. Fails with [`StoreError::Conflict`] unless all of them are in the state
    /// that was read.
    async fn write_moves(
        &self,
        conn: &mut MySqlConnection,
        statuses: &[&OrderStatus],
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        if self.moves.is_empty() {
            return Ok(());
        }
        let row = |planned: &Move| {
            let reason = statuses[planned.cause].status.reason().map(Reason::as_str);
            (hex(planned.order_id), planned.from.as_str(), planned.to.as_str(), reason)
        };
        let rows = json(&self.moves.iter().map(row).collect::<Vec<_>>())?;
        let written = sqlx::query(MOVE_ORDERS).bind(rows).bind(now).execute(conn).await?;
        expect_rows("orders moved", self.moves.len(), written.rows_affected())
    }

    /// Owes and ends releases. Returns the events of the releases that are owed now.
    async fn write_releases(
        &self,
        conn: &mut MySqlConnection,
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Result<Vec<OrderEvent>, StoreError> {
        if !self.ended.is_empty() {
            releases::end(conn, &order_ids(self.ended.iter().copied())?).await?;
        }
        if self.owed.is_empty() {
            return Ok(Vec::new());
        }
        releases::owe(conn, self.owed.iter().copied(), now, now + lease).await?;
        releases::read_events(conn, &order_ids(self.owed.iter().copied())?).await
    }

    fn count_moves(&self) -> Vec<MovedOrders> {
        let count = |to| self.moves.iter().filter(|planned| planned.to == to).count();
        let counts = OrderState::ALL.into_iter().map(|to| MovedOrders { to, count: count(to) });
        counts.filter(|moved| moved.count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::WORKER_SOURCE;

    /// Whether a batch of these statuses is applied without a read before.
    fn is_fast(reported: &[(OrderId, ReportedStatus, &str)]) -> bool {
        let status = |(order_id, status, source): &(OrderId, ReportedStatus, &str)| OrderStatus {
            order_id: *order_id,
            status: status.clone(),
            source: (*source).to_owned(),
            occurred_at: DateTime::UNIX_EPOCH,
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
