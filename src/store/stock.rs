//! The decision of a batch of order events: one transaction over stock and outcomes.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    time::{Duration, Instant},
};

use chrono::{DateTime, SubsecRound as _, Utc};
use sqlx::{MySqlConnection, Row};

use super::{
    Database, StoreError,
    error::{Conflict, Corrupt, Outage},
    outcomes,
    retention::purged_below,
    rows::{ascii, json, product_ids, wanted_products},
    transaction::transaction,
};
use crate::{
    crash_point::crash_point,
    domain::{
        EventKind, Horizon, OrderEvent, OrderId, ProductId,
        fold::{Decisions, Recorded, StockNotRead, fold},
    },
    telemetry::Metrics,
};

/// The products, the outcomes of orders, and the ledger of movements.
#[derive(Debug, Clone)]
pub struct StockStore {
    pub(super) db: Database,
    metrics: Metrics,
    /// How long outcomes are kept.
    pub(super) horizon: Horizon,
    /// Whether a change of stock that no order makes notes its products.
    pub(super) notes_levels: bool,
}

/// How a transaction makes sure that no rival changes the stock on which its decisions rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The rows are locked from the read to the commit.
    RowLocks,
    /// The rows are read without a lock. At the write, each product on which a decision rests must
    /// still have the version that was read; also a product on which a refusal rests.
    Versions,
}

/// The row of a product.
#[derive(Debug, Clone, Copy)]
pub(super) struct StockRow {
    pub(super) available: i64,
    pub(super) version: i64,
}

/// The row locks of a batch.
struct RowLocks {
    /// How long the read waited for them.
    wait: Duration,
    held_since: Instant,
}

macro_rules! read_stock {
    ($lock:literal) => {
        concat!(
            "SELECT p.product_id, p.available, p.version FROM ",
            wanted_products!(),
            " STRAIGHT_JOIN products AS p FORCE INDEX (PRIMARY)
            ON p.product_id = wanted.product_id",
            $lock
        )
    };
}

pub(super) const READ_STOCK: &str = read_stock!("");
const LOCK_STOCK: &str = read_stock!(" FOR UPDATE");

const WRITE_STOCK: &str = "
    UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
        available  BIGINT PATH '$[1]',
        version    BIGINT PATH '$[2]')) AS decided
    STRAIGHT_JOIN products AS p FORCE INDEX (PRIMARY)
        ON p.product_id = decided.product_id AND p.version = decided.version
    SET p.available = decided.available, p.version = p.version + 1, p.updated_at = ?";

impl Guard {
    /// The statement that reads the stock. A repeated attempt locks the rows in any case.
    fn read_statement(self, attempt: u32) -> &'static str {
        match (self, attempt) {
            (Self::Versions, 0) => READ_STOCK,
            (Self::Versions | Self::RowLocks, _) => LOCK_STOCK,
        }
    }
}

impl StockStore {
    pub fn new(db: Database, metrics: Metrics, horizon: Horizon) -> Self {
        Self { db, metrics, horizon, notes_levels: false }
    }

    /// Whether a change of stock that no order makes notes its products, so that a worker publishes
    /// their levels.
    #[must_use]
    pub(crate) fn noting_levels(self, notes_levels: bool) -> Self {
        Self { notes_levels, ..self }
    }

    pub(crate) fn database(&self) -> &Database {
        &self.db
    }

    /// Decides a batch of events in one transaction: stock, outcomes and ledger, all of it or
    /// nothing.
    ///
    /// At first, all placed orders are assumed new. If one was decided before, the primary key of
    /// its outcome refuses a second outcome. Then the batch runs again and reads the recorded
    /// outcomes.
    ///
    /// If a write is stale under [`Guard::Versions`], the batch runs again with its rows locked, so
    /// that no rival can starve it.
    ///
    /// Orders beyond the horizon stay as they are. So do orders whose outcomes may be purged,
    /// whatever the clocks say.
    ///
    /// Commits only if `is_held` says that the locks in Redis are still held; a caller without such
    /// locks answers `true`.
    ///
    /// Fails with
    ///
    /// - [`StoreError::LocksLost`] if `is_held` answers `false`,
    /// - [`StoreError::Corrupt`] if a recorded outcome cannot be read,
    /// - [`StoreError::Refused`] if the server refuses an outcome,
    /// - the errors of a transaction.
    pub async fn decide<E: Borrow<OrderEvent> + Sync>(
        &self,
        events: &[E],
        guard: Guard,
        now: DateTime<Utc>,
        is_held: impl Fn() -> bool + Send + Sync,
    ) -> Result<Decisions, StoreError> {
        // The store keeps milliseconds, and a repeated decision reports the time that was kept.
        let now = now.trunc_subsecs(3);
        let lines = events.iter().flat_map(|event| event.borrow().lines.as_slice());
        let demanded: BTreeSet<_> = lines.map(|line| line.product_id().clone()).collect();
        let keys = product_ids(&demanded)?;
        let mut decidable = self.horizon.decidable(now);
        let may_be_new = events.iter().all(|event| event.borrow().kind == EventKind::Placed);
        let mut row_locks = None;
        let decided = transaction!(self.db, Decide, |conn, attempt| {
            let locking = Instant::now();
            let stock = read_stock(conn, guard.read_statement(attempt), &keys).await?;
            row_locks = Some(RowLocks { wait: locking.elapsed(), held_since: Instant::now() });
            crash_point("deduct.read");
            let recorded = match attempt {
                0 if may_be_new => HashMap::new(),
                _ => {
                    outcomes::read(conn, events.iter().map(|event| event.borrow().order_id)).await?
                }
            };
            if attempt > 0 {
                decidable.start = decidable.start.max(purged_below(conn).await?);
            }
            let (decisions, stock) =
                fold_over(conn, stock, events, &decidable, &recorded, now).await?;
            self.write_stock(conn, &stock, &decisions, guard, now).await?;
            crash_point("deduct.written");
            outcomes::insert(conn, &decisions.outcomes, now).await?;
            outcomes::release(conn, &decisions.released, now).await?;
            if is_held() { Ok(decisions) } else { Err(StoreError::LocksLost) }
        });
        if let Some(row_locks) = row_locks.filter(|_| guard == Guard::RowLocks) {
            self.observe(&row_locks);
        }
        decided
    }

