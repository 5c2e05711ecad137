//! What is deleted of the stores when it is old: batches from the low end of the primary keys, which are in the order of age.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row};

use super::{
    OrderStore, StockStore, StoreError,
    database::{on_connection, transaction},
    outcomes::outcome,
    rows::{ascii, expect_rows, json},
};
use crate::{
    crash_point::crash_point,
    domain::{OrderId, ProductId, fold::Outcome},
};

/// What came of a batch of a purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// Another process purges this store at present.
    Busy,
    Done {
        rows: u64,
        /// Whether there is more to purge.
        more: bool,
    },
}

/// What is purged of a product: units that were supplied, units that are held.
type Balances = BTreeMap<ProductId, (i64, i64)>;

/// The statements of a horizon's row, and of the table that it is about.
struct Horizon {
    claim: &'static str,
    read: &'static str,
    /// The order behind so many.
    end: &'static str,
    advance: &'static str,
}

macro_rules! horizon {
    ($horizon:literal, $table:literal) => {
        Horizon {
            claim: concat!(
                "SELECT purged_below FROM ",
                $horizon,
                " WHERE id = 1 FOR UPDATE SKIP LOCKED"
            ),
            read: concat!("SELECT purged_below FROM ", $horizon, " WHERE id = 1"),
            end: concat!(
                "SELECT order_id FROM ",
                $table,
                " WHERE order_id >= ? AND order_id < ? ORDER BY order_id LIMIT 1 OFFSET ?"
            ),
            advance: concat!("UPDATE ", $horizon, " SET purged_below = ? WHERE id = 1"),
        }
    };
}

const OF_LEDGER: Horizon = horizon!("ledger_horizon", "order_outcomes");
const OF_ORDERS: Horizon = horizon!("order_horizon", "orders");

const LOCK_OUTCOMES: &str = "
    SELECT order_id, outcome, reason, `lines` FROM order_outcomes
    WHERE order_id >= ? AND order_id < ? ORDER BY order_id FOR UPDATE";

const DELETE_OUTCOMES: &str = "DELETE FROM order_outcomes WHERE order_id >= ? AND order_id < ?";

const LOCK_MOVEMENTS: &str = "
    SELECT movement_id, product_id, quantity, created_at FROM stock_movements ORDER BY movement_id LIMIT ? FOR UPDATE";

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

/// What is pending stays, what still has to be published, and what owes a release, expired or not.
/// The bounds stand in each part: a server may read all that a part asks for before it compares.
const DELETE_ORDERS: &str = "
    DELETE FROM orders WHERE order_id >= ? AND order_id < ? AND status <> 'PENDING'
    AND NOT EXISTS (
        SELECT 1 FROM outbox AS b WHERE b.order_id = orders.order_id AND b.order_id >= ? AND b.order_id < ?)
    AND NOT EXISTS (
        SELECT 1 FROM owed_releases AS r WHERE r.order_id = orders.order_id AND r.order_id >= ? AND r.order_id < ?)";

const DELETE_IDEMPOTENCY_KEYS: &str =
    "DELETE FROM idempotency_keys WHERE created_at < ? ORDER BY created_at LIMIT ?";

impl StockStore {
    /// Deletes up to `limit` outcomes of the oldest orders below `below`; what they hold is added to the balances in the same
    /// transaction. From then on no order below them is decided.
    pub async fn purge_outcomes(&self, below: OrderId, limit: u32) -> Result<Purge, StoreError> {
        transaction!(self.db, "purge outcomes", |conn, _| {
            let Some(from) = OF_LEDGER.claim(conn).await? else { return Ok(Purge::Busy) };
            let Some(end) = OF_LEDGER.end(conn, from, below, limit).await? else {
                return Ok(Purge::NOTHING);
            };
            let range = |sql| sqlx::query(sql).bind(bytes(from)).bind(bytes(end));
            let rows = range(LOCK_OUTCOMES).fetch_all(&mut *conn).await?;
            let mut balances = Balances::new();
            for row in &rows {
                if let Outcome::Completed(demand) = outcome(row)? {
                    for (id, quantity) in demand.iter() {
                        balances.entry(id.clone()).or_default().1 += quantity;
                    }
                }
            }
            add_balances(conn, &balances).await?;
            let deleted = range(DELETE_OUTCOMES).execute(&mut *conn).await?.rows_affected();
            expect_rows("outcomes purged", rows.len(), deleted)?;
            OF_LEDGER.advance(conn, end).await?;
            Ok(Purge::Done { rows: deleted, more: end < below })
        })
    }

