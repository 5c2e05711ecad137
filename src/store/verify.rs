//! The stores as `stocklock verify` reads them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures::TryStreamExt;
use sqlx::{
    MySqlConnection, Row,
    mysql::{MySqlDatabaseError, MySqlRow},
};
use tokio::time::sleep;

use super::{
    OrderStore, StockStore, StoreError,
    database::on_connection,
    outcomes::{self, outcome},
    retention::purged_below,
    rows::{ascii, order_id, order_ids, parse_json, wanted_orders},
};
use crate::domain::{Lines, OrderId, OrderState, ProductId, fold::Outcome};

/// An order as the order store has it.
#[derive(Debug, Clone)]
pub struct OrderRow {
    pub(crate) status: OrderState,
    pub(crate) lines: Lines,
}

/// What is stored of an order, or what is damaged in it.
pub(crate) type Found<T> = (OrderId, Result<T, String>);

/// The stock store at one instant.
#[derive(Debug, Default)]
pub struct StockSnapshot {
    pub available: BTreeMap<ProductId, i64>,
    /// The sum of what was imported, restocked and adjusted, purged or not.
    pub supplied: BTreeMap<ProductId, i64>,
    /// The sum of what completed orders hold, purged or not.
    pub held: BTreeMap<ProductId, i64>,
    pub outcomes: u64,
    /// Outcomes that cannot be read or should not be there, with what is wrong with them.
    pub damaged: Vec<(OrderId, String)>,
}

const READ_ORDERS: &str = concat!(
    "SELECT o.order_id, o.status, o.`lines` FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id",
);

/// The server's refusal to tell of others' sessions: it takes the privilege PROCESS.
const ACCESS_DENIED: u16 = 1227;

/// MySQL's failure to list transactions, or in `information_schema.processlist` sessions, while any of them runs a statement with a
/// character of four bytes, or with binary parameters: its text does not fit into the list.
const CANNOT_CONVERT: u16 = 3854;

/// How often that is asked again: statements end soon. The server makes the list anew only where nobody has read it for 100 ms.
const ASK_AGAIN: u32 = 60;
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);

const FIND_DECIDED: &str = concat!(
    "SELECT b.order_id, b.outcome = 'COMPLETED' AS holds FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN order_outcomes AS b FORCE INDEX (PRIMARY) ON b.order_id = wanted.order_id",
);

impl OrderStore {
    /// The same as [`StockStore::silent_transactions`], of the order store.
    pub(crate) async fn silent_transactions(
        &self,
        seconds: u32,
    ) -> Result<Option<Vec<(u64, i64)>>, StoreError> {
        on_connection!(self.db, |conn| silent_transactions(conn, seconds).await)
    }
}

impl StockStore {
    /// Sessions of this database that hold a transaction open and have been silent for more than so many seconds, and for how many.
    /// `None` where the user may not see that.
    pub(crate) async fn silent_transactions(
        &self,
        seconds: u32,
    ) -> Result<Option<Vec<(u64, i64)>>, StoreError> {
        on_connection!(self.db, |conn| silent_transactions(conn, seconds).await)
    }
}

/// Whoever is silent for whole seconds after the first statement held the same transaction during it. Sessions are asked for by SHOW, which
/// lists them whatever they run.
async fn silent_transactions(
    conn: &mut MySqlConnection,
    seconds: u32,
) -> Result<Option<Vec<(u64, i64)>>, sqlx::Error> {
    let Some(in_transactions) = in_transactions(conn).await? else { return Ok(None) };
    let mut silent = Vec::new();
    for session in sqlx::raw_sql("SHOW PROCESSLIST").fetch_all(conn).await? {
        let database: Option<String> = session.try_get_unchecked("db")?;
        let id = session.try_get_unchecked("Id")?;
        let since: Option<i64> = session.try_get_unchecked("Time")?;
        let sleeps = session.try_get_unchecked::<String, _>("Command")? == "Sleep";
        let holds_one = in_transactions
            .iter()
            .any(|(ours, holder)| *holder == id && database.as_ref() == Some(ours));
        silent.extend(
            since
                .filter(|since| sleeps && holds_one && *since > i64::from(seconds))
                .map(|since| (id, since)),
        );
    }
    Ok(Some(silent))
}

/// The sessions that have a transaction open; with each the name of our database.
async fn in_transactions(
    conn: &mut MySqlConnection,
) -> Result<Option<Vec<(String, u64)>>, sqlx::Error> {
    let sql = "SELECT DATABASE(), CAST(trx_mysql_thread_id AS UNSIGNED) FROM information_schema.innodb_trx";
    let mut failures = 0;
    loop {
        let failure = match sqlx::query_as(sql).fetch_all(&mut *conn).await {
            Ok(found) => return Ok(Some(found)),
            Err(failure) => failure,
        };
        let error = failure
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
        match error.map(MySqlDatabaseError::number) {
            Some(ACCESS_DENIED) => return Ok(None),
            Some(CANNOT_CONVERT) if failures < ASK_AGAIN => failures += 1,
            _ => return Err(failure),
        }
        sleep(crate::backoff::jittered(ASK_AGAIN_AFTER, 0.5..1.0)).await;
    }
}

