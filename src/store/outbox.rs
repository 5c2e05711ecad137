//! Events of placed orders that are committed and not yet published. A row stands for the orders of
//! one group commit.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row, mysql::MySqlRow};

use super::{
    OrderStore, StoreError,
    database::on_connection,
    error::Corrupt,
    orders::{event_columns, readable_events},
    rows::{micros, order_id, order_id_of, order_ids, wanted_orders},
    transaction::transaction,
};
use crate::domain::{EventKind, OrderEvent, OrderId, TracedOrders};

/// Bytes of an order id in `order_ids`.
const ID_BYTES: usize = 16;
/// A claim takes no further group once it has so many events.
const MAX_CLAIMED_EVENTS: u64 = 4_000;
/// The most groups of a claim.
const MAX_CLAIMED_GROUPS: u32 = 500;

/// The events that are committed and not yet published.
#[derive(Debug, Clone, Copy)]
pub struct OutboxState {
    pub pending: u64,
    /// When the oldest group was committed.
    pub oldest: Option<DateTime<Utc>>,
}

/// A group of events in the outbox.
#[derive(Debug)]
pub(crate) struct OutboxGroup {
    pub(crate) group_id: OrderId,
    /// The events of the orders that can be read.
    pub(crate) events: Vec<OrderEvent>,
    /// Those of the orders that are traced.
    pub(crate) traced: TracedOrders,
    /// Orders that cannot be read.
    pub(crate) corrupt: Vec<OrderId>,
}

/// What is left of a group after some of its events were published.
#[derive(Debug)]
pub struct PublishedGroup {
    group_id: OrderId,
    remaining: BTreeSet<OrderId>,
}

impl OutboxGroup {
    /// The events of orders that were just committed together. `None` without an event.
    pub(crate) fn committed(events: Vec<OrderEvent>, traced: TracedOrders) -> Option<Self> {
        let group_id = id_of_group(events.iter().map(|event| event.order_id))?;
        Some(Self { group_id, events, traced, corrupt: Vec::new() })
    }
}

impl PublishedGroup {
    /// Orders that were committed together, and whose events the broker has acknowledged. `None`
    /// without an order.
    pub fn whole(ids: impl IntoIterator<Item = OrderId>) -> Option<Self> {
        Some(Self { group_id: id_of_group(ids)?, remaining: BTreeSet::new() })
    }

    /// A group of which the events of the orders `remaining` are not published.
    pub(crate) fn part(group_id: OrderId, remaining: impl IntoIterator<Item = OrderId>) -> Self {
        Self { group_id, remaining: remaining.into_iter().collect() }
    }
}

/// A group that is in the outbox already receives the orders too.
const INSERT: &str = "
    INSERT INTO outbox_groups (group_id, order_ids, orders, created_at, visible_at)
    VALUES (?, ?, ?, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3) + INTERVAL ? MICROSECOND)
    ON DUPLICATE KEY UPDATE
        order_ids = CONCAT(order_ids, VALUES(order_ids)), orders = orders + VALUES(orders)";

/// [`INSERT`] of a group with traced orders.
const INSERT_TRACED: &str = "
    INSERT INTO outbox_groups (group_id, order_ids, orders, created_at, visible_at, traces)
    VALUES (?, ?, ?, UTC_TIMESTAMP(3), UTC_TIMESTAMP(3) + INTERVAL ? MICROSECOND, ?)
    ON DUPLICATE KEY UPDATE
        order_ids = CONCAT(order_ids, VALUES(order_ids)), orders = orders + VALUES(orders),
        traces = CONCAT(COALESCE(traces, ''), VALUES(traces))";

const DELETE: &str = concat!(
    "DELETE g FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN outbox_groups AS g FORCE INDEX (PRIMARY) ON g.group_id = wanted.order_id",
);

const SHRINK: &str = "UPDATE outbox_groups SET order_ids = ?, orders = ? WHERE group_id = ?";

const FIND_DUE: &str = "
    SELECT group_id, orders FROM outbox_groups
    WHERE visible_at <= UTC_TIMESTAMP(3) ORDER BY group_id LIMIT ? FOR UPDATE SKIP LOCKED";

const CLAIM: &str = concat!(
    "UPDATE ",
    wanted_orders!(),
    " STRAIGHT_JOIN outbox_groups AS g FORCE INDEX (PRIMARY) ON g.group_id = wanted.order_id
    SET g.visible_at = UTC_TIMESTAMP(3) + INTERVAL ? MICROSECOND",
);

const READ_CLAIMED: &str = concat!(
    "SELECT g.group_id, g.order_ids, g.traces FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN outbox_groups AS g FORCE INDEX (PRIMARY) ON g.group_id = wanted.order_id",
);

const READ_EVENTS: &str = concat!(
    "SELECT ",
    event_columns!(),
    " FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id",
);

/// Adds the events of orders that are committed together, leased to the caller for `lease`.
/// `traces` are those of the orders that are traced. Without an order it does nothing.
pub(super) async fn insert(
    conn: &mut MySqlConnection,
    ids: &[OrderId],
    traces: Option<&str>,
    lease: Duration,
) -> Result<(), StoreError> {
    let Some(group_id) = id_of_group(ids.iter().copied()) else { return Ok(()) };
    let query = sqlx::query(if traces.is_some() { INSERT_TRACED } else { INSERT });
    let query = query.bind(group_id.as_bytes().as_slice()).bind(packed(ids));
    let mut query = query.bind(ids.len() as u64).bind(micros(lease));
    if let Some(traces) = traces {
        query = query.bind(traces);
    }
    query.execute(conn).await?;
    Ok(())
}