    /// The same for up to `limit` of the first movements, as far as they were booked before `before`.
    pub async fn purge_movements(
        &self,
        before: DateTime<Utc>,
        limit: u32,
    ) -> Result<Purge, StoreError> {
        transaction!(self.db, "purge movements", |conn, _| {
            if OF_LEDGER.claim(conn).await?.is_none() {
                return Ok(Purge::Busy);
            }
            let rows = sqlx::query(LOCK_MOVEMENTS).bind(limit).fetch_all(&mut *conn).await?;
            let (mut balances, mut last, mut old) = (Balances::new(), None, 0);
            for row in &rows {
                if row.try_get::<DateTime<Utc>, _>("created_at")? >= before {
                    break;
                }
                let quantity: i64 = row.try_get("quantity")?;
                balances.entry(ProductId::parse(ascii(row, "product_id")?)?).or_default().0 +=
                    quantity;
                last = Some(row.try_get::<i64, _>("movement_id")?);
                old += 1;
            }
            let Some(last) = last else { return Ok(Purge::NOTHING) };
            add_balances(conn, &balances).await?;
            let deleted =
                sqlx::query(DELETE_MOVEMENTS).bind(last).execute(&mut *conn).await?.rows_affected();
            expect_rows("movements purged", old, deleted)?;
            Ok(Purge::Done {
                rows: deleted,
                more: u32::try_from(old).is_ok_and(|old| old == limit),
            })
        })
    }

    /// The lowest order whose outcome may still be there.
    pub async fn purged_below(&self) -> Result<OrderId, StoreError> {
        on_connection!(self.db, |conn| purged_below(conn).await)
    }
}

impl OrderStore {
    /// Deletes the final ones among up to `limit` of the oldest orders below `below`.
    pub(crate) async fn purge_orders(
        &self,
        below: OrderId,
        limit: u32,
    ) -> Result<Purge, StoreError> {
        transaction!(self.db, "purge orders", |conn, _| {
            let Some(from) = OF_ORDERS.claim(conn).await? else { return Ok(Purge::Busy) };
            let Some(end) = OF_ORDERS.end(conn, from, below, limit).await? else {
                return Ok(Purge::NOTHING);
            };
            let mut deleting = sqlx::query(DELETE_ORDERS);
            for _part in 0..3 {
                deleting = deleting.bind(bytes(from)).bind(bytes(end));
            }
            let rows = deleting.execute(&mut *conn).await?.rows_affected();
            OF_ORDERS.advance(conn, end).await?;
            Ok(Purge::Done { rows, more: end < below })
        })
    }

    /// Deletes up to `limit` of the oldest idempotency keys that were first used before `before`.
    pub(crate) async fn purge_idempotency_keys(
        &self,
        before: DateTime<Utc>,
        limit: u32,
    ) -> Result<Purge, StoreError> {
        let query = sqlx::query(DELETE_IDEMPOTENCY_KEYS).bind(before).bind(limit);
        let rows = on_connection!(self.db, |conn| query.execute(conn).await)?.rows_affected();
        Ok(Purge::Done { rows, more: rows == u64::from(limit) })
    }

    /// The lowest order that may be there whatever its state.
    pub(crate) async fn purged_below(&self) -> Result<OrderId, StoreError> {
        on_connection!(self.db, |conn| OF_ORDERS.read(conn).await)
    }
}

/// How far the ledger is purged.
pub(super) async fn purged_below(conn: &mut MySqlConnection) -> Result<OrderId, StoreError> {
    OF_LEDGER.read(conn).await
}

impl Purge {
    const NOTHING: Self = Self::Done { rows: 0, more: false };
}

impl Horizon {
    /// How far the purge has come; nobody else purges until the transaction ends. `None` where another does.
    async fn claim(&self, conn: &mut MySqlConnection) -> Result<Option<OrderId>, StoreError> {
        let row = sqlx::query(self.claim).fetch_optional(conn).await?;
        row.map(|row| Ok(OrderId::from_slice(row.try_get("purged_below")?)?)).transpose()
    }

    async fn read(&self, conn: &mut MySqlConnection) -> Result<OrderId, StoreError> {
        let row = sqlx::query(self.read).fetch_one(conn).await?;
        Ok(OrderId::from_slice(row.try_get("purged_below")?)?)
    }

    /// The end of a batch of `limit` orders from `from`, and at the latest `below`. `None` where that is no later.
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
        row.map_or(Ok(Some(below)), |row| Ok(Some(OrderId::from_slice(row.try_get("order_id")?)?)))
    }

    async fn advance(&self, conn: &mut MySqlConnection, end: OrderId) -> Result<(), StoreError> {
        let advanced = sqlx::query(self.advance).bind(bytes(end)).execute(conn).await?;
        expect_rows("horizons advanced", 1, advanced.rows_affected())
    }
}

async fn add_balances(conn: &mut MySqlConnection, balances: &Balances) -> Result<(), StoreError> {
    if balances.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> =
        balances.iter().map(|(id, (supplied, held))| (id.as_str(), supplied, held)).collect();
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
