//! Applies the statuses that workers and others report to the orders of the order store.

mod first;

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};

use self::first::{AppliedFirst, FirstDecisions};
use super::{
    OrderStore, StoreError,
    changes::{Changed, Context, Event, Plan},
    database::on_connection,
    rows::{order_id, order_ids, order_state, text, wanted_orders},
    transaction::transaction,
};
use crate::{
    crash_point::crash_point,
    domain::{
        COMPENSATOR_SOURCE, Cause, Effect, Horizon, OrderFacts, OrderId, OrderState, OrderStatus,
        ReportedStatus,
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
    pub(super) created_at: DateTime<Utc>,
    /// When the row was read, by the clock of the server.
    pub(super) read_at: DateTime<Utc>,
}

/// The parameter has the ids in their order, so that two compensators lock rows in the same order.
macro_rules! lock_states {
    ($lock:literal) => {
        concat!(
            "SELECT o.order_id, o.status, o.reason, o.reference, o.hold_seconds,
                    o.is_hold_confirmed, o.created_at, UTC_TIMESTAMP(3) AS read_at FROM ",
            wanted_orders!(),
            " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id ",
            $lock
        )
    };
}

const LOCK_STATES: &str = lock_states!("FOR UPDATE");
/// Locks nothing.
const READ_STATES: &str = lock_states!("");
const LOCK_UNLOCKED: &str = lock_states!("FOR UPDATE SKIP LOCKED");

impl OrderStore {
    /// Applies statuses to their orders in one transaction, as if one by one in their order. The
    /// releases that are owed then and the announcements are leased to the caller for `lease`. A
    /// completed order that is too old for a release stays completed.
    ///
    /// A worker's only status of an order is applied without a read before. If some of these orders
    /// are not pending any more, they are locked and read too.
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
        let mut statuses: Vec<&OrderStatus> =
            statuses.iter().map(S::borrow).filter(|status| may_have_effect(status)).collect();
        if statuses.is_empty() {
            return Ok(Applied::default());
        }
        // The statuses of an order keep their order.
        statuses.sort_by_key(|status| status.order_id);
        let released =
            statuses.iter().filter(|status| status.status == ReportedStatus::Released).count();
        let (first, others) = FirstDecisions::split(&statuses)?;
        transaction!(self.db, ApplyStatuses, |conn, _| {
            let context = Context { now, horizon, announcer: COMPENSATOR_SOURCE, lease };
            let AppliedFirst { moved, mut unusual } = first.apply(conn, now).await?;
            // The orders that have just moved are not changed once more.
            unusual.extend(&others);
            let mut changed = fold_reports(conn, &unusual, context).await?;
            changed.moved.extend(moved);
            crash_point("compensate.written");
            Ok(Applied { changed, released })
        })
    }
}

impl OrderStore {
    /// The facts of the orders `ids` that exist, each with its error text if it cannot be read.
    pub(crate) async fn find_facts(
        &self,
        ids: &[OrderId],
        now: DateTime<Utc>,
        horizon: Horizon,
    ) -> Result<HashMap<OrderId, Result<OrderFacts, String>>, StoreError> {
        let query = sqlx::query(READ_STATES).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        let releasable_from = horizon.releasable_from(now);
        let facts = |row: &MySqlRow| {
            let order = locked_order(row)?;
            Ok(OrderFacts {
                state: order.state,
                wants_hold: order.hold_seconds.is_some() && !order.is_hold_confirmed,
                is_releasable: order.order_id >= releasable_from,
            })
        };
        let readable = |row| facts(row).map_err(|error: StoreError| error.to_string());
        rows.iter().map(|row| Ok((order_id(row)?, readable(row)))).collect()
    }
}

/// Locks the orders of the statuses, and applies the statuses to them one by one.
async fn fold_reports(
    conn: &mut MySqlConnection,
    statuses: &[&OrderStatus],
    context: Context,
) -> Result<Changed, StoreError> {
    if statuses.is_empty() {
        return Ok(Changed::default());
    }
    let ids: BTreeSet<_> = statuses.iter().map(|status| status.order_id).collect();
    let locked = lock_states(conn, &order_ids(ids)?).await?;
    let events = statuses.iter().map(|status| Event::Reported(status));
    Plan::new(events, locked, context).write(conn).await
}

/// Whether a status has an effect on any order. The announcement of a state that the order store
/// has already has none.
fn may_have_effect(status: &OrderStatus) -> bool {
    let orders = OrderState::ALL.into_iter().flat_map(|state| {
        let facts = |wants_hold| OrderFacts { state, wants_hold, is_releasable: true };
        [facts(false), facts(true)]
    });
    let mut effects = orders.map(|facts| Cause::Reported(status).effect_on(Some(facts)));
    effects.any(|effect| effect != Effect::Nothing)
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
    rows.iter().map(locked_order).collect()
}

fn locked_order(row: &MySqlRow) -> Result<LockedOrder, StoreError> {
    Ok(LockedOrder {
        order_id: order_id(row)?,
        state: order_state(row)?,
        reason: text(row, "reason")?,
        reference: text(row, "reference")?,
        hold_seconds: row.try_get("hold_seconds")?,
        is_hold_confirmed: row.try_get("is_hold_confirmed")?,
        created_at: row.try_get("created_at")?,
        read_at: row.try_get("read_at")?,
    })
}
