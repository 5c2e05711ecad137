//! Releases that are owed: the stock of these orders must come back, and no worker has reported yet
//! that it did.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row, mysql::MySqlRow};

use super::{
    OrderStore, StoreError,
    database::{on_connection, transaction},
    orders::readable_events,
    rows::{hex, json, order_id, order_ids, wanted_orders},
    statuses::lock_states,
};
use crate::domain::{EventKind, OrderEvent, OrderId};

/// A release that is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwedRelease {
    pub order_id: OrderId,
    /// When the order was moved.
    pub owed_at: DateTime<Utc>,
    /// How often its event was published.
    pub sent: u32,
    /// When its event is published next; `None` once the order is beyond the horizon.
    pub(crate) due_at: Option<DateTime<Utc>>,
}

/// Releases that were due, leased to the caller.
#[derive(Debug, Default)]
pub struct ClaimedReleases {
    /// The orders, and how often the event of each was published.
    pub owed: Vec<(OrderId, u32)>,
    /// The events of those whose order can be read.
    pub events: Vec<OrderEvent>,
}

/// When an owed release is published next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) order_id: OrderId,
    pub(crate) sent: u32,
    pub(crate) due_at: DateTime<Utc>,
}

/// An order may owe its release for more than one cause; one row serves all.
const OWE: &str = "
    INSERT INTO owed_releases (order_id, owed_at, due_at)
    SELECT UNHEX(hex), ?, ?
    FROM JSON_TABLE(?, '$[*]' COLUMNS (hex VARCHAR(32) CHARACTER SET ascii PATH '$')) AS ids
    ON DUPLICATE KEY UPDATE owed_releases.sent = owed_releases.sent";

const END: &str = concat!(
    "DELETE r FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN owed_releases AS r FORCE INDEX (PRIMARY) ON r.order_id = wanted.order_id",
);

const FIND_DUE: &str = "
    SELECT order_id, sent FROM owed_releases FORCE INDEX (by_due)
    WHERE due_at <= ? ORDER BY due_at LIMIT ? FOR UPDATE SKIP LOCKED";

const LEASE: &str = concat!(
    "UPDATE ",
    wanted_orders!(),
    " STRAIGHT_JOIN owed_releases AS r FORCE INDEX (PRIMARY) ON r.order_id = wanted.order_id SET r.due_at = ?",
);

const READ_LINES: &str = concat!(
    "SELECT o.order_id, o.`lines`, o.created_at FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id",
);

const SCHEDULE: &str = "
    UPDATE (SELECT UNHEX(hex) AS order_id, sent, due_at FROM JSON_TABLE(?, '$[*]' COLUMNS (
        hex    VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        sent   INT UNSIGNED PATH '$[1]',
        due_at DATETIME(3) PATH '$[2]')) AS scheduled) AS next
    STRAIGHT_JOIN owed_releases AS r FORCE INDEX (PRIMARY) ON r.order_id = next.order_id
    SET r.sent = next.sent, r.due_at = next.due_at WHERE r.due_at IS NOT NULL";

const EXPIRE: &str = concat!(
    "UPDATE ",
    wanted_orders!(),
    " STRAIGHT_JOIN owed_releases AS r FORCE INDEX (PRIMARY) ON r.order_id = wanted.order_id
    SET r.due_at = NULL WHERE r.due_at IS NOT NULL",
);

const FIND: &str = concat!(
    "SELECT r.order_id, r.owed_at, r.sent, r.due_at FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN owed_releases AS r FORCE INDEX (PRIMARY) ON r.order_id = wanted.order_id",
);

/// Owes the releases of orders that the transaction moves. They are due at `due_at`, unless they
/// are owed already.
pub(super) async fn owe(
    conn: &mut MySqlConnection,
    ids: impl IntoIterator<Item = OrderId>,
    now: DateTime<Utc>,
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(OWE).bind(now).bind(due_at).bind(order_ids(ids)?).execute(conn).await?;
    Ok(())
}

/// Strikes out releases that are done. Those that are not owed, or no longer, are passed over.
pub(super) async fn end(conn: &mut MySqlConnection, ids: &str) -> Result<u64, StoreError> {
    Ok(sqlx::query(END).bind(ids).execute(conn).await?.rows_affected())
}

/// The release events of those orders that can be read.
pub(super) async fn read_events(
    conn: &mut MySqlConnection,
    ids: &str,
) -> Result<Vec<OrderEvent>, StoreError> {
    let rows = sqlx::query(READ_LINES).bind(ids).fetch_all(conn).await?;
    Ok(readable_events(&rows, |_| Ok(EventKind::Release)))
}

