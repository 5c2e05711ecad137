use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row};

use super::{
    Database, StoreError,
    database::transaction,
    outcomes,
    retention::purged_below,
    rows::{ascii, json, product_ids, wanted_products},
};
use crate::{
    crash_point::crash_point,
    domain::{
        EventKind, Horizon, OrderEvent, ProductId,
        fold::{Decisions, StockNotRead, fold},
    },
    telemetry::Metrics,
};

/// The products, the outcomes and the ledger.
#[derive(Debug, Clone)]
pub struct StockStore {
    pub(super) db: Database,
    metrics: Metrics,
    /// How long the ledger keeps outcomes.
    pub(super) horizon: Horizon,
}

/// What keeps a decision from resting on stock that another has changed meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The rows are locked from the reading to the commit.
    RowLocks,
    /// The rows are only read; every product on which a decision rests, a refusal too, must still bear the version read.
    Versions,
}

#[derive(Debug, Clone, Copy)]
struct Stock {
    available: i64,
    version: i64,
}

macro_rules! read_stock {
    ($lock:literal) => {
        concat!(
            "SELECT p.product_id, p.available, p.version FROM ",
            wanted_products!(),
            " STRAIGHT_JOIN products AS p FORCE INDEX (PRIMARY) ON p.product_id = wanted.product_id",
            $lock
        )
    };
}

const READ_STOCK: &str = read_stock!("");
const LOCK_STOCK: &str = read_stock!(" FOR UPDATE");

const WRITE_STOCK: &str = "
    UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
        available  BIGINT PATH '$[1]',
        version    BIGINT PATH '$[2]')) AS decided
    STRAIGHT_JOIN products AS p FORCE INDEX (PRIMARY) ON p.product_id = decided.product_id AND p.version = decided.version
    SET p.available = decided.available, p.version = p.version + 1, p.updated_at = ?";

impl StockStore {
    pub fn new(db: Database, metrics: Metrics, horizon: Horizon) -> Self {
        Self { db, metrics, horizon }
    }

    pub(crate) fn database(&self) -> &Database {
        &self.db
    }

    /// Decides a batch of events in one transaction: stock, outcomes and ledger, all of it or nothing.
    ///
    /// Where a write turns out stale under [`Guard::Versions`], nothing holds, and the batch runs again with its rows locked, so
    /// that no rival can starve it. Orders placed are taken for new at first: where one was decided before, the key of its outcome refuses
    /// a second one, and the batch runs again with a look at what is recorded. Orders beyond the horizon are left alone, and those
    /// whose outcomes may be purged, whatever the clocks say.
    pub async fn decide<E: Borrow<OrderEvent> + Sync>(
        &self,
        events: &[E],
        guard: Guard,
        now: DateTime<Utc>,
    ) -> Result<Decisions, StoreError> {
        self.decide_while(|| true, events, guard, now).await
    }

    /// The same under locks: nothing is committed that they have not outlasted.
    pub(crate) async fn decide_while<E: Borrow<OrderEvent> + Sync>(
        &self,
        is_held: impl Fn() -> bool + Send + Sync,
        events: &[E],
        guard: Guard,
        now: DateTime<Utc>,
    ) -> Result<Decisions, StoreError> {
        let demanded: std::collections::BTreeSet<_> = events
            .iter()
            .map(E::borrow)
            .flat_map(|e| e.lines.as_slice().iter().map(|line| line.product_id().clone()))
            .collect();
        let keys = product_ids(&demanded)?;
        let mut decidable = self.horizon.decidable(now);
        let may_be_new = events.iter().all(|event| event.borrow().kind == EventKind::Placed);
        let mut locked = None;
        let decided = transaction!(self.db, "decide", |conn, attempt| {
            let read =
                if guard == Guard::RowLocks || attempt > 0 { LOCK_STOCK } else { READ_STOCK };
            let locking = Instant::now();
            let mut stock = read_stock(conn, read, &keys).await?;
            locked = Some((locking.elapsed(), Instant::now()));
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
            let decisions = loop {
                let available =
                    stock.iter().map(|(id, stock)| (id.clone(), stock.available)).collect();
                match fold(events.iter().map(E::borrow), &decidable, &available, &recorded) {
                    Ok(decisions) => break decisions,
                    Err(StockNotRead(missing)) => {
                        let more = read_stock(conn, LOCK_STOCK, &product_ids(&missing)?).await?;
                        if more.len() < missing.len() {
                            let text = format!(
                                "the ledger holds units of products that do not exist: {missing:?}"
                            );
                            return Err(StoreError::Damaged(text));
                        }
                        stock.extend(more);
                    }
                }
            };
            self.write_stock(conn, &stock, &decisions, guard, now).await?;
            crash_point("deduct.written");
            outcomes::insert(conn, &decisions.outcomes, now).await?;
            outcomes::release(conn, &decisions.released, now).await?;
            if is_held() { Ok(decisions) } else { Err(StoreError::LocksLost) }
        });
        if let Some((wait, since)) = locked.filter(|_| guard == Guard::RowLocks) {
            self.metrics.lock_wait.with_label_values(&["row"]).observe(wait.as_secs_f64());
            self.metrics
                .lock_hold
                .with_label_values(&["row"])
                .observe(since.elapsed().as_secs_f64());
        }
        decided
    }

    async fn write_stock(
        &self,
        conn: &mut MySqlConnection,
        stock: &BTreeMap<ProductId, Stock>,
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
        Err(StoreError::Conflict(format!(
            "{stale} of {} products were changed meanwhile",
            written.len()
        )))
    }
}

async fn read_stock(
    conn: &mut MySqlConnection,
    statement: &'static str,
    keys: &str,
) -> Result<BTreeMap<ProductId, Stock>, StoreError> {
    let rows = sqlx::query(statement).bind(keys).fetch_all(conn).await?;
    rows.iter()
        .map(|row| {
            // A product is no order's own: whoever wants it waits until it is mended.
            let id = ProductId::parse(ascii(row, "product_id")?).map_err(|damage| {
                StoreError::Unavailable(format!("products.product_id is damaged: {damage}"))
            })?;
            Ok((
                id,
                Stock { available: row.try_get("available")?, version: row.try_get("version")? },
            ))
        })
        .collect()
}
