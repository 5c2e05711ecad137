//! Owed releases: a worker has to release the stock of these orders, and none has reported yet that
//! it is done.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row, mysql::MySqlRow};

use super::{
    OrderStore, StoreError,
    database::on_connection,
    orders::{event_columns, readable_events},
    rows::{datetime, hex, json, order_id, order_ids, wanted_orders},
    statuses::lock_states,
    transaction::transaction,
};
use crate::domain::{EventKind, OrderEvent, OrderId};

/// A release that is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwedRelease {
    pub order_id: OrderId,
    /// When the order moved to its final state.
    pub owed_at: DateTime<Utc>,
    /// How often its event was published.
    pub sent: u32,
    /// When its event is published next. `None` if the order is beyond the horizon.
    pub(crate) due_at: Option<DateTime<Utc>>,
}

/// The releases that are owed and not expired.
#[derive(Debug, Clone, Copy)]
pub struct OwedReleasesState {
    pub owed: u64,
    /// Since when the oldest one is owed.
    pub oldest: Option<DateTime<Utc>>,
}

/// Releases that were due, and are leased to the caller.
#[derive(Debug, Default)]
pub struct ClaimedReleases {
    /// In the order of the ids.
    pub owed: Vec<ClaimedRelease>,
    /// The events of the releases whose order can be read.
    pub events: Vec<OrderEvent>,
}

/// A release that was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimedRelease {
    pub order_id: OrderId,
    /// How often its event was published.
    pub(crate) sent: u32,
}

/// When an owed release is published next, and how often it was published before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReleaseSchedule {
    pub(crate) order_id: OrderId,
    pub(crate) sent: u32,
    pub(crate) due_at: DateTime<Utc>,
}

/// A release that is owed already stays as it is: one row serves all causes.
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
    " STRAIGHT_JOIN owed_releases AS r FORCE INDEX (PRIMARY) ON r.order_id = wanted.order_id
    SET r.due_at = ?",
);

const READ_LINES: &str = concat!(
    "SELECT ",
    event_columns!(),
    " FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id",
);

const SCHEDULE: &str = "
    UPDATE (SELECT UNHEX(hex) AS order_id, sent, due_at FROM JSON_TABLE(?, '$[*]' COLUMNS (
        hex    VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        sent   INT UNSIGNED PATH '$[1]',
        due_at DATETIME(3) PATH '$[2]')) AS scheduled) AS next
    STRAIGHT_JOIN owed_releases AS r FORCE INDEX (PRIMARY) ON r.order_id = next.order_id
    SET r.sent = GREATEST(r.sent, next.sent), r.due_at = next.due_at
    WHERE r.due_at IS NOT NULL";

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

/// Owes the releases of orders that the caller's transaction moves. They are due at `due_at`,
/// unless they are owed already.
pub(super) async fn owe(
    conn: &mut MySqlConnection,
    ids: impl IntoIterator<Item = OrderId>,
    now: DateTime<Utc>,
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(OWE).bind(now).bind(due_at).bind(order_ids(ids)?).execute(conn).await?;
    Ok(())
}

/// Deletes releases that are done, and returns how many were owed.
pub(super) async fn end(conn: &mut MySqlConnection, ids: &str) -> Result<u64, StoreError> {
    Ok(sqlx::query(END).bind(ids).execute(conn).await?.rows_affected())
}

/// The release events of the orders that can be read.
pub(super) async fn read_events(
    conn: &mut MySqlConnection,
    ids: &str,
) -> Result<Vec<OrderEvent>, StoreError> {
    let rows = sqlx::query(READ_LINES).bind(ids).fetch_all(conn).await?;
    Ok(readable_events(&rows, EventKind::Release))
}

impl OrderStore {
    /// Claims up to `limit` releases that are due, and leases them to the caller until `until`. No
    /// two callers claim the same release.
    pub async fn claim_releases(
        &self,
        now: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: u32,
    ) -> Result<ClaimedReleases, StoreError> {
        transaction!(self.db, ClaimReleases, |conn, _| {
            let rows = sqlx::query(FIND_DUE).bind(now).bind(limit).fetch_all(&mut *conn).await?;
            if rows.is_empty() {
                return Ok(ClaimedReleases::default());
            }
            let owed = rows.iter().map(|row| {
                Ok(ClaimedRelease { order_id: order_id(row)?, sent: row.try_get("sent")? })
            });
            let mut owed = owed.collect::<Result<Vec<_>, StoreError>>()?;
            owed.sort_unstable();
            let ids = order_ids(owed.iter().map(|claimed| claimed.order_id))?;
            sqlx::query(LEASE).bind(&ids).bind(until).execute(&mut *conn).await?;
            Ok(ClaimedReleases { owed, events: read_events(conn, &ids).await? })
        })
    }