impl OrderStore {
    /// Claims groups without a lease or with one that has ended, and leases them to the caller. No
    /// two callers claim the same group. Their events are [`MAX_CLAIMED_EVENTS`] at most, but for
    /// the last group.
    ///
    /// An order that the store does not have any more has no event.
    pub(crate) async fn claim_outbox(
        &self,
        lease: Duration,
    ) -> Result<Vec<OutboxGroup>, StoreError> {
        transaction!(self.db, ClaimOutbox, |conn, _| {
            let due = sqlx::query(FIND_DUE).bind(MAX_CLAIMED_GROUPS).fetch_all(&mut *conn).await?;
            if due.is_empty() {
                return Ok(Vec::new());
            }
            let claimed = order_ids(first_groups(&due)?)?;
            sqlx::query(CLAIM).bind(&claimed).bind(micros(lease)).execute(&mut *conn).await?;
            let rows = sqlx::query(READ_CLAIMED).bind(&claimed).fetch_all(&mut *conn).await?;
            let mut groups = Vec::with_capacity(rows.len());
            for row in &rows {
                match read_group(conn, row).await {
                    Err(StoreError::Corrupt(error)) => {
                        tracing::error!(%error, "group is corrupt, its events are not published");
                    }
                    group => groups.push(group?),
                }
            }
            Ok(groups)
        })
    }

    /// Deletes groups whose events the broker has acknowledged. Of a group whose events it has
    /// acknowledged in part, the rest stays.
    pub async fn forget_published(&self, groups: Vec<PublishedGroup>) -> Result<(), StoreError> {
        let (mut whole, mut parts): (Vec<_>, Vec<_>) =
            groups.into_iter().partition(|group| group.remaining.is_empty());
        // All transactions lock these rows in the same order.
        whole.sort_unstable_by_key(|group| group.group_id);
        parts.sort_unstable_by_key(|group| group.group_id);
        let whole = order_ids(whole.iter().map(|group| group.group_id))?;
        transaction!(self.db, ForgetPublished, |conn, _| {
            sqlx::query(DELETE).bind(&whole).execute(&mut *conn).await?;
            for part in &parts {
                let ids: Vec<_> = part.remaining.iter().copied().collect();
                let query = sqlx::query(SHRINK).bind(packed(&ids)).bind(ids.len() as u64);
                let query = query.bind(part.group_id.as_bytes().as_slice());
                query.execute(&mut *conn).await?;
            }
            Ok(())
        })
    }

    /// Counts the events in the outbox.
    pub async fn outbox_state(&self) -> Result<OutboxState, StoreError> {
        let sql = "SELECT CAST(COALESCE(SUM(orders), 0) AS UNSIGNED) AS pending,
                          MIN(created_at) AS oldest
                   FROM outbox_groups";
        let row = on_connection!(self.db, |conn| sqlx::query(sql).fetch_one(conn).await)?;
        Ok(OutboxState { pending: row.try_get("pending")?, oldest: row.try_get("oldest")? })
    }
}

/// The id of the group of these orders: the lowest. So a committer knows it without an answer.
fn id_of_group(ids: impl IntoIterator<Item = OrderId>) -> Option<OrderId> {
    ids.into_iter().min()
}

/// The first of the groups that are due, until they have [`MAX_CLAIMED_EVENTS`].
fn first_groups(due: &[MySqlRow]) -> Result<Vec<OrderId>, StoreError> {
    let (mut groups, mut events) = (Vec::new(), 0);
    for row in due {
        if events >= MAX_CLAIMED_EVENTS {
            break;
        }
        groups.push(order_id_of(row, "group_id")?);
        events += u64::from(row.try_get::<u32, _>("orders")?);
    }
    Ok(groups)
}

/// Reads the events of a claimed group.
async fn read_group(conn: &mut MySqlConnection, row: &MySqlRow) -> Result<OutboxGroup, StoreError> {
    let group_id = order_id_of(row, "group_id")?;
    let wanted = order_ids(unpacked(row.try_get("order_ids")?)?)?;
    let rows = sqlx::query(READ_EVENTS).bind(wanted).fetch_all(conn).await?;
    let events = readable_events(&rows, EventKind::Placed);
    let readable: BTreeSet<_> = events.iter().map(|event| event.order_id).collect();
    let present = rows.iter().map(order_id).collect::<Result<Vec<_>, _>>()?;
    let corrupt = present.into_iter().filter(|id| !readable.contains(id)).collect();
    let traced = read_traces(row.try_get("traces")?);
    Ok(OutboxGroup { group_id, events, traced, corrupt })
}

/// A group whose traces are corrupt is published without them.
fn read_traces(traces: Option<Vec<u8>>) -> TracedOrders {
    let Some(traces) = traces else { return TracedOrders::default() };
    TracedOrders::parse(&String::from_utf8_lossy(&traces)).unwrap_or_else(|error| {
        tracing::warn!(%error, "traces of a group are corrupt, its events have none");
        TracedOrders::default()
    })
}

/// The ids as the column `order_ids` has them.
fn packed(ids: &[OrderId]) -> Vec<u8> {
    ids.iter().flat_map(|id| *id.as_bytes()).collect()
}

/// Fails with [`StoreError::Corrupt`].
fn unpacked(bytes: &[u8]) -> Result<Vec<OrderId>, StoreError> {
    let id = |bytes| {
        let invalid = |source| Corrupt::Value { column: "outbox_groups.order_ids", source };
        Ok(OrderId::from_slice(bytes).map_err(invalid)?)
    };
    bytes.chunks(ID_BYTES).map(id).collect()
}
