//! Announcements: moves of orders that `order-status` has to report, and that no message there has
//! named.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};

use super::{
    OrderStore, StoreError,
    error::Corrupt,
    rows::{ascii, hex, json, micros, order_id, text},
    transaction::transaction,
};
use crate::domain::{OrderId, OrderStatus, ReportedStatus};

/// An announcement that is written already stays as it is.
const INSERT: &str = "
    INSERT INTO announcements (order_id, status, source, occurred_at, visible_at)
    SELECT UNHEX(order_id), status, source, ?, UTC_TIMESTAMP(3) + INTERVAL ? MICROSECOND
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        order_id VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        status   VARCHAR(16) CHARACTER SET ascii PATH '$[1]',
        source   VARCHAR(16) CHARACTER SET ascii PATH '$[2]')) AS announced
    ON DUPLICATE KEY UPDATE announcements.visible_at = announcements.visible_at";

const FIND_DUE: &str = "
    SELECT order_id, status FROM announcements FORCE INDEX (by_lease)
    WHERE visible_at <= UTC_TIMESTAMP(3) ORDER BY visible_at LIMIT ? FOR UPDATE SKIP LOCKED";

macro_rules! wanted_announcements {
    () => {
        "JSON_TABLE(?, '$[*]' COLUMNS (
            order_id VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
            status   VARCHAR(16) CHARACTER SET ascii PATH '$[1]')) AS wanted"
    };
}

const CLAIM: &str = concat!(
    "UPDATE ",
    wanted_announcements!(),
    " STRAIGHT_JOIN announcements AS a FORCE INDEX (PRIMARY)
        ON a.order_id = UNHEX(wanted.order_id) AND a.status = wanted.status
    SET a.visible_at = UTC_TIMESTAMP(3) + INTERVAL ? MICROSECOND",
);

const READ: &str = concat!(
    "SELECT a.order_id, a.status, a.source, a.occurred_at, o.reason, o.reference FROM ",
    wanted_announcements!(),
    " STRAIGHT_JOIN announcements AS a FORCE INDEX (PRIMARY)
        ON a.order_id = UNHEX(wanted.order_id) AND a.status = wanted.status
    LEFT JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = a.order_id",
);

const DELETE: &str = concat!(
    "DELETE a FROM ",
    wanted_announcements!(),
    " STRAIGHT_JOIN announcements AS a FORCE INDEX (PRIMARY)
        ON a.order_id = UNHEX(wanted.order_id) AND a.status = wanted.status",
);

/// Announcements that were due, and are leased to the caller.
#[derive(Debug, Default)]
pub(crate) struct ClaimedAnnouncements {
    /// How many were claimed.
    pub(crate) claimed: usize,
    pub(crate) readable: Vec<OrderStatus>,
}

/// Writes announcements, leased to the caller for `lease`.
pub(super) async fn insert(
    conn: &mut MySqlConnection,
    announcements: &[OrderStatus],
    now: DateTime<Utc>,
    lease: Duration,
) -> Result<(), StoreError> {
    let row = |a: &OrderStatus| (hex(a.order_id), a.status.as_str(), a.source.clone());
    let rows = json(&announcements.iter().map(row).collect::<Vec<_>>())?;
    sqlx::query(INSERT).bind(now).bind(micros(lease)).bind(rows).execute(conn).await?;
    Ok(())
}

impl OrderStore {
    /// Claims up to `limit` announcements without a lease or with one that has ended, and leases
    /// them to the caller. No two callers claim the same announcement.
    ///
    /// A corrupt announcement is claimed, logged and not returned.
    pub(crate) async fn claim_announcements(
        &self,
        limit: u32,
        lease: Duration,
    ) -> Result<ClaimedAnnouncements, StoreError> {
        transaction!(self.db, ClaimAnnouncements, |conn, _| {
            let due = sqlx::query(FIND_DUE).bind(limit).fetch_all(&mut *conn).await?;
            if due.is_empty() {
                return Ok(ClaimedAnnouncements::default());
            }
            let keys = due.iter().map(|row| Ok((order_id(row)?, ascii(row, "status")?)));
            let keys = keys_json(keys.collect::<Result<Vec<_>, StoreError>>()?)?;
            sqlx::query(CLAIM).bind(&keys).bind(micros(lease)).execute(&mut *conn).await?;
            let rows = sqlx::query(READ).bind(&keys).fetch_all(&mut *conn).await?;
            Ok(ClaimedAnnouncements {
                claimed: due.len(),
                readable: rows.iter().filter_map(readable).collect(),
            })
        })
    }

    /// Deletes announcements that the broker has acknowledged.
    pub(crate) async fn forget_announcements(
        &self,
        published: &[&OrderStatus],
    ) -> Result<(), StoreError> {
        let keys = published.iter().map(|a| (a.order_id, a.status.as_str())).collect();
        let keys = keys_json(keys)?;
        transaction!(self.db, ForgetAnnouncements, |conn, _| {
            sqlx::query(DELETE).bind(&keys).execute(conn).await?;
            Ok(())
        })
    }
}

/// The announcement of a row, if it can be read.
fn readable(row: &MySqlRow) -> Option<OrderStatus> {
    let read = announcement(row);
    read.inspect_err(|error| tracing::error!(%error, "announcement is corrupt, not published")).ok()
}

/// Fails with [`StoreError::Corrupt`].
fn announcement(row: &MySqlRow) -> Result<OrderStatus, StoreError> {
    let status = ReportedStatus::parse(ascii(row, "status")?, text(row, "reason")?)
        .map_err(|source| Corrupt::Value { column: "announcements.status", source })?;
    Ok(OrderStatus {
        order_id: order_id(row)?,
        status,
        source: ascii(row, "source")?.to_owned(),
        occurred_at: row.try_get("occurred_at")?,
        reference: text(row, "reference")?,
    })
}

/// The keys as a parameter, sorted: all transactions lock these rows in the same order.
fn keys_json(mut keys: Vec<(OrderId, &str)>) -> Result<String, StoreError> {
    keys.sort_unstable();
    json(&keys.into_iter().map(|(id, status)| (hex(id), status)).collect::<Vec<_>>())
}
