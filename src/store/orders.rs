//! Orders as clients placed them: read, and found decided. `place` writes them.

use chrono::{DateTime, Utc};
use sqlx::{Row, mysql::MySqlRow};

use super::{
    Database, StoreError,
    database::on_connection,
    rows::{ascii, order_id, order_ids, order_state, parse_json, text, wanted_orders},
};
use crate::domain::{EventKind, Lines, OrderEvent, OrderId, OrderState};

/// The orders as clients placed them, the outbox of events that are not published yet, and the
/// releases that are owed.
#[derive(Debug, Clone)]
pub struct OrderStore {
    pub(super) db: Database,
}

/// An order as the order store shows it.
#[derive(Debug, Clone)]
pub struct StoredOrder {
    pub summary: OrderSummary,
    pub(crate) reference: Option<String>,
    pub(crate) customer_id: Option<String>,
    pub(crate) lines: Lines,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
}

/// The state of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderSummary {
    pub order_id: OrderId,
    pub state: OrderState,
    pub reason: Option<String>,
    /// When its hold ends. Only a reserved order has one.
    pub expires_at: Option<DateTime<Utc>>,
}

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

    /// One order; `None` if the store does not have it.
    ///
    /// Fails with [`StoreError::Corrupt`] if its row cannot be read.
    pub async fn find(&self, id: OrderId) -> Result<Option<StoredOrder>, StoreError> {
        let sql = "SELECT o.order_id, o.status, o.reason, o.reference, o.customer_id, o.`lines`,
                          o.created_at, o.updated_at, h.expires_at
                   FROM orders AS o LEFT JOIN holds AS h
                       ON o.status = 'RESERVED' AND h.order_id = o.order_id
                   WHERE o.order_id = ?";
        let query = sqlx::query(sql).bind(id.as_bytes().as_slice());
        let row = on_connection!(self.db, |conn| query.fetch_optional(conn).await)?;
        row.map(|row| {
            Ok(StoredOrder {
                summary: summary(&row)?,
                reference: text(&row, "reference")?,
                customer_id: text(&row, "customer_id")?,
                lines: parse_json("orders.lines", ascii(&row, "lines")?)?,
                created_at: row.try_get("created_at")?,
                updated_at: row.try_get("updated_at")?,
            })
        })
        .transpose()
    }

    /// The orders among `ids` that are no longer pending. A corrupt order is logged and left out,
    /// so that it delays no other.
    pub async fn find_decided(&self, ids: &[OrderId]) -> Result<Vec<OrderSummary>, StoreError> {
        let query = sqlx::query(READ_DECIDED).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        let readable = |row| {
            summary(row).inspect_err(|error| {
                tracing::error!(%error, "order is corrupt, its clients are not notified");
            })
        };
        Ok(rows.iter().filter_map(|row| readable(row).ok()).collect())
    }
}

/// The state of an order's row. Fails with [`StoreError::Corrupt`].
pub(super) fn summary(row: &MySqlRow) -> Result<OrderSummary, StoreError> {
    Ok(OrderSummary {
        order_id: order_id(row)?,
        state: order_state(row)?,
        reason: text(row, "reason")?,
        expires_at: row.try_get("expires_at")?,
    })
}

/// The events of the rows that can be read. A corrupt order is logged, and keeps no other from
/// being published.
pub(super) fn readable_events(rows: &[MySqlRow], kind: EventKind) -> Vec<OrderEvent> {
    let events = rows.iter().filter_map(|row| match event(row, kind) {
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
