//! What workers and others report of orders, brought back to the order store.

use std::{borrow::Borrow, collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::MySqlConnection;

use super::{
    OrderStore, StoreError,
    database::transaction,
    releases,
    rows::{ascii, expect_rows, hex, json, order_id, order_ids, wanted_orders},
};
use crate::{
    crash_point::crash_point,
    domain::{Effect, OrderEvent, OrderId, OrderState, OrderStatus, Reason, ReportedStatus},
};

/// What a batch of statuses did.
#[derive(Debug, Default)]
pub struct Applied {
    /// How many orders moved to each state.
    pub(crate) moved: Vec<(OrderState, usize)>,
    /// Events of the releases that are owed now, leased to the caller.
    pub(crate) events: Vec<OrderEvent>,
    /// Orders whose release is reported as done, each as often as that was.
    pub(crate) released: usize,
    /// Orders that the store does not know.
    pub(crate) unknown: Vec<OrderId>,
    /// Completed orders that are reported failed too late for their stock to be given back; they stay completed.
    pub(crate) too_late: Vec<OrderId>,
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

impl OrderStore {
    /// Brings statuses back to their orders, as if one by one in their order, in one transaction.
    /// Releases that are owed then are leased to the caller for `lease`. Orders below
    /// `releasable_from` do not fail any more once they are completed.
    pub async fn apply<S: Borrow<OrderStatus> + Sync>(
        &self,
        statuses: &[S],
        now: DateTime<Utc>,
        releasable_from: OrderId,
        lease: Duration,
    ) -> Result<Applied, StoreError> {
        let statuses: Vec<&OrderStatus> =
            statuses.iter().map(S::borrow).filter(|status| may_matter(status)).collect();
        if statuses.is_empty() {
            return Ok(Applied::default());
        }
        let mut ids: Vec<_> = statuses.iter().map(|status| status.order_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let released =
            statuses.iter().filter(|status| status.status == ReportedStatus::Released).count();
        let decisions = FirstDecisions::new(&statuses, ids.len())?;
        let ids = order_ids(ids)?;
        transaction!(self.db, "apply statuses", |conn, attempt| {
            if let Some(decisions) = decisions.as_ref().filter(|_| attempt == 0) {
                let moved = decisions.apply(conn, now).await?;
                crash_point("compensate.written");
                return Ok(Applied { moved, released, ..Applied::default() });
            }
            let plan = Plan::new(&statuses, &lock_states(conn, &ids).await?, releasable_from);
            let moved = plan.moves(&statuses);
            if !moved.is_empty() {
                let written = sqlx::query(MOVE_ORDERS)
                    .bind(json(&moved)?)
                    .bind(now)
                    .execute(&mut *conn)
                    .await?;
                expect_rows("orders moved", moved.len(), written.rows_affected())?;
            }
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

/// Whether a status has an effect on any order. An announcement of what the order store holds
/// already has none.
fn may_matter(status: &OrderStatus) -> bool {
    OrderState::ALL.into_iter().any(|state| status.effect_on(Some(state), true) != Effect::Nothing)
}

/// The states of those orders that exist, which stay as they are until the transaction ends.
pub(super) async fn lock_states(
    conn: &mut MySqlConnection,
    ids: &str,
) -> Result<Vec<(OrderId, OrderState)>, StoreError> {
    let rows = sqlx::query(LOCK_STATES).bind(ids).fetch_all(conn).await?;
    rows.iter().map(|row| Ok((order_id(row)?, OrderState::parse(ascii(row, "status")?)?))).collect()
}

/// A batch as nearly all are: a worker's first word on each of its orders, and releases that are
/// done. It is applied as long as the orders decided all are pending, without a look at them
/// before.
struct FirstDecisions {
    completed: usize,
    completed_ids: String,
    failed: usize,
    refusals: String,
    released: usize,
    released_ids: String,
}

impl FirstDecisions {
    /// `None` where an order has more than one status, or somebody else reports one. `orders` is
    /// the number of distinct orders.
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
        // The worker repeats this status, and once is as good as twice.
        released.dedup();
        if orders < completed.len() + failed.len() + released.len() {
            return Ok(None);
        }
        let refusals: Vec<_> = failed.iter().map(|(id, reason)| (hex(*id), reason)).collect();
        Ok(Some(Self {
            completed: completed.len(),
            completed_ids: order_ids(completed)?,
            failed: failed.len(),
            refusals: json(&refusals)?,
            released: released.len(),
            released_ids: order_ids(released)?,
        }))
    }

    /// A conflict where one of the orders is not pending, or not there, or where a release that is
    /// done was not owed.
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
        for (statement, state, count, orders) in
            parts.into_iter().filter(|(_, _, count, _)| *count > 0)
        {
            let written = sqlx::query(statement).bind(orders).bind(now).execute(&mut *conn).await?;
            expect_rows("pending orders moved", count, written.rows_affected())?;
            moved.push((state, count));
        }
        if self.released > 0 {
            let ended = releases::end(conn, &self.released_ids).await?;
            expect_rows("releases ended", self.released, ended)?;
        }
        Ok(moved)
    }
}

/// What a batch of statuses means for the orders as they stand: at most one move an order, and what
/// its last status says of its release.
struct Plan {
    /// The order, its state before, its state after, and the index of the status that moved it last.
    moves: Vec<(OrderId, OrderState, OrderState, usize)>,
    /// Orders whose release is owed from now on.
    owed: Vec<OrderId>,
    /// Orders whose release is done.
    ended: Vec<OrderId>,
    unknown: Vec<OrderId>,
    too_late: Vec<OrderId>,
}

impl Plan {
    fn new(
        statuses: &[&OrderStatus],
        states: &[(OrderId, OrderState)],
        releasable_from: OrderId,
    ) -> Self {
        let before: BTreeMap<_, _> = states.iter().copied().collect();
        let mut after = BTreeMap::new();
        let mut releases = BTreeMap::new();
        let (mut unknown, mut too_late) = (Vec::new(), Vec::new());
        for (index, status) in statuses.iter().enumerate() {
            let id = status.order_id;
            let state =
                after.get(&id).map(|(state, _)| *state).or_else(|| before.get(&id).copied());
            match status.effect_on(state, id >= releasable_from) {
                Effect::Nothing => {}
                Effect::Move { to, owes_release } => {
                    after.insert(id, (to, index));
                    if owes_release {
                        releases.insert(id, true);
                    }
                }
                Effect::OweRelease => drop(releases.insert(id, true)),
                Effect::EndRelease => drop(releases.insert(id, false)),
                Effect::TooLate => too_late.push(id),
                Effect::UnknownOrder => unknown.push(id),
            }
        }
        let moves =
            after.into_iter().map(|(id, (next, index))| (id, before[&id], next, index)).collect();
        let (owed, ended): (Vec<_>, Vec<_>) = releases.into_iter().partition(|(_, owed)| *owed);
        let ids = |orders: Vec<(OrderId, bool)>| orders.into_iter().map(|(id, _)| id).collect();
        Self { moves, owed: ids(owed), ended: ids(ended), unknown, too_late }
    }

    /// Writes which releases are owed and which are done. Answers the events of the former.
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

    fn moves<'a>(
        &self,
        statuses: &'a [&OrderStatus],
    ) -> Vec<(String, &'static str, &'static str, Option<&'a str>)> {
        let row = |(id, before, after, index): &(OrderId, OrderState, OrderState, usize)| {
            let reason = statuses[*index].status.reason().map(Reason::as_str);
            (hex(*id), before.as_str(), after.as_str(), reason)
        };
        self.moves.iter().map(row).collect()
    }

    fn count_moves(&self) -> Vec<(OrderState, usize)> {
        OrderState::ALL
            .into_iter()
            .map(|state| {
                (state, self.moves.iter().filter(|(_, _, next, _)| *next == state).count())
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::WORKER_SOURCE;

    fn is_fast(said: &[(OrderId, ReportedStatus, &str)]) -> bool {
        let status = |(order_id, status, source): &(OrderId, ReportedStatus, &str)| OrderStatus {
            order_id: *order_id,
            status: status.clone(),
            source: (*source).to_owned(),
            occurred_at: DateTime::UNIX_EPOCH,
        };
        let statuses: Vec<_> = said.iter().map(status).collect();
        let orders: std::collections::BTreeSet<_> = said.iter().map(|(id, ..)| *id).collect();
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
        assert!(!is_fast(&[completed(one), released(one)]), "it was decided, and then released");
        assert!(!is_fast(&[completed(one), completed(one), released(two)]));
        assert!(!is_fast(&[released(one), failed(two, "payments")]));
    }
}
