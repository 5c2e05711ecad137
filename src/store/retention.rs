//! Deletes old rows, in batches from the low end of the primary keys, which are in the order of
//! age.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row};

use super::{
    OrderStore, StockStore, StoreError,
    database::on_connection,
    outcomes::outcome,
    rows::{expect_rows, json, order_id_of, product_id},
    transaction::transaction,
};
use crate::{
    crash_point::crash_point,
    domain::{OrderId, ProductId, fold::Outcome},
};

/// What one batch of a purge did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purged {
    /// Nothing: another process purges this store at present.
    Busy,
    Done {
        rows: u64,
        /// Whether there are more rows to purge.
        has_more: bool,
    },
}

/// What the purged rows say of a product, in units.
#[derive(Debug, Clone, Copy, Default)]
struct Balance {
    supplied: i64,
    held: i64,
}

type Balances = BTreeMap<ProductId, Balance>;

/// The statements about a purge mark: the row that says up to which order a table is purged.
struct PurgeMark {
    claim: &'static str,
    read: &'static str,
    /// Finds the order after a number of orders.
    end: &'static str,
    advance: &'static str,
}

macro_rules! purge_mark {
    ($mark:literal, $table:literal) => {
        PurgeMark {
            claim: concat!(
                "SELECT purged_below FROM ",
                $mark,
                " WHERE id = 1 FOR UPDATE SKIP LOCKED"
            ),
            read: concat!("SELECT purged_below FROM ", $mark, " WHERE id = 1"),
            end: concat!(
                "SELECT order_id FROM ",
                $table,
                " WHERE order_id >= ? AND order_id < ? ORDER BY order_id LIMIT 1 OFFSET ?"
            ),
            advance: concat!("UPDATE ", $mark, " SET purged_below = ? WHERE id = 1"),
        }
    };
}

const OF_LEDGER: PurgeMark = purge_mark!("ledger_horizon", "order_outcomes");
const OF_ORDERS: PurgeMark = purge_mark!("order_horizon", "orders");

const LOCK_OUTCOMES: &str = "
    SELECT order_id, outcome, reason, `lines` FROM order_outcomes
    WHERE order_id >= ? AND order_id < ? ORDER BY order_id FOR UPDATE";

const DELETE_OUTCOMES: &str = "DELETE FROM order_outcomes WHERE order_id >= ? AND order_id < ?";

const LOCK_MOVEMENTS: &str = "
    SELECT movement_id, product_id, quantity, created_at FROM stock_movements
    ORDER BY movement_id LIMIT ? FOR UPDATE";

const DELETE_MOVEMENTS: &str = "DELETE FROM stock_movements WHERE movement_id <= ?";

const ADD_BALANCES: &str = "
    INSERT INTO ledger_balances (product_id, supplied, held)
    SELECT product_id, 0, 0
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]')) AS purged
    ON DUPLICATE KEY UPDATE ledger_balances.held = ledger_balances.held";

const RAISE_BALANCES: &str = "
    UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
        supplied   BIGINT PATH '$[1]',
        held       BIGINT PATH '$[2]')) AS purged
    STRAIGHT_JOIN ledger_balances AS b FORCE INDEX (PRIMARY) ON b.product_id = purged.product_id
    SET b.supplied = b.supplied + purged.supplied, b.held = b.held + purged.held";

/// Keeps orders that are pending or hold their stock, orders with an announcement, and orders that
/// owe a release, expired or not. Each part has the bounds: a server may read all rows of a part
/// before it compares.
const DELETE_ORDERS: &str = "
    DELETE FROM orders
    WHERE order_id >= ? AND order_id < ? AND status NOT IN ('PENDING', 'RESERVED')
    AND NOT EXISTS (
        SELECT 1 FROM owed_releases AS r
        WHERE r.order_id = orders.order_id AND r.order_id >= ? AND r.order_id < ?)
    AND NOT EXISTS (
        SELECT 1 FROM announcements AS a
        WHERE a.order_id = orders.order_id AND a.order_id >= ? AND a.order_id < ?)";
