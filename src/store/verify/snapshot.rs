//! The stock store at one instant.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use sqlx::{MySqlConnection, Row, mysql::MySqlRow};

use crate::{
    domain::{OrderId, ProductId, fold::Outcome},
    store::{
        StockStore, StoreError,
        outcomes::outcome,
        retention::purged_below,
        rows::{ascii, hex, order_id, product_id},
    },
};

/// Most wrong outcomes that a snapshot lists. The others are counted.
const MAX_CORRUPT: usize = 1_000;
/// Outcomes that one statement reads.
const PAGE_ROWS: u32 = 5_000;

const PAGE_OF_OUTCOMES: &str = "
    SELECT order_id, outcome, reason, `lines`, released_at IS NOT NULL AS is_released
    FROM order_outcomes WHERE order_id > UNHEX(?) ORDER BY order_id LIMIT ?";

const REPEATED_ADJUSTMENTS: &str = "
    SELECT request_id, product_id, COUNT(*) AS n FROM stock_movements
    WHERE request_id IS NOT NULL GROUP BY request_id, product_id HAVING COUNT(*) > 1 LIMIT 1000";

/// What is wrong with an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OutcomeFault {
    /// It cannot be read, or it names a product twice.
    Unreadable(String),
    /// Retention had purged the outcomes of orders of this age before.
    Purged,
    /// The worker refused the order, and the outcome has units.
    RefusedWithUnits,
    /// It was released, and holds its units again.
    HeldAgain,
}

/// An outcome that cannot be read, or should not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorruptOutcome {
    pub(crate) order_id: OrderId,
    pub(crate) fault: OutcomeFault,
}

/// A request that has adjusted a product more than once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepeatedAdjustment {
    pub(crate) request_id: String,
    pub(crate) product_id: ProductId,
    /// How many movements it has of the product.
    pub(crate) movements: i64,
}

/// The stock store at one instant.
#[derive(Debug, Default)]
pub struct StockSnapshot {
    pub available: BTreeMap<ProductId, i64>,
    /// The units that were imported, restocked and adjusted, also by purged movements.
    pub supplied: BTreeMap<ProductId, i64>,
    /// The units that completed orders hold, also by purged outcomes.
    pub held: BTreeMap<ProductId, i64>,
    pub outcomes: u64,
    /// The first of them, at most `MAX_CORRUPT`.
    pub corrupt: Vec<CorruptOutcome>,
    /// All of them.
    pub(crate) corrupt_count: u64,
    /// The first of them, at most `MAX_CORRUPT`.
    pub repeated: Vec<RepeatedAdjustment>,
}

impl StockStore {
    /// [`StockStore::snapshot_with`], without a report of its progress.
    pub async fn snapshot(&self) -> Result<StockSnapshot, StoreError> {
        self.snapshot_with(&|_| {}).await
    }

    /// Reads the whole store in one consistent snapshot, which takes no locks and has no time
    /// limit. The server keeps what others delete until the snapshot ends. `on_outcomes` is called
    /// with numbers of outcomes that were read.
    pub(crate) async fn snapshot_with(
        &self,
        on_outcomes: &(dyn Fn(u64) + Sync),
    ) -> Result<StockSnapshot, StoreError> {
        let mut in_use = self.db.acquire().await?;
        in_use.without_limit().await?;
        let begin = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
                     START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
        sqlx::raw_sql(begin).execute(in_use.conn()).await?;
        let snapshot = read_snapshot(in_use.conn(), on_outcomes).await?;
        sqlx::raw_sql("COMMIT").execute(in_use.conn()).await?;
        in_use.end(Ok(snapshot))
    }
}

