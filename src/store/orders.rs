use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row, mysql::MySqlRow};

use super::{
    Database, StoreError,
    database::{on_connection, transaction},
    rows::{expect_rows, hex, json, order_id, order_ids, parse_json, wanted_orders},
};
use crate::{
    crash_point::crash_point,
    domain::{EventKind, Lines, OrderEvent, OrderId, OrderState, OrderStatus, Reason, ReportedStatus},
};

/// The orders as clients placed them, and the outbox of what the `orders` topic still lacks.
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
    pub lines: Lines,
    /// Millisecond precision, as the store keeps it.
    pub accepted_at: DateTime<Utc>,
}

/// An order as the order store shows it.
#[derive(Debug, Clone)]
pub struct StoredOrder {
    pub order_id: OrderId,
    pub status: OrderState,
    pub reason: Option<String>,
    pub reference: Option<String>,
    pub customer_id: Option<String>,
    pub lines: Lines,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// What a batch of statuses did.
#[derive(Debug, Default)]
pub struct Applied {
    /// How many orders moved to each state.
    pub moved: Vec<(OrderState, usize)>,
    /// Release events that were put into the outbox.
    pub events: Vec<OrderEvent>,
    /// Statuses of orders that the store does not know, by their index.
    pub unknown: Vec<usize>,
}

const INSERT_ORDERS: &str = "
    INSERT INTO orders (order_id, reference, customer_id, `lines`, created_at, updated_at)
    SELECT UNHEX(order_id), reference, customer_id, `lines`, created_at, created_at
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        order_id    VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        reference   VARCHAR(128) CHARACTER SET utf8mb4 PATH '$[1]',
        customer_id VARCHAR(128) CHARACTER SET utf8mb4 PATH '$[2]',
        `lines`     TEXT CHARACTER SET ascii PATH '$[3]',
        created_at  DATETIME(3) PATH '$[4]')) AS placed";

/// In the order of the primary key, so that two compensators lock in the same order.
const LOCK_STATES: &str = concat!(
    "SELECT o.order_id, o.status FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id FOR UPDATE",
);

const MOVE_ORDERS: &str = "
    UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
        order_id VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        expected VARCHAR(16) CHARACTER SET ascii PATH '$[1]',
        next     VARCHAR(16) CHARACTER SET ascii PATH '$[2]',
        reason   VARCHAR(512) CHARACTER SET utf8mb4 PATH '$[3]')) AS moved
    STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = UNHEX(moved.order_id) AND o.status = moved.expected
    SET o.status = moved.next, o.reason = moved.reason, o.updated_at = ?";

const READ_LINES: &str = concat!(
    "SELECT o.order_id, o.`lines`, o.created_at FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id",
);

const READ_DECIDED: &str = concat!(
    "SELECT o.order_id, o.status, o.reason FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id WHERE o.status <> 'PENDING'",
);

impl OrderStore {
    pub fn new(db: Database) -> Self {
        Self { db }
    }

    pub fn database(&self) -> &Database {
        &self.db
    }

    /// Writes orders and their outbox rows in one transaction: all of them or none. The rows are leased to the caller, who
    /// publishes them, for `lease`.
    ///
    /// Orders that an earlier attempt wrote after all are left as they are: an id is never given to two orders. Fails with
    /// [`StoreError::CommitUnknown`] where they may be written.
    pub async fn place(&self, orders: &[NewOrder], lease: Duration) -> Result<(), StoreError> {
        let written = self.insert(orders, lease).await;
        let Err(doubt @ (StoreError::CommitUnknown(_) | StoreError::Duplicate(_))) = written else { return written };
        let Ok(present) = self.read_back_states(orders.iter().map(|o| o.order_id)).await else { return Err(doubt) };
        let is_missing = |order: &&NewOrder| !present.iter().any(|(id, _)| *id == order.order_id);
        let missing: Vec<_> = orders.iter().filter(is_missing).cloned().collect();
        if missing.is_empty() { Ok(()) } else { self.insert(&missing, lease).await }
    }

    async fn insert(&self, orders: &[NewOrder], lease: Duration) -> Result<(), StoreError> {
        let rows = orders.iter().map(|order| {
            let created_at = order.accepted_at.format("%F %T%.3f").to_string();
            Ok((hex(order.order_id), &order.reference, &order.customer_id, json(&order.lines)?, created_at))
        });
        let rows = json(&rows.collect::<Result<Vec<_>, StoreError>>()?)?;
        let ids = order_ids(orders.iter().map(|o| o.order_id))?;
        transaction!(self.db, "place", |conn, _| {
            sqlx::query(INSERT_ORDERS).bind(&rows).execute(&mut *conn).await?;
            super::outbox::insert(conn, &ids, EventKind::Placed, lease).await
        })
    }

    /// The states of those orders that exist, once no transaction is changing them.
    async fn read_back_states(
        &self,
        ids: impl IntoIterator<Item = OrderId>,
    ) -> Result<Vec<(OrderId, OrderState)>, StoreError> {
        let ids = order_ids(ids)?;
        transaction!(self.db, "read back", |conn, _| lock_states(conn, &ids).await)
    }

