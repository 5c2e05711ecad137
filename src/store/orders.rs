//! Orders as clients placed them: written, read, and found decided.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sqlx::{Row, mysql::MySqlRow};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Database, StoreError,
    database::on_connection,
    error::Outage,
    rows::{
        ascii, datetime, hex, json, order_id, order_ids, order_state, parse_json, text,
        wanted_orders,
    },
    statuses::{LockedOrder, lock_states},
    transaction::transaction,
};
use crate::domain::{EventKind, Lines, OrderEvent, OrderId, OrderState};

/// How long a COMMIT that was sent before the deadline is awaited after it.
const COMMIT_GRACE: Duration = Duration::from_secs(1);

/// The orders as clients placed them, the outbox of events that are not published yet, and the
/// releases that are owed.
#[derive(Debug, Clone)]
pub struct OrderStore {
    pub(super) db: Database,
}

/// An order that a client placed.
#[derive(Debug, Clone)]
pub struct NewOrder {
    pub order_id: OrderId,
    pub reference: Option<String>,
    pub customer_id: Option<String>,
    /// How long the order holds its stock, unless it is confirmed.
    pub hold_seconds: Option<u32>,
    pub lines: Lines,
    /// The store keeps milliseconds.
    pub accepted_at: DateTime<Utc>,
}

impl NewOrder {
    /// The event that places the order.
    pub fn into_event(self) -> OrderEvent {
        OrderEvent {
            order_id: self.order_id,
            kind: EventKind::Placed,
            lines: self.lines,
            accepted_at: self.accepted_at,
            hold_seconds: self.hold_seconds,
            reference: self.reference,
        }
    }
}

/// An order as the order store shows it.
#[derive(Debug, Clone)]
pub struct StoredOrder {
    pub(crate) order_id: OrderId,
    pub status: OrderState,
    pub reason: Option<String>,
    pub(crate) reference: Option<String>,
    pub(crate) customer_id: Option<String>,
    /// When its hold ends. Only a reserved order has one.
    pub(crate) expires_at: Option<DateTime<Utc>>,
    pub(crate) lines: Lines,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
}

/// An order that is no longer pending.
#[derive(Debug, Clone)]
pub struct DecidedOrder {
    pub(crate) order_id: OrderId,
    pub(crate) state: OrderState,
    pub(crate) reason: Option<String>,
    /// When its hold ends. Only a reserved order has one.
    pub(crate) expires_at: Option<DateTime<Utc>>,
}

const INSERT_ORDERS: &str = "
    INSERT INTO orders
        (order_id, reference, customer_id, `lines`, created_at, updated_at, hold_seconds)
    SELECT UNHEX(order_id), reference, customer_id, `lines`, created_at, created_at, hold_seconds
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        order_id    VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        reference   VARCHAR(128) CHARACTER SET utf8mb4 PATH '$[1]',
        customer_id VARCHAR(128) CHARACTER SET utf8mb4 PATH '$[2]',
        `lines`     TEXT CHARACTER SET ascii PATH '$[3]',
        created_at  DATETIME(3) PATH '$[4]',
        hold_seconds INT UNSIGNED PATH '$[5]')) AS placed";

/// The hold of an order that is not reserved is not looked up.
const READ_DECIDED: &str = concat!(
    "SELECT o.order_id, o.status, o.reason, h.expires_at FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id
    LEFT JOIN holds AS h FORCE INDEX (PRIMARY)
        ON o.status = 'RESERVED' AND h.order_id = o.order_id
    WHERE o.status <> 'PENDING'",
);

/// The columns of the order `o` that its events need.
macro_rules! event_columns {
    () => {
        "o.order_id, o.`lines`, o.created_at, o.reference, o.hold_seconds, o.is_hold_confirmed"
    };
}
pub(super) use event_columns;

impl OrderStore {
    pub fn new(db: Database) -> Self {
        Self { db }
    }

    pub(crate) fn database(&self) -> &Database {
        &self.db
    }

    /// Writes orders and their outbox rows in one transaction, all of them or none. The outbox rows
    /// are leased to the caller for `lease`, who publishes them.
    ///
    /// An order that an earlier attempt has written stays as it is: no two orders have one id.
    /// Fails with [`StoreError::CommitUnknown`] if the orders may be written, and with the other
    /// errors of a transaction if they are not.
    pub async fn place(&self, orders: &[NewOrder], lease: Duration) -> Result<(), StoreError> {
        self.place_noting(orders, lease, &AtomicBool::new(false)).await
    }

    /// [`OrderStore::place`] with a deadline, after which no COMMIT is sent. A COMMIT that was sent
    /// before is awaited for 1 s more.
    ///
    /// After the deadline this fails with [`StoreError::Unavailable`] if no COMMIT was sent, and
    /// with [`StoreError::CommitUnknown`] if one was.
    pub(crate) async fn place_by(
        &self,
        orders: &[NewOrder],
        lease: Duration,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let is_commit_sent = AtomicBool::new(false);
        let mut placing = pin!(self.place_noting(orders, lease, &is_commit_sent));
        if let Ok(placed) = timeout_at(deadline, &mut placing).await {
            return placed;
        }
        if !is_commit_sent.load(Ordering::Relaxed) {
            return Err(Outage::DeadlinePassed.into());
        }
        let late = |_| StoreError::CommitUnknown(Outage::DeadlinePassed);
        timeout(COMMIT_GRACE, placing).await.map_err(late)?
    }