    /// Records how long the row locks of a batch took, and how long they were held.
    fn observe(&self, RowLocks { wait, held_since }: &RowLocks) {
        let Metrics { lock_wait, lock_hold, .. } = &self.metrics;
        lock_wait.with_label_values(&["row"]).observe(wait.as_secs_f64());
        lock_hold.with_label_values(&["row"]).observe(held_since.elapsed().as_secs_f64());
    }

    /// Writes the new quantities where the version is still the one read. Under [`Guard::Versions`]
    /// it also raises the version of products on which a refusal rests.
    ///
    /// Fails with [`StoreError::Conflict`] if another transaction wrote one of the products.
    async fn write_stock(
        &self,
        conn: &mut MySqlConnection,
        stock: &BTreeMap<ProductId, StockRow>,
        decisions: &Decisions,
        guard: Guard,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let rests_on =
            decisions.available.iter().filter_map(|(id, after)| Some((id, *after, stock.get(id)?)));
        let written: Vec<_> = rests_on
            .filter(|(_, after, before)| guard == Guard::Versions || *after != before.available)
            .map(|(id, after, before)| (id.as_str(), after, before.version))
            .collect();
        if written.is_empty() {
            return Ok(());
        }
        let updated = sqlx::query(WRITE_STOCK)
            .bind(json(&written)?)
            .bind(now)
            .execute(conn)
            .await?
            .rows_affected();
        let stale = (written.len() as u64).saturating_sub(updated);
        if stale == 0 {
            return Ok(());
        }
        self.metrics.stale_writes_rejected.inc_by(stale);
        Err(Conflict::StaleProducts { stale, written: written.len() }.into())
    }
}

/// Folds the events over the stock. Returns the stock that the decisions rest on, too.
///
/// A release may return units of products that the batch did not demand. Their rows are locked and
/// read, and the events are folded again. Fails with [`StoreError::Corrupt`] if such a product does
/// not exist.
async fn fold_over<E: Borrow<OrderEvent>>(
    conn: &mut MySqlConnection,
    mut stock: BTreeMap<ProductId, StockRow>,
    events: &[E],
    decidable: &Range<OrderId>,
    recorded: &HashMap<OrderId, Recorded>,
    now: DateTime<Utc>,
) -> Result<(Decisions, BTreeMap<ProductId, StockRow>), StoreError> {
    loop {
        let available = stock.iter().map(|(id, row)| (id.clone(), row.available)).collect();
        let missing = match fold(events.iter().map(E::borrow), decidable, &available, recorded, now)
        {
            Ok(decisions) => return Ok((decisions, stock)),
            Err(StockNotRead(missing)) => missing,
        };
        let more = read_stock(conn, LOCK_STOCK, &product_ids(&missing)?).await?;
        if more.len() < missing.len() {
            return Err(Corrupt::UnknownProducts(missing).into());
        }
        stock.extend(more);
    }
}

/// The rows of the products that exist. Fails with [`StoreError::Unavailable`] if an id is corrupt:
/// it concerns the orders of several clients, which wait until a person corrects it.
pub(super) async fn read_stock(
    conn: &mut MySqlConnection,
    statement: &'static str,
    keys: &str,
) -> Result<BTreeMap<ProductId, StockRow>, StoreError> {
    let rows = sqlx::query(statement).bind(keys).fetch_all(conn).await?;
    rows.iter()
        .map(|row| {
            let id = ProductId::parse(ascii(row, "product_id")?).map_err(Outage::CorruptProduct)?;
            let (available, version) = (row.try_get("available")?, row.try_get("version")?);
            Ok((id, StockRow { available, version }))
        })
        .collect()
}
