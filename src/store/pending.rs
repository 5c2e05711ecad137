//! Orders that are still pending, found by a scan in the order of their ids.

use sqlx::Row;

use super::{
    OrderStore, StoreError,
    database::on_connection,
    orders::{event_columns, readable_events},
    rows::{order_id, order_ids, wanted_orders},
};
use crate::domain::{EventKind, OrderEvent, OrderId};

/// The part of the orders that a scan has read.
#[derive(Debug)]
pub struct Scan {
    /// The orders that are pending.
    pub pending: Vec<OrderId>,
    /// The last order that was read. `None` if there was no order to read.
    pub last: Option<OrderId>,
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

impl OrderStore {
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
        Ok(readable_events(&rows, |_| Ok(EventKind::Placed)))
    }
}