    /// Sets when releases are published next. Leaves alone those that are done meanwhile, or
    /// expired.
    pub(crate) async fn schedule_releases(
        &self,
        mut schedules: Vec<ReleaseSchedule>,
    ) -> Result<(), StoreError> {
        schedules.sort_unstable_by_key(|schedule| schedule.order_id);
        let row = |s: &ReleaseSchedule| (hex(s.order_id), s.sent, datetime(s.due_at));
        let rows = json(&schedules.iter().map(row).collect::<Vec<_>>())?;
        transaction!(self.db, ScheduleReleases, |conn, _| {
            sqlx::query(SCHEDULE).bind(&rows).execute(conn).await?;
            Ok(())
        })
    }

    /// Gives up releases of orders beyond the horizon. Their rows stay, and are never due again.
    /// Returns how many were not given up before.
    pub(crate) async fn expire_releases(&self, ids: &[OrderId]) -> Result<u64, StoreError> {
        let ids = order_ids(ids.iter().copied())?;
        transaction!(self.db, ExpireReleases, |conn, _| {
            Ok(sqlx::query(EXPIRE).bind(&ids).execute(conn).await?.rows_affected())
        })
    }

    /// Counts the releases that are owed and not expired.
    pub async fn owed_releases_state(&self) -> Result<OwedReleasesState, StoreError> {
        let sql = "SELECT COUNT(*) AS owed, MIN(owed_at) AS oldest
                   FROM owed_releases WHERE due_at IS NOT NULL";
        let row = on_connection!(self.db, |conn| sqlx::query(sql).fetch_one(conn).await)?;
        let owed = row.try_get::<i64, _>("owed")?.unsigned_abs();
        Ok(OwedReleasesState { owed, oldest: row.try_get("oldest")? })
    }

    /// The owed releases of the orders `ids`.
    pub async fn find_owed_releases(
        &self,
        ids: &[OrderId],
    ) -> Result<HashMap<OrderId, OwedRelease>, StoreError> {
        let query = sqlx::query(FIND).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(|row| owed_release(row).map(|owed| (owed.order_id, owed))).collect()
    }

    /// Up to `limit` owed releases after `after`, in the order of their ids.
    pub async fn page_of_owed_releases(
        &self,
        after: Option<OrderId>,
        limit: u32,
    ) -> Result<Vec<OwedRelease>, StoreError> {
        let sql = "SELECT order_id, owed_at, sent, due_at FROM owed_releases
                   WHERE order_id > ? ORDER BY order_id LIMIT ?";
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let query = sqlx::query(sql).bind(after).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(owed_release).collect()
    }

    /// Owes the releases of the failed and cancelled orders among `ids` again, due at once. Returns
    /// the number of these orders.
    pub(crate) async fn owe_releases(
        &self,
        ids: &[OrderId],
        now: DateTime<Utc>,
    ) -> Result<usize, StoreError> {
        let ids = order_ids(ids.iter().copied())?;
        transaction!(self.db, OweReleases, |conn, _| {
            let mut orders = lock_states(conn, &ids).await?;
            orders.retain(|order| order.state.is_final());
            owe(conn, orders.iter().map(|order| order.order_id), now, now).await?;
            Ok(orders.len())
        })
    }

    /// Deletes owed releases whose stock a person returned in another way. Leaves alone the
    /// releases of orders from `below` on. Returns how many were owed.
    pub(crate) async fn dismiss_releases(
        &self,
        ids: &[OrderId],
        below: OrderId,
    ) -> Result<u64, StoreError> {
        let ids = order_ids(ids.iter().copied().filter(|id| *id < below))?;
        transaction!(self.db, DismissReleases, |conn, _| end(conn, &ids).await)
    }
}

pub(super) fn owed_release(row: &MySqlRow) -> Result<OwedRelease, StoreError> {
    Ok(OwedRelease {
        order_id: order_id(row)?,
        owed_at: row.try_get("owed_at")?,
        sent: row.try_get("sent")?,
        due_at: row.try_get("due_at")?,
    })
}