async fn read_snapshot(
    conn: &mut MySqlConnection,
    on_outcomes: &(dyn Fn(u64) + Sync),
) -> Result<StockSnapshot, StoreError> {
    let mut snapshot = StockSnapshot::default();
    let available = "SELECT product_id, available AS n FROM products";
    let supplied = "SELECT product_id, CAST(SUM(quantity) AS SIGNED) AS n
                    FROM stock_movements GROUP BY product_id";
    let (purged_supply, purged_holdings) = (
        "SELECT product_id, supplied AS n FROM ledger_balances",
        "SELECT product_id, held AS n FROM ledger_balances",
    );
    add_sums(conn, available, &mut snapshot.available).await?;
    for supplied in [supplied, purged_supply] {
        add_sums(conn, supplied, &mut snapshot.supplied).await?;
    }
    add_sums(conn, purged_holdings, &mut snapshot.held).await?;
    snapshot.repeated = repeated_adjustments(conn).await?;
    let purged_below = purged_below(conn).await?;
    let mut after = String::new();
    loop {
        let page = sqlx::query(PAGE_OF_OUTCOMES).bind(&after).bind(PAGE_ROWS);
        let rows = page.fetch_all(&mut *conn).await?;
        for row in &rows {
            snapshot.add_outcome(row, purged_below)?;
        }
        on_outcomes(rows.len() as u64);
        match rows.last() {
            Some(last) if u32::try_from(rows.len()).is_ok_and(|count| count == PAGE_ROWS) => {
                after = hex(order_id(last)?);
            }
            _ => return Ok(snapshot),
        }
    }
}

impl StockSnapshot {
    /// Adds the units of an outcome, and its faults. Fails only if the order's id cannot be read.
    fn add_outcome(&mut self, row: &MySqlRow, purged_below: OrderId) -> Result<(), StoreError> {
        self.outcomes += 1;
        let id = order_id(row)?;
        if id < purged_below {
            self.add_fault(id, OutcomeFault::Purged);
        }
        match outcome(row) {
            Ok(Outcome::Completed(demand)) => {
                for (product, quantity) in demand.iter() {
                    add(&mut self.held, product, quantity);
                }
                if row.try_get::<i64, _>("is_released")? != 0 {
                    self.add_fault(id, OutcomeFault::HeldAgain);
                }
            }
            Ok(Outcome::Failed(_)) if ascii(row, "lines")? != "[]" => {
                self.add_fault(id, OutcomeFault::RefusedWithUnits);
            }
            Ok(Outcome::Failed(_) | Outcome::Released(_)) => {}
            Err(error) => self.add_fault(id, OutcomeFault::Unreadable(error.to_string())),
        }
        Ok(())
    }

    fn add_fault(&mut self, order_id: OrderId, fault: OutcomeFault) {
        self.corrupt_count += 1;
        if self.corrupt.len() < MAX_CORRUPT {
            self.corrupt.push(CorruptOutcome { order_id, fault });
        }
    }
}

async fn repeated_adjustments(
    conn: &mut MySqlConnection,
) -> Result<Vec<RepeatedAdjustment>, StoreError> {
    let rows = sqlx::query(REPEATED_ADJUSTMENTS).fetch_all(conn).await?;
    let repeated = |row: &MySqlRow| {
        let (request_id, product_id) = (ascii(row, "request_id")?.to_owned(), product_id(row)?);
        Ok(RepeatedAdjustment { request_id, product_id, movements: row.try_get("n")? })
    };
    rows.iter().map(repeated).collect()
}

/// Adds the sum `n` of each row to that of its product.
async fn add_sums(
    conn: &mut MySqlConnection,
    sql: &'static str,
    sums: &mut BTreeMap<ProductId, i64>,
) -> Result<(), StoreError> {
    let mut rows = sqlx::query(sql).fetch(conn);
    while let Some(row) = rows.try_next().await? {
        add(sums, &product_id(&row)?, row.try_get::<i64, _>("n")?);
    }
    Ok(())
}

/// Adds to a sum. A sum that is out of bounds stays at the bound, which no ledger explains.
fn add(sums: &mut BTreeMap<ProductId, i64>, product: &ProductId, quantity: i64) {
    match sums.get_mut(product) {
        Some(sum) => *sum = sum.saturating_add(quantity),
        None => drop(sums.insert(product.clone(), quantity)),
    }
}
