//! Open holds: orders that hold their stock until they are confirmed or their hold ends.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};

use super::{
    OrderStore, StoreError,
    changes::{Changed, Context, Event, Plan},
    database::on_connection,
    rows::{datetime, hex, json, order_id, order_ids, wanted_orders},
    statuses::lock_unlocked,
    transaction::transaction,
};
use crate::{
    crash_point::crash_point,
    domain::{COMPENSATOR_SOURCE, Horizon, OrderId, OrderState},
};

const FIND_DUE: &str = "
    SELECT order_id, expires_at FROM holds FORCE INDEX (by_expiry)
    WHERE expires_at <= ? AND expires_at >= ? AND (expires_at > ? OR order_id > ?)
    ORDER BY expires_at, order_id LIMIT ?";

const KEEP_DUE: &str = concat!(
    "SELECT h.order_id FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN holds AS h FORCE INDEX (PRIMARY) ON h.order_id = wanted.order_id
    WHERE h.expires_at <= ?",
);

/// Closes holds without an order. A hold is written after its order, so no order is on its way.
const CLOSE_ORPHANS: &str = concat!(
    "DELETE h FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN holds AS h FORCE INDEX (PRIMARY) ON h.order_id = wanted.order_id
    LEFT JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = h.order_id
    WHERE o.order_id IS NULL",
);

const OPEN: &str = "
    INSERT INTO holds (order_id, expires_at)
    SELECT UNHEX(order_id), expires_at
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        order_id   VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        expires_at DATETIME(3) PATH '$[1]')) AS opened
    ON DUPLICATE KEY UPDATE holds.expires_at = opened.expires_at";

const CLOSE: &str = concat!(
    "DELETE h FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN holds AS h FORCE INDEX (PRIMARY) ON h.order_id = wanted.order_id",
);

/// A hold that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DueHold {
    pub order_id: OrderId,
    pub(crate) expires_at: DateTime<Utc>,
}

/// Opens the holds of orders, or moves the ends of those that are open. The caller has locked the
/// orders.
pub(super) async fn open(
    conn: &mut MySqlConnection,
    holds: &[(OrderId, DateTime<Utc>)],
) -> Result<(), StoreError> {
    let row = |(id, expires_at): &(OrderId, DateTime<Utc>)| (hex(*id), datetime(*expires_at));
    let rows = json(&holds.iter().map(row).collect::<Vec<_>>())?;
    sqlx::query(OPEN).bind(rows).execute(conn).await?;
    Ok(())
}

/// Closes the holds of orders. The caller has locked the orders.
pub(super) async fn close(
    conn: &mut MySqlConnection,
    ids: impl IntoIterator<Item = OrderId>,
) -> Result<(), StoreError> {
    sqlx::query(CLOSE).bind(order_ids(ids)?).execute(conn).await?;
    Ok(())
}

impl OrderStore {
    /// The present time, by the clock of the server.
    pub(crate) async fn clock(&self) -> Result<DateTime<Utc>, StoreError> {
        let sql = "SELECT UTC_TIMESTAMP(3) AS now";
        let row = on_connection!(self.db, |conn| sqlx::query(sql).fetch_one(conn).await)?;
        Ok(row.try_get("now")?)
    }

    /// Up to `limit` holds that are due at `now`. They follow `after` in the order of their ends.
    pub async fn find_due_holds(
        &self,
        now: DateTime<Utc>,
        after: Option<DueHold>,
        limit: u32,
    ) -> Result<Vec<DueHold>, StoreError> {
        let (expires_at, id) = after.map_or((DateTime::UNIX_EPOCH, Vec::new()), |hold| {
            (hold.expires_at, hold.order_id.as_bytes().to_vec())
        });
        let query = sqlx::query(FIND_DUE).bind(now).bind(expires_at).bind(expires_at).bind(id);
        let query = query.bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        let due = |row: &MySqlRow| {
            Ok(DueHold { order_id: order_id(row)?, expires_at: row.try_get("expires_at")? })
        };
        rows.iter().map(due).collect()
    }

    /// Ends holds that are due at `now`: cancels their orders in one transaction. Their releases
    /// and announcements are leased to the caller for `lease`.
    ///
    /// Leaves out orders that another transaction has locked, so that two sweeps do not wait for
    /// each other, and holds that are not due any more. Closes holds whose order is not reserved or
    /// does not exist.
    ///
    /// Fails with [`StoreError::Corrupt`] if an order's row cannot be read, with
    /// [`StoreError::Refused`] if the server refuses a change, and with the errors of a
    /// transaction.
    pub async fn end_holds(
        &self,
        due: &[DueHold],
        now: DateTime<Utc>,
        horizon: Horizon,
        lease: Duration,
    ) -> Result<Changed, StoreError> {
        let ids: BTreeSet<_> = due.iter().map(|hold| hold.order_id).collect();
        let wanted = order_ids(ids.iter().copied())?;
        transaction!(self.db, EndHolds, |conn, _| {
            let locked = lock_unlocked(conn, &wanted).await?;
            if locked.len() < ids.len() {
                sqlx::query(CLOSE_ORPHANS).bind(&wanted).execute(&mut *conn).await?;
            }
            // A hold may have been extended or closed before its order was locked.
            let still = order_ids(locked.iter().map(|order| order.order_id))?;
            let still = sqlx::query(KEEP_DUE).bind(still).bind(now).fetch_all(&mut *conn).await?;
            let still = still.iter().map(order_id).collect::<Result<HashSet<_>, _>>()?;
            let (due, strays): (Vec<_>, Vec<_>) = locked
                .iter()
                .filter(|order| still.contains(&order.order_id))
                .partition(|order| order.state == OrderState::Reserved);
            let strays: Vec<_> = strays.into_iter().map(|order| order.order_id).collect();
            if !strays.is_empty() {
                tracing::error!(orders = ?strays, "orders with a hold are not reserved, closing");
                close(conn, strays).await?;
            }
            let events: Vec<_> =
                due.into_iter().map(|order| Event::HoldDue(order.order_id)).collect();
            let context = Context { now, horizon, announcer: COMPENSATOR_SOURCE, lease };
            let changed = Plan::new(events, locked, context).write(conn).await?;
            crash_point("holds.written");
            Ok(changed)
        })
    }

    /// The number of open holds. Reads all of them.
    pub(crate) async fn count_holds(&self) -> Result<u64, StoreError> {
        let sql = "SELECT COUNT(*) AS open FROM holds";
        let row = on_connection!(self.db, |conn| sqlx::query(sql).fetch_one(conn).await)?;
        Ok(row.try_get::<i64, _>("open")?.unsigned_abs())
    }
}