/// Each part of the statement takes the two bounds.
const PARTS_OF_DELETE_ORDERS: usize = 3;

const DELETE_IDEMPOTENCY_KEYS: &str =
    "DELETE FROM idempotency_keys WHERE created_at < ? ORDER BY created_at LIMIT ?";

impl StockStore {
    /// Deletes up to `limit` outcomes of the oldest orders below `below`. The same transaction adds
    /// the units that they hold to the balances. From then on, no order below them is decided.
    ///
    /// Fails with [`StoreError::Corrupt`] if an outcome cannot be read, and with the errors of a
    /// transaction.
    pub async fn purge_outcomes(&self, below: OrderId, limit: u32) -> Result<Purged, StoreError> {
        transaction!(self.db, PurgeOutcomes, |conn, _| {
            let Some(from) = OF_LEDGER.claim(conn).await? else { return Ok(Purged::Busy) };
            let Some(end) = OF_LEDGER.end(conn, from, below, limit).await? else {
                return Ok(Purged::NOTHING);
            };
            let range = |sql| sqlx::query(sql).bind(bytes(from)).bind(bytes(end));
            let rows = range(LOCK_OUTCOMES).fetch_all(&mut *conn).await?;
            let mut balances = Balances::new();
            for row in &rows {
                if let Outcome::Completed(demand) = outcome(row)? {
                    for (id, quantity) in demand.iter() {
                        balances.entry(id.clone()).or_default().held += quantity;
                    }
                }
            }
            add_balances(conn, &balances).await?;
            let deleted = range(DELETE_OUTCOMES).execute(&mut *conn).await?.rows_affected();
            expect_rows("outcomes purged", rows.len(), deleted)?;
            OF_LEDGER.advance(conn, end).await?;
            Ok(Purged::Done { rows: deleted, has_more: end < below })
        })
    }

    /// Deletes up to `limit` of the first movements, up to the first that was booked at `before` or
    /// later. The same transaction adds their units to the balances.
    ///
    /// Fails as [`StockStore::purge_outcomes`] does.
    pub async fn purge_movements(
        &self,
        before: DateTime<Utc>,
        limit: u32,
    ) -> Result<Purged, StoreError> {
        transaction!(self.db, PurgeMovements, |conn, _| {
            if OF_LEDGER.claim(conn).await?.is_none() {
                return Ok(Purged::Busy);
            }
            let rows = sqlx::query(LOCK_MOVEMENTS).bind(limit).fetch_all(&mut *conn).await?;
            let (mut balances, mut last, mut old) = (Balances::new(), None, 0);
            for row in &rows {
                if row.try_get::<DateTime<Utc>, _>("created_at")? >= before {
                    break;
                }
                let quantity: i64 = row.try_get("quantity")?;
                balances.entry(product_id(row)?).or_default().supplied += quantity;
                last = Some(row.try_get::<i64, _>("movement_id")?);
                old += 1;
            }
            let Some(last) = last else { return Ok(Purged::NOTHING) };
            add_balances(conn, &balances).await?;
            let deleted =
                sqlx::query(DELETE_MOVEMENTS).bind(last).execute(&mut *conn).await?.rows_affected();
            expect_rows("movements purged", old, deleted)?;
            Ok(Purged::Done {
                rows: deleted,
                has_more: u32::try_from(old).is_ok_and(|old| old == limit),
            })
        })
    }

    /// Outcomes of orders below this one are purged.
    pub async fn purged_below(&self) -> Result<OrderId, StoreError> {
        on_connection!(self.db, |conn| purged_below(conn).await)
    }
}

