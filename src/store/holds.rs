//! Open holds: orders that hold their stock until they are confirmed or their hold ends.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row as _};

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
    SELECT order_id FROM holds FORCE INDEX (by_expiry)
    WHERE expires_at <= ? ORDER BY expires_at LIMIT ?";

const KEEP_DUE: &str = concat!(
    "SELECT h.order_id FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN holds AS h FORCE INDEX (PRIMARY) ON h.order_id = wanted.order_id
    WHERE h.expires_at <= ?",
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

/// What one batch of the sweep did.
#[derive(Debug)]
pub struct EndedHolds {
    /// How many due holds it found. Another sweep may have ended some of them.
    pub found: usize,
    pub changed: Changed,
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
    /// Ends up to `limit` holds that are due: cancels their orders in one transaction. Their
    /// releases and announcements are leased to the caller for `lease`.
    ///
    /// Leaves out orders that another transaction has locked, so that two sweeps do not wait for
    /// each other. Fails with [`StoreError::Corrupt`] if an order's row cannot be read, and with
    /// the errors of a transaction.
    pub async fn end_due_holds(
        &self,
        now: DateTime<Utc>,
        horizon: Horizon,
        limit: u32,
        lease: Duration,
    ) -> Result<EndedHolds, StoreError> {
        transaction!(self.db, EndHolds, |conn, _| {
            let due = sqlx::query(FIND_DUE).bind(now).bind(limit).fetch_all(&mut *conn).await?;
            let mut ids = due.iter().map(order_id).collect::<Result<Vec<_>, _>>()?;
            ids.sort_unstable();
            let locked = lock_unlocked(conn, &order_ids(ids.iter().copied())?).await?;
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
            Ok(EndedHolds { found: ids.len(), changed })
        })
    }

    /// The number of open holds. Reads all of them.
    pub(crate) async fn count_holds(&self) -> Result<u64, StoreError> {
        let sql = "SELECT COUNT(*) AS open FROM holds";
        let row = on_connection!(self.db, |conn| sqlx::query(sql).fetch_one(conn).await)?;
        Ok(row.try_get::<i64, _>("open")?.unsigned_abs())
    }

    /// When the hold that ends first ends. `None` if no hold is open.
    pub(crate) async fn next_expiry(&self) -> Result<Option<DateTime<Utc>>, StoreError> {
        let sql = "SELECT MIN(expires_at) AS expires_at FROM holds";
        let row = on_connection!(self.db, |conn| sqlx::query(sql).fetch_one(conn).await)?;
        Ok(row.try_get("expires_at")?)
    }
}