    /// Brings statuses back to their orders, as if one by one in their order, in one transaction. What is released is in the
    /// outbox, leased to the caller for `lease`.
    pub async fn apply(
        &self,
        statuses: &[OrderStatus],
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Result<Applied, StoreError> {
        let mut ids: Vec<_> = statuses.iter().map(|status| status.order_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let ids = order_ids(ids)?;
        transaction!(self.db, "apply statuses", |conn, _| {
            let plan = Plan::new(statuses, &lock_states(conn, &ids).await?);
            let moved = plan.moves(statuses);
            if !moved.is_empty() {
                let written = sqlx::query(MOVE_ORDERS).bind(json(&moved)?).bind(now).execute(&mut *conn).await?;
                expect_rows("orders moved", moved.len(), written.rows_affected())?;
            }
            crash_point("compensate.written");
            let events = release(conn, &plan.releases, lease).await?;
            Ok(Applied { moved: plan.count_moves(), events, unknown: plan.unknown })
        })
    }

    /// One order, or none.
    pub async fn find(&self, id: OrderId) -> Result<Option<StoredOrder>, StoreError> {
        let sql = "SELECT order_id, status, reason, reference, customer_id, `lines`, created_at, updated_at
                   FROM orders WHERE order_id = ?";
        let query = sqlx::query(sql).bind(id.as_bytes().as_slice());
        let row = on_connection!(self.db, |conn| query.fetch_optional(conn).await)?;
        row.map(|row| {
            Ok(StoredOrder {
                order_id: id,
                status: OrderState::parse(row.try_get("status")?)?,
                reason: row.try_get("reason")?,
                reference: row.try_get("reference")?,
                customer_id: row.try_get("customer_id")?,
                lines: parse_json("orders.lines", row.try_get("lines")?)?,
                created_at: row.try_get("created_at")?,
                updated_at: row.try_get("updated_at")?,
            })
        })
        .transpose()
    }

    /// Of these orders, those that are no longer pending, with the reason where there is one.
    pub async fn find_decided(
        &self,
        ids: &[OrderId],
    ) -> Result<Vec<(OrderId, OrderState, Option<String>)>, StoreError> {
        let query = sqlx::query(READ_DECIDED).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter()
            .map(|row| Ok((order_id(row)?, OrderState::parse(row.try_get("status")?)?, row.try_get("reason")?)))
            .collect()
    }
}

async fn lock_states(conn: &mut MySqlConnection, ids: &str) -> Result<Vec<(OrderId, OrderState)>, StoreError> {
    let rows = sqlx::query(LOCK_STATES).bind(ids).fetch_all(conn).await?;
    rows.iter().map(|row| Ok((order_id(row)?, OrderState::parse(row.try_get("status")?)?))).collect()
}

/// Puts a release event of each order into the outbox.
async fn release(conn: &mut MySqlConnection, ids: &[OrderId], lease: Duration) -> Result<Vec<OrderEvent>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let ids = order_ids(ids.iter().copied())?;
    super::outbox::insert(conn, &ids, EventKind::Release, lease).await?;
    let rows = sqlx::query(READ_LINES).bind(&ids).fetch_all(conn).await?;
    rows.iter().map(|row| event(row, EventKind::Release)).collect()
}

/// The event of an order's row.
pub(super) fn event(row: &MySqlRow, kind: EventKind) -> Result<OrderEvent, StoreError> {
    Ok(OrderEvent {
        order_id: order_id(row)?,
        kind,
        lines: parse_json("orders.lines", row.try_get("lines")?)?,
        accepted_at: row.try_get("created_at")?,
    })
}

/// What a batch of statuses means for the orders as they stand: at most one move and one release an order.
struct Plan {
    /// The order, its state before, its state after, and the index of the status that moved it last.
    moves: Vec<(OrderId, OrderState, OrderState, usize)>,
    releases: Vec<OrderId>,
    unknown: Vec<usize>,
}

impl Plan {
    fn new(statuses: &[OrderStatus], states: &[(OrderId, OrderState)]) -> Self {
        let before: std::collections::BTreeMap<_, _> = states.iter().copied().collect();
        let mut after = std::collections::BTreeMap::new();
        let mut releases = std::collections::BTreeSet::new();
        let mut unknown = Vec::new();
        for (index, status) in statuses.iter().enumerate() {
            let id = status.order_id;
            let Some(initial) = before.get(&id) else {
                unknown.push(index);
                continue;
            };
            let (state, _) = after.get(&id).copied().unwrap_or((*initial, index));
            let transition = state.on(status);
            if let Some(next) = transition.next {
                after.insert(id, (next, index));
            }
            if transition.release {
                releases.insert(id);
            }
        }
        let moves = after.into_iter().map(|(id, (next, index))| (id, before[&id], next, index)).collect();
        Self { moves, releases: releases.into_iter().collect(), unknown }
    }

    fn moves<'a>(&self, statuses: &'a [OrderStatus]) -> Vec<(String, &'static str, &'static str, Option<&'a str>)> {
        let row = |(id, before, after, index): &(OrderId, OrderState, OrderState, usize)| {
            let reason = match &statuses[*index].status {
                ReportedStatus::Completed => None,
                ReportedStatus::Failed(reason) => Some(Reason::as_str(reason)),
            };
            (hex(*id), before.as_str(), after.as_str(), reason)
        };
        self.moves.iter().map(row).collect()
    }

    fn count_moves(&self) -> Vec<(OrderState, usize)> {
        [OrderState::Completed, OrderState::Failed]
            .into_iter()
            .map(|state| (state, self.moves.iter().filter(|(_, _, next, _)| *next == state).count()))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}
