//! What workers and others report of orders, brought back to the order store.

use std::{borrow::Borrow, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::MySqlConnection;

use super::{
    OrderStore, StoreError,
    database::transaction,
    orders::event,
    rows::{ascii, expect_rows, hex, json, order_id, order_ids, wanted_orders},
};
use crate::{
    crash_point::crash_point,
    domain::{EventKind, OrderEvent, OrderId, OrderState, OrderStatus, Reason, ReportedStatus},
};

/// What a batch of statuses did.
#[derive(Debug, Default)]
pub struct Applied {
    /// How many orders moved to each state.
    pub moved: Vec<(OrderState, usize)>,
    /// Release events that were put into the outbox.
    pub events: Vec<OrderEvent>,
    /// Orders that the store does not know.
    pub unknown: Vec<OrderId>,
    /// Completed orders that are reported failed too late for their stock to be given back; they stay completed.
    pub too_late: Vec<OrderId>,
}

/// In the order of the primary key, so that two compensators lock in the same order.
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
    STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = UNHEX(moved.order_id) AND o.status = moved.expected
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
    SET o.status = 'FAILED', o.reason = refused.reason, o.updated_at = ? WHERE o.status = 'PENDING'";

const READ_LINES: &str = concat!(
    "SELECT o.order_id, o.`lines`, o.created_at FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id",
);

impl OrderStore {
    /// Brings statuses back to their orders, as if one by one in their order, in one transaction. What is released is in the
    /// outbox, leased to the caller for `lease`. Orders below `releasable_from` do not fail any more once they are completed.
    pub async fn apply<S: Borrow<OrderStatus> + Sync>(
        &self,
        statuses: &[S],
        now: DateTime<Utc>,
        releasable_from: OrderId,
        lease: Duration,
    ) -> Result<Applied, StoreError> {
        let statuses: Vec<&OrderStatus> = statuses.iter().map(S::borrow).collect();
        let mut ids: Vec<_> = statuses.iter().map(|status| status.order_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let decisions = FirstDecisions::new(&statuses, ids.len())?;
        let ids = order_ids(ids)?;
        transaction!(self.db, "apply statuses", |conn, attempt| {
            if let Some(decisions) = decisions.as_ref().filter(|_| attempt == 0) {
                let moved = decisions.apply(conn, now).await?;
                crash_point("compensate.written");
                return Ok(Applied { moved, ..Applied::default() });
            }
            let plan = Plan::new(&statuses, &lock_states(conn, &ids).await?, releasable_from);
            let moved = plan.moves(&statuses);
            if !moved.is_empty() {
                let written = sqlx::query(MOVE_ORDERS).bind(json(&moved)?).bind(now).execute(&mut *conn).await?;
                expect_rows("orders moved", moved.len(), written.rows_affected())?;
            }
            crash_point("compensate.written");
            let events = release(conn, &plan.releases, lease).await?;
            Ok(Applied { moved: plan.count_moves(), events, unknown: plan.unknown, too_late: plan.too_late })
        })
    }
}

/// The states of those orders that exist, which stay as they are until the transaction ends.
pub(super) async fn lock_states(
    conn: &mut MySqlConnection,
    ids: &str,
) -> Result<Vec<(OrderId, OrderState)>, StoreError> {
    let rows = sqlx::query(LOCK_STATES).bind(ids).fetch_all(conn).await?;
    rows.iter().map(|row| Ok((order_id(row)?, OrderState::parse(ascii(row, "status")?)?))).collect()
}

/// Puts a release event of each order into the outbox.
async fn release(conn: &mut MySqlConnection, ids: &[OrderId], lease: Duration) -> Result<Vec<OrderEvent>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids = order_ids(ids.iter().copied())?;
    super::outbox::insert(conn, &ids, EventKind::Release, lease).await?;
    let rows = sqlx::query(READ_LINES).bind(&ids).fetch_all(conn).await?;
    rows.iter().map(|row| event(row, EventKind::Release)).collect()
}

/// A batch as nearly all are: a worker's first word on each of its orders. It is applied as long as they all are pending, without
/// a look at them before.
struct FirstDecisions {
    completed: usize,
    completed_ids: String,
    failed: usize,
    refusals: String,
}

impl FirstDecisions {
    /// `None` where an order has more than one status, or somebody else reports one.
    fn new(statuses: &[&OrderStatus], orders: usize) -> Result<Option<Self>, StoreError> {
        if orders < statuses.len() || !statuses.iter().all(|status| status.is_from_worker()) {
            return Ok(None);
        }
        let (mut completed, mut failed) = (Vec::with_capacity(statuses.len()), Vec::new());
        for status in statuses {
            match &status.status {
                ReportedStatus::Completed => completed.push(status.order_id),
                ReportedStatus::Failed(reason) => failed.push((status.order_id, reason.as_str())),
            }
        }
        completed.sort_unstable();
        failed.sort_unstable();
        let refusals: Vec<_> = failed.iter().map(|(id, reason)| (hex(*id), reason)).collect();
        Ok(Some(Self {
            completed: completed.len(),
            completed_ids: order_ids(completed)?,
            failed: failed.len(),
            refusals: json(&refusals)?,
        }))
    }

    /// A conflict where one of the orders is not pending, or not there.
    async fn apply(
        &self,
        conn: &mut MySqlConnection,
        now: DateTime<Utc>,
    ) -> Result<Vec<(OrderState, usize)>, StoreError> {
        let parts = [
            (COMPLETE_PENDING, OrderState::Completed, self.completed, &self.completed_ids),
            (FAIL_PENDING, OrderState::Failed, self.failed, &self.refusals),
        ];
        let mut moved = Vec::with_capacity(parts.len());
        for (statement, state, count, orders) in parts.into_iter().filter(|(_, _, count, _)| *count > 0) {
            let written = sqlx::query(statement).bind(orders).bind(now).execute(&mut *conn).await?;
            expect_rows("pending orders moved", count, written.rows_affected())?;
            moved.push((state, count));
        }
        Ok(moved)
    }
}

/// What a batch of statuses means for the orders as they stand: at most one move and one release an order.
struct Plan {
    /// The order, its state before, its state after, and the index of the status that moved it last.
    moves: Vec<(OrderId, OrderState, OrderState, usize)>,
    releases: Vec<OrderId>,
    unknown: Vec<OrderId>,
    too_late: Vec<OrderId>,
}

impl Plan {
    fn new(statuses: &[&OrderStatus], states: &[(OrderId, OrderState)], releasable_from: OrderId) -> Self {
        let before: std::collections::BTreeMap<_, _> = states.iter().copied().collect();
        let mut after = std::collections::BTreeMap::new();
        let mut releases = std::collections::BTreeSet::new();
        let (mut unknown, mut too_late) = (Vec::new(), Vec::new());
        for (index, status) in statuses.iter().enumerate() {
            let id = status.order_id;
            let Some(initial) = before.get(&id) else {
                unknown.push(id);
                continue;
            };
            let (state, _) = after.get(&id).copied().unwrap_or((*initial, index));
            let transition = state.on(status);
            // A pending order may fail at any age: nothing that is known of is held for it.
            if state == OrderState::Completed && transition.release && id < releasable_from {
                too_late.push(id);
                continue;
            }
            if let Some(next) = transition.next {
                after.insert(id, (next, index));
            }
            if transition.release {
                releases.insert(id);
            }
        }
        let moves = after.into_iter().map(|(id, (next, index))| (id, before[&id], next, index)).collect();
        Self { moves, releases: releases.into_iter().collect(), unknown, too_late }
    }

    fn moves<'a>(&self, statuses: &'a [&OrderStatus]) -> Vec<(String, &'static str, &'static str, Option<&'a str>)> {
        let row = |(id, before, after, index): &(OrderId, OrderState, OrderState, usize)| {
            let reason = match &statuses[*index].status {
                ReportedStatus::Completed => None,
                ReportedStatus::Failed(reason) => Some(Reason::as_str(reason)),
            };
            (hex(*id), before.as_str(), after.as_str(), reason)
        };
        self.moves.iter().map(row).collect()
    }

    fn count_moves(&self) -> Vec<(OrderState, usize)> {
        [OrderState::Completed, OrderState::Failed]
            .into_iter()
            .map(|state| (state, self.moves.iter().filter(|(_, _, next, _)| *next == state).count()))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}
