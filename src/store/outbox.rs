//! Events of placed orders that are committed and not yet published.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row};

use super::{
    OrderStore, StoreError,
    database::on_connection,
    orders::{event_columns, readable_events},
    rows::{event_kind, hex, json, micros, order_id},
    transaction::transaction,
};
use crate::domain::{EventKind, OrderEvent, OrderId};

/// The events that are committed and not yet published.
#[derive(Debug, Clone, Copy)]
pub struct OutboxState {
    pub pending: u64,
    /// When the oldest event was committed.
    pub oldest: Option<DateTime<Utc>>,
}

/// An event that is in the outbox already stays as it is.
const INSERT: &str = "
    INSERT INTO outbox (order_id, kind, created_at, visible_at)
    SELECT UNHEX(order_id), ?, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3) + INTERVAL ? MICROSECOND
    FROM JSON_TABLE(?, '$[*]' COLUMNS (order_id VARCHAR(32) CHARACTER SET ascii PATH '$')) AS ids
    ON DUPLICATE KEY UPDATE outbox.visible_at = outbox.visible_at";

const DELETE: &str = "
    DELETE b
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        order_id VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        kind     VARCHAR(16) CHARACTER SET ascii PATH '$[1]')) AS published
    STRAIGHT_JOIN outbox AS b FORCE INDEX (PRIMARY)
        ON b.order_id = UNHEX(published.order_id) AND b.kind = published.kind";

const FIND_DUE: &str = "
    SELECT order_id, kind FROM outbox
    WHERE visible_at <= UTC_TIMESTAMP(3) ORDER BY order_id, kind LIMIT ? FOR UPDATE SKIP LOCKED";

const CLAIM: &str = "
    UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
        order_id VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        kind     VARCHAR(16) CHARACTER SET ascii PATH '$[1]')) AS due
    STRAIGHT_JOIN outbox AS b FORCE INDEX (PRIMARY)
        ON b.order_id = UNHEX(due.order_id) AND b.kind = due.kind
    SET b.visible_at = UTC_TIMESTAMP(3) + INTERVAL ? MICROSECOND";

const READ_EVENTS: &str = concat!(
    "SELECT due.kind, ",
    event_columns!(),
    " FROM JSON_TABLE(?, '$[*]' COLUMNS (
        order_id VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        kind     VARCHAR(16) CHARACTER SET ascii PATH '$[1]')) AS due
    STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = UNHEX(due.order_id)",
);

/// Adds events of the orders `ids` (a JSON parameter), leased to the caller for `lease`.
pub(super) async fn insert(
    conn: &mut MySqlConnection,
    ids: &str,
    kind: EventKind,
    lease: Duration,
) -> Result<(), StoreError> {
    sqlx::query(INSERT).bind(kind.as_str()).bind(micros(lease)).bind(ids).execute(conn).await?;
    Ok(())
}

impl OrderStore {
    /// Claims up to `limit` events without a lease or with one that has ended, and leases them to
    /// the caller. No two callers claim the same event.
    ///
    /// The events of corrupt orders are claimed and not returned. They are due again when their
    /// lease ends.
    pub(crate) async fn claim_outbox(
        &self,
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<OrderEvent>, StoreError> {
        transaction!(self.db, ClaimOutbox, |conn, _| {
            let due = sqlx::query(FIND_DUE).bind(limit).fetch_all(&mut *conn).await?;
            if due.is_empty() {
                return Ok(Vec::new());
            }
            let keys = due.iter().map(|row| Ok((order_id(row)?, event_kind(row)?)));
            let keys = keys_json(keys.collect::<Result<Vec<_>, StoreError>>()?)?;
            sqlx::query(CLAIM).bind(&keys).bind(micros(lease)).execute(&mut *conn).await?;
            let rows = sqlx::query(READ_EVENTS).bind(&keys).fetch_all(&mut *conn).await?;
            Ok(readable_events(&rows, event_kind))
        })
    }

    /// Deletes events that the broker has acknowledged.
    pub async fn forget_published(
        &self,
        published: Vec<(OrderId, EventKind)>,
    ) -> Result<(), StoreError> {
        let keys = keys_json(published)?;
        transaction!(self.db, ForgetPublished, |conn, _| {
            sqlx::query(DELETE).bind(&keys).execute(conn).await?;
            Ok(())
        })
    }

    /// Counts the events in the outbox.
    pub async fn outbox_state(&self) -> Result<OutboxState, StoreError> {
        let sql = "SELECT COUNT(*) AS pending, MIN(created_at) AS oldest FROM outbox";
        let row = on_connection!(self.db, |conn| sqlx::query(sql).fetch_one(conn).await)?;
        let pending: i64 = row.try_get("pending")?;
        Ok(OutboxState { pending: pending.unsigned_abs(), oldest: row.try_get("oldest")? })
    }
}

/// The keys as a parameter, sorted: all transactions lock these rows in the same order.
fn keys_json(mut keys: Vec<(OrderId, EventKind)>) -> Result<String, StoreError> {
    keys.sort_unstable();
    json(&keys.into_iter().map(|(id, kind)| (hex(id), kind.as_str())).collect::<Vec<_>>())
}