    /// [`OrderStore::place`], which keeps in `is_commit_sent` whether its fate depends on a COMMIT.
    async fn place_noting(
        &self,
        orders: &[NewOrder],
        lease: Duration,
        is_commit_sent: &AtomicBool,
    ) -> Result<(), StoreError> {
        let written = self.insert(orders, lease, is_commit_sent).await;
        let Err(doubt @ (StoreError::CommitUnknown(_) | StoreError::Duplicate(_))) = written else {
            return written;
        };
        let Ok(present) = self.read_back_states(orders.iter().map(|o| o.order_id)).await else {
            return Err(doubt);
        };
        let is_missing =
            |order: &&NewOrder| !present.iter().any(|locked| locked.order_id == order.order_id);
        let missing: Vec<_> = orders.iter().filter(is_missing).cloned().collect();
        if missing.is_empty() { Ok(()) } else { self.insert(&missing, lease, is_commit_sent).await }
    }

    async fn insert(
        &self,
        orders: &[NewOrder],
        lease: Duration,
        is_commit_sent: &AtomicBool,
    ) -> Result<(), StoreError> {
        let rows = orders.iter().map(|order| {
            let (id, lines) = (hex(order.order_id), json(&order.lines)?);
            let accepted_at = datetime(order.accepted_at);
            Ok((id, &order.reference, &order.customer_id, lines, accepted_at, order.hold_seconds))
        });
        let rows = json(&rows.collect::<Result<Vec<_>, StoreError>>()?)?;
        let ids = order_ids(orders.iter().map(|o| o.order_id))?;
        transaction!(self.db, Place, |conn, _| {
            is_commit_sent.store(false, Ordering::Relaxed);
            sqlx::query(INSERT_ORDERS).bind(&rows).execute(&mut *conn).await?;
            super::outbox::insert(conn, &ids, EventKind::Placed, lease).await?;
            is_commit_sent.store(true, Ordering::Relaxed);
            Ok(())
        })
    }

    /// The states of the orders that exist. Waits for the transactions that change them.
    async fn read_back_states(
        &self,
        ids: impl IntoIterator<Item = OrderId>,
    ) -> Result<Vec<LockedOrder>, StoreError> {
        let ids = order_ids(ids)?;
        transaction!(self.db, ReadBack, |conn, _| lock_states(conn, &ids).await)
    }

    /// One order; `None` if the store does not have it.
    ///
    /// Fails with [`StoreError::Corrupt`] if its row cannot be read.
    pub async fn find(&self, id: OrderId) -> Result<Option<StoredOrder>, StoreError> {
        let sql = "SELECT o.status, o.reason, o.reference, o.customer_id, o.`lines`, o.created_at,
                          o.updated_at, h.expires_at
                   FROM orders AS o LEFT JOIN holds AS h
                       ON o.status = 'RESERVED' AND h.order_id = o.order_id
                   WHERE o.order_id = ?";
        let query = sqlx::query(sql).bind(id.as_bytes().as_slice());
        let row = on_connection!(self.db, |conn| query.fetch_optional(conn).await)?;
        row.map(|row| {
            Ok(StoredOrder {
                order_id: id,
                status: order_state(&row)?,
                reason: text(&row, "reason")?,
                reference: text(&row, "reference")?,
                customer_id: text(&row, "customer_id")?,
                expires_at: row.try_get("expires_at")?,
                lines: parse_json("orders.lines", ascii(&row, "lines")?)?,
                created_at: row.try_get("created_at")?,
                updated_at: row.try_get("updated_at")?,
            })
        })
        .transpose()
    }

    /// The orders among `ids` that are no longer pending.
    pub async fn find_decided(&self, ids: &[OrderId]) -> Result<Vec<DecidedOrder>, StoreError> {
        let query = sqlx::query(READ_DECIDED).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        let decided = |row: &MySqlRow| {
            let (order_id, state) = (order_id(row)?, order_state(row)?);
            let (reason, expires_at) = (text(row, "reason")?, row.try_get("expires_at")?);
            Ok(DecidedOrder { order_id, state, reason, expires_at })
        };
        rows.iter().map(decided).collect()
    }
}

/// The events of the rows that can be read. A corrupt order is logged, and keeps no other from
/// being published.
pub(super) fn readable_events(
    rows: &[MySqlRow],
    kind: impl Fn(&MySqlRow) -> Result<EventKind, StoreError>,
) -> Vec<OrderEvent> {
    let events = rows.iter().filter_map(|row| match kind(row).and_then(|kind| event(row, kind)) {
        Ok(event) => Some(event),
        Err(error) => {
            let order_id = order_id(row).map(|id| id.to_string()).unwrap_or_default();
            tracing::error!(order_id, %error, "order is corrupt, its event is not published");
            None
        }
    });
    events.collect()
}

/// The event of an order's row. Fails with [`StoreError::Corrupt`].
fn event(row: &MySqlRow, kind: EventKind) -> Result<OrderEvent, StoreError> {
    let hold_seconds: Option<u32> = row.try_get("hold_seconds")?;
    let wants_hold = kind == EventKind::Placed && !row.try_get::<bool, _>("is_hold_confirmed")?;
    Ok(OrderEvent {
        order_id: order_id(row)?,
        kind,
        lines: parse_json("orders.lines", ascii(row, "lines")?)?,
        accepted_at: row.try_get("created_at")?,
        hold_seconds: hold_seconds.filter(|_| wants_hold),
        reference: text(row, "reference")?,
    })
}
