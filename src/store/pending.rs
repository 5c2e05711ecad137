//! Orders that are still pending, found by a scan in the order of their ids. A table has the few
//! orders that the scan would pass over.

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row};

use super::{
    OrderStore, StoreError,
    database::on_connection,
    orders::{event_columns, readable_events},
    rows::{order_id, order_ids, text, wanted_orders},
};
use crate::domain::{EventKind, OrderEvent, OrderId, OrderState};

/// The part of the orders that a scan has read.
#[derive(Debug)]
pub struct Scan {
    /// The orders that are pending.
    pub pending: Vec<OrderId>,
    /// The last order that was read. `None` if there was no order to read.
    pub last: Option<OrderId>,
}

/// An order whose id the scan would pass over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnscannedOrder {
    pub order_id: OrderId,
    /// When ingest accepted the order.
    pub created_at: DateTime<Utc>,
    pub is_pending: bool,
}

const SCAN: &str = "
    SELECT MAX(order_id) AS order_id, SUM(status = 'PENDING') > 0 AS any_pending
    FROM (SELECT order_id, status FROM orders WHERE order_id > ? AND order_id < ?
          ORDER BY order_id LIMIT ?) AS page
    HAVING COUNT(*) > 0";

const PICK: &str = "
    SELECT order_id FROM orders WHERE order_id > ? AND order_id <= ? AND status = 'PENDING'
    ORDER BY order_id LIMIT ?";

const FIND: &str = concat!(
    "SELECT ",
    event_columns!(),
    " FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id
    WHERE o.status = 'PENDING'",
);

const INSERT_UNSCANNED: &str = "
    INSERT INTO unscanned_orders (order_id, created_at)
    SELECT UNHEX(order_id), created_at
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        order_id   VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        created_at DATETIME(3) PATH '$[1]')) AS unscanned";

const READ_UNSCANNED: &str = "
    SELECT u.order_id, u.created_at, o.status
    FROM (SELECT order_id, created_at FROM unscanned_orders WHERE order_id > ?
          ORDER BY order_id LIMIT ?) AS u
    LEFT JOIN orders AS o ON o.order_id = u.order_id
    ORDER BY u.order_id";

const FORGET_UNSCANNED: &str = concat!(
    "DELETE u FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN unscanned_orders AS u FORCE INDEX (PRIMARY) ON u.order_id = wanted.order_id",
);

/// Adds orders whose ids the scan would pass over. `rows` is a JSON parameter.
pub(super) async fn insert_unscanned(
    conn: &mut MySqlConnection,
    rows: &str,
) -> Result<(), StoreError> {
    sqlx::query(INSERT_UNSCANNED).bind(rows).execute(conn).await?;
    Ok(())
}

impl OrderStore {
    /// Reads up to `limit` orders after `after` whose ids the scan would pass over, in the order of
    /// their ids.
    pub async fn read_unscanned(
        &self,
        after: OrderId,
        limit: u32,
    ) -> Result<Vec<UnscannedOrder>, StoreError> {
        let query = sqlx::query(READ_UNSCANNED).bind(after.as_bytes().as_slice()).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        let pending = OrderState::Pending.as_str();
        let unscanned = rows.iter().map(|row| {
            let status: Option<&str> = text(row, "status")?;
            Ok(UnscannedOrder {
                order_id: order_id(row)?,
                created_at: row.try_get("created_at")?,
                is_pending: status == Some(pending),
            })
        });
        unscanned.collect()
    }

    /// Deletes orders from the table of those that the scan would pass over. `ids` are in their
    /// order.
    pub(crate) async fn forget_unscanned(&self, ids: &[OrderId]) -> Result<(), StoreError> {
        let query = sqlx::query(FORGET_UNSCANNED).bind(order_ids(ids.iter().copied())?);
        on_connection!(self.db, |conn| query.execute(conn).await)?;
        Ok(())
    }

    /// Reads up to `limit` orders after `after` and below `below`. Ends early at the order that
    /// makes `max_pending` pending orders.
    pub async fn scan_pending(
        &self,
        after: OrderId,
        below: OrderId,
        limit: u32,
        max_pending: usize,
    ) -> Result<Scan, StoreError> {
        let bytes = |id: OrderId| id.as_bytes().to_vec();
        let page = sqlx::query(SCAN).bind(bytes(after)).bind(bytes(below)).bind(limit);
        let Some(page) = on_connection!(self.db, |conn| page.fetch_optional(conn).await)? else {
            return Ok(Scan { pending: Vec::new(), last: None });
        };
        let last = order_id(&page)?;
        if page.try_get::<i64, _>("any_pending")? == 0 {
            return Ok(Scan { pending: Vec::new(), last: Some(last) });
        }
        let max = i64::try_from(max_pending).unwrap_or(i64::MAX);
        let picking = sqlx::query(PICK).bind(bytes(after)).bind(bytes(last)).bind(max);
        let rows = on_connection!(self.db, |conn| picking.fetch_all(conn).await)?;
        let pending = rows.iter().map(order_id).collect::<Result<Vec<_>, _>>()?;
        let last = if pending.len() == max_pending { pending.last().copied() } else { Some(last) };
        Ok(Scan { pending, last })
    }

    /// The events of the orders among `ids` that are pending and can be read.
    pub(crate) async fn find_pending(
        &self,
        ids: &[OrderId],
    ) -> Result<Vec<OrderEvent>, StoreError> {
        let query = sqlx::query(FIND).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        Ok(readable_events(&rows, EventKind::Placed))
    }
}