impl OrderStore {
    /// Reads up to `limit` of the oldest orders below `below`, and deletes those that are not
    /// pending, have no event to publish and owe no release.
    ///
    /// Fails with the errors of a transaction.
    pub(crate) async fn purge_orders(
        &self,
        below: OrderId,
        limit: u32,
    ) -> Result<Purged, StoreError> {
        transaction!(self.db, PurgeOrders, |conn, _| {
            let Some(from) = OF_ORDERS.claim(conn).await? else { return Ok(Purged::Busy) };
            let Some(end) = OF_ORDERS.end(conn, from, below, limit).await? else {
                return Ok(Purged::NOTHING);
            };
            let mut deleting = sqlx::query(DELETE_ORDERS);
            for _part in 0..PARTS_OF_DELETE_ORDERS {
                deleting = deleting.bind(bytes(from)).bind(bytes(end));
            }
            let rows = deleting.execute(&mut *conn).await?.rows_affected();
            OF_ORDERS.advance(conn, end).await?;
            Ok(Purged::Done { rows, has_more: end < below })
        })
    }

    /// Deletes up to `limit` of the oldest idempotency keys that were first used before `before`.
    pub(crate) async fn purge_idempotency_keys(
        &self,
        before: DateTime<Utc>,
        limit: u32,
    ) -> Result<Purged, StoreError> {
        let query = sqlx::query(DELETE_IDEMPOTENCY_KEYS).bind(before).bind(limit);
        let rows = on_connection!(self.db, |conn| query.execute(conn).await)?.rows_affected();
        Ok(Purged::Done { rows, has_more: rows == u64::from(limit) })
    }
}

/// Orders below this one are purged, unless they are pending, have an event to publish or owe a
/// release.
pub(super) async fn orders_purged_below(conn: &mut MySqlConnection) -> Result<OrderId, StoreError> {
    OF_ORDERS.read(conn).await
}

/// Outcomes of orders below this one are purged.
pub(super) async fn purged_below(conn: &mut MySqlConnection) -> Result<OrderId, StoreError> {
    OF_LEDGER.read(conn).await
}

impl Purged {
    const NOTHING: Self = Self::Done { rows: 0, has_more: false };
}

impl PurgeMark {
    /// Reads and locks the mark: no other process purges until the transaction ends. `None` if
    /// another process has locked it.
    async fn claim(&self, conn: &mut MySqlConnection) -> Result<Option<OrderId>, StoreError> {
        let row = sqlx::query(self.claim).fetch_optional(conn).await?;
        row.map(|row| order_id_of(&row, "purged_below")).transpose()
    }

    async fn read(&self, conn: &mut MySqlConnection) -> Result<OrderId, StoreError> {
        let row = sqlx::query(self.read).fetch_one(conn).await?;
        order_id_of(&row, "purged_below")
    }

    /// The end of a batch of `limit` orders from `from`: the first order after them, at most
    /// `below`. `None` if `below` is not above `from`.
    async fn end(
        &self,
        conn: &mut MySqlConnection,
        from: OrderId,
        below: OrderId,
        limit: u32,
    ) -> Result<Option<OrderId>, StoreError> {
        if below <= from {
            return Ok(None);
        }
        let row = sqlx::query(self.end)
            .bind(bytes(from))
            .bind(bytes(below))
            .bind(limit)
            .fetch_optional(conn)
            .await?;
        row.map_or(Ok(below), |row| order_id_of(&row, "order_id")).map(Some)
    }

    async fn advance(&self, conn: &mut MySqlConnection, end: OrderId) -> Result<(), StoreError> {
        let advanced = sqlx::query(self.advance).bind(bytes(end)).execute(conn).await?;
        expect_rows("purge marks advanced", 1, advanced.rows_affected())
    }
}

/// Adds units to the balances of their products.
async fn add_balances(conn: &mut MySqlConnection, balances: &Balances) -> Result<(), StoreError> {
    if balances.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> =
        balances.iter().map(|(id, sum)| (id.as_str(), sum.supplied, sum.held)).collect();
    let rows = json(&rows)?;
    sqlx::query(ADD_BALANCES).bind(&rows).execute(&mut *conn).await?;
    let raised = sqlx::query(RAISE_BALANCES).bind(&rows).execute(conn).await?;
    expect_rows("balances raised", balances.len(), raised.rows_affected())?;
    crash_point("retention.booked");
    Ok(())
}

fn bytes(id: OrderId) -> Vec<u8> {
    id.as_bytes().to_vec()
}