impl OrderStore {
    /// Takes up to `limit` releases that are due, and leases them to the caller until `until`. No
    /// two callers get the same.
    pub async fn claim_releases(
        &self,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: u32,
    ) -> Result<ClaimedReleases, StoreError> {
        transaction!(self.db, "claim releases", |conn, _| {
            let rows = sqlx::query(FIND_DUE).bind(now).bind(limit).fetch_all(&mut *conn).await?;
            if rows.is_empty() {
                return Ok(ClaimedReleases::default());
            }
            let owed = rows.iter().map(|row| Ok((order_id(row)?, row.try_get("sent")?)));
            let mut owed = owed.collect::<Result<Vec<_>, StoreError>>()?;
            owed.sort_unstable();
            let ids = order_ids(owed.iter().map(|(id, _)| *id))?;
            sqlx::query(LEASE).bind(&ids).bind(until).execute(&mut *conn).await?;
            Ok(ClaimedReleases { owed, events: read_events(conn, &ids).await? })
        })
    }

    /// Says when releases are published next. Those that are done meanwhile, or expired, are passed
    /// over.
    pub(crate) async fn schedule_releases(
        &self,
        mut schedules: Vec<Schedule>,
    ) -> Result<(), StoreError> {
        schedules.sort_unstable_by_key(|schedule| schedule.order_id);
        let row =
            |s: &Schedule| (hex(s.order_id), s.sent, s.due_at.format("%F %T%.3f").to_string());
        let rows = json(&schedules.iter().map(row).collect::<Vec<_>>())?;
        transaction!(self.db, "schedule releases", |conn, _| {
            sqlx::query(SCHEDULE).bind(&rows).execute(conn).await?;
            Ok(())
        })
    }

    /// Gives up releases of orders beyond the horizon: they stay as rows and are never due again.
    /// Answers how many were not given up before.
    pub(crate) async fn expire_releases(&self, ids: &[OrderId]) -> Result<u64, StoreError> {
        let ids = order_ids(ids.iter().copied())?;
        transaction!(self.db, "expire releases", |conn, _| {
            Ok(sqlx::query(EXPIRE).bind(&ids).execute(conn).await?.rows_affected())
        })
    }

    /// How many releases are owed and not expired.
    pub async fn count_owed_releases(&self) -> Result<u64, StoreError> {
        let sql = "SELECT COUNT(*) AS owed FROM owed_releases WHERE due_at IS NOT NULL";
        let row = on_connection!(self.db, |conn| sqlx::query(sql).fetch_one(conn).await)?;
        Ok(row.try_get::<i64, _>("owed")?.unsigned_abs())
    }

    /// Those of the orders' releases that are owed.
    pub async fn find_owed_releases(
        &self,
        ids: &[OrderId],
    ) -> Result<HashMap<OrderId, OwedRelease>, StoreError> {
        let query = sqlx::query(FIND).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(|row| owed_release(row).map(|owed| (owed.order_id, owed))).collect()
    }

    /// Up to `limit` owed releases after `after`, in the order of the ids.
    pub async fn page_of_owed_releases(
        &self,
        after: Option<OrderId>,
        limit: u32,
    ) -> Result<Vec<OwedRelease>, StoreError> {
        let sql = "SELECT order_id, owed_at, sent, due_at FROM owed_releases WHERE order_id > ? ORDER BY order_id LIMIT ?";
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let query = sqlx::query(sql).bind(after).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(owed_release).collect()
    }

    /// Owes releases again, due at once, of those of the orders that are failed or cancelled.
    /// Answers how many those are.
    pub(crate) async fn owe_releases(
        &self,
        ids: &[OrderId],
        now: DateTime<Utc>,
    ) -> Result<usize, StoreError> {
        let ids = order_ids(ids.iter().copied())?;
        transaction!(self.db, "owe releases", |conn, _| {
            let mut final_ones = lock_states(conn, &ids).await?;
            final_ones.retain(|(_, state)| state.is_final());
            owe(conn, final_ones.iter().map(|(id, _)| *id), now, now).await?;
            Ok(final_ones.len())
        })
    }

    /// Forgets releases that are owed, as their orders' stock came back in another way. Only orders
    /// below `below` are touched. Answers how many releases were owed.
    pub(crate) async fn dismiss_releases(
        &self,
        ids: &[OrderId],
        below: OrderId,
    ) -> Result<u64, StoreError> {
        let ids = order_ids(ids.iter().copied().filter(|id| *id < below))?;
        transaction!(self.db, "dismiss releases", |conn, _| {
            Ok(sqlx::query(END).bind(&ids).execute(conn).await?.rows_affected())
        })
    }
}

fn owed_release(row: &MySqlRow) -> Result<OwedRelease, StoreError> {
    Ok(OwedRelease {
        order_id: order_id(row)?,
        owed_at: row.try_get("owed_at")?,
        sent: row.try_get("sent")?,
        due_at: row.try_get("due_at")?,
    })
}