impl OrderStore {
    /// Up to `limit` orders after `after`, in the order of their ids.
    pub(crate) async fn page_of_orders(
        &self,
        after: Option<OrderId>,
        limit: u32,
    ) -> Result<Vec<Found<OrderRow>>, StoreError> {
        let sql = "SELECT order_id, status, `lines` FROM orders WHERE order_id > ? ORDER BY order_id LIMIT ?";
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let query = sqlx::query(sql).bind(after).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(|row| found(row, order_row(row))).collect()
    }

    /// Those of the orders that exist.
    pub async fn find_orders(&self, ids: &[OrderId]) -> Result<Vec<Found<OrderRow>>, StoreError> {
        let query = sqlx::query(READ_ORDERS).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(|row| found(row, order_row(row))).collect()
    }
}

fn found<T>(row: &MySqlRow, read: Result<T, StoreError>) -> Result<Found<T>, StoreError> {
    Ok((order_id(row)?, read.map_err(|damage| damage.to_string())))
}

fn order_row(row: &MySqlRow) -> Result<OrderRow, StoreError> {
    Ok(OrderRow {
        status: OrderState::parse(ascii(row, "status")?)?,
        lines: parse_json("orders.lines", ascii(row, "lines")?)?,
    })
}

impl StockStore {
    /// Those of the orders' outcomes that exist.
    pub async fn find_outcomes(
        &self,
        ids: &[OrderId],
    ) -> Result<HashMap<OrderId, Result<Outcome, String>>, StoreError> {
        let query = sqlx::query(outcomes::READ).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(|row| found(row, outcome(row))).collect()
    }

    /// Those of the orders that were decided, and whether each holds stock.
    pub(crate) async fn find_decided(
        &self,
        ids: &[OrderId],
    ) -> Result<HashMap<OrderId, bool>, StoreError> {
        let query = sqlx::query(FIND_DECIDED).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(|row| Ok((order_id(row)?, row.try_get("holds")?))).collect()
    }

    /// Up to `limit` orders that were decided, after `after`, in the order of their ids.
    pub async fn page_of_decided(
        &self,
        after: Option<OrderId>,
        limit: u32,
    ) -> Result<Vec<OrderId>, StoreError> {
        let sql =
            "SELECT order_id FROM order_outcomes WHERE order_id > ? ORDER BY order_id LIMIT ?";
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let query = sqlx::query(sql).bind(after).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(order_id).collect()
    }

    /// Reads the whole store in one consistent snapshot, which takes no locks.
    pub async fn snapshot(&self) -> Result<StockSnapshot, StoreError> {
        let mut in_use = self.db.acquire().await?;
        in_use.without_limit().await?;
        let begin = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
        sqlx::raw_sql(begin).execute(in_use.conn()).await?;
        let snapshot = read_snapshot(in_use.conn()).await?;
        sqlx::raw_sql("COMMIT").execute(in_use.conn()).await?;
        in_use.end(Ok(snapshot))
    }
}

async fn read_snapshot(conn: &mut MySqlConnection) -> Result<StockSnapshot, StoreError> {
    let mut snapshot = StockSnapshot::default();
    let available = "SELECT product_id, available AS n FROM products";
    let supplied = "SELECT product_id, CAST(SUM(quantity) AS SIGNED) AS n FROM stock_movements GROUP BY product_id";
    let (purged_supply, purged_holdings) = (
        "SELECT product_id, supplied AS n FROM ledger_balances",
        "SELECT product_id, held AS n FROM ledger_balances",
    );
    add_sums(conn, available, &mut snapshot.available).await?;
    for supplied in [supplied, purged_supply] {
        add_sums(conn, supplied, &mut snapshot.supplied).await?;
    }
    add_sums(conn, purged_holdings, &mut snapshot.held).await?;
    let purged_below = purged_below(conn).await?;
    let mut rows = sqlx::query("SELECT order_id, outcome, reason, `lines` FROM order_outcomes")
        .fetch(&mut *conn);
    while let Some(row) = rows.try_next().await? {
        snapshot.outcomes += 1;
        let id = order_id(&row)?;
        if id < purged_below {
            snapshot.damaged.push((
                id,
                "was decided although its outcome may have been purged before".to_owned(),
            ));
        }
        match outcome(&row) {
            Ok(Outcome::Completed(demand)) => {
                for (id, quantity) in demand.iter() {
                    *snapshot.held.entry(id.clone()).or_insert(0) += quantity;
                }
            }
            Ok(Outcome::Failed(_) | Outcome::Released(_)) => {}
            Err(error) => snapshot.damaged.push((id, error.to_string())),
        }
    }
    Ok(snapshot)
}

async fn add_sums(
    conn: &mut MySqlConnection,
    sql: &'static str,
    sums: &mut BTreeMap<ProductId, i64>,
) -> Result<(), StoreError> {
    let mut rows = sqlx::query(sql).fetch(conn);
    while let Some(row) = rows.try_next().await? {
        *sums.entry(ProductId::parse(ascii(&row, "product_id")?)?).or_insert(0) +=
            row.try_get::<i64, _>("n")?;
    }
    Ok(())
}
