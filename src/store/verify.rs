//! What `stocklock verify` reads of the stores.

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
    error::raised_by_server,
    outcomes::{self, outcome},
    retention::purged_below,
    rows::{ascii, order_id, order_ids, order_state, parse_json, product_id, wanted_orders},
};
use crate::backoff::jittered;
use crate::domain::{Lines, OrderId, OrderState, ProductId, fold::Outcome};

/// An order of the order store, as far as its row can be read.
#[derive(Debug, Clone)]
pub struct FoundOrder {
    pub order_id: OrderId,
    /// `Err` has a text that says what is corrupt.
    pub(crate) content: Result<OrderContent, String>,
}

/// What `verify` compares with an order's outcome.
#[derive(Debug, Clone)]
pub(crate) struct OrderContent {
    pub(crate) state: OrderState,
    pub(crate) lines: Lines,
}

/// A session that holds a transaction open and sends nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SilentTransaction {
    /// The number of the session in the server.
    pub(crate) session: u64,
    pub(crate) silent_seconds: i64,
}

/// The silent transactions of a database, unless the user may not see them.
#[derive(Debug)]
pub(crate) enum SilentTransactions {
    Listed(Vec<SilentTransaction>),
    /// The user of the store lacks the privilege PROCESS.
    Forbidden,
}

/// An outcome that cannot be read, or should not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorruptOutcome {
    pub(crate) order_id: OrderId,
    /// What is wrong with it.
    pub(crate) detail: String,
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
    pub corrupt: Vec<CorruptOutcome>,
}

const READ_ORDERS: &str = concat!(
    "SELECT o.order_id, o.status, o.`lines` FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id",
);

/// The server does not show the sessions of other users without the privilege PROCESS.
const ACCESS_DENIED: u16 = 1227;

/// MySQL fails to list transactions while one of them runs a statement with a character of four
/// bytes or with binary parameters, whose text does not fit into the list. The same holds for the
/// sessions in `information_schema.processlist`.
const CANNOT_CONVERT: u16 = 3854;

/// How often the list is asked for again after [`CANNOT_CONVERT`], since statements end soon. The
/// server makes a new list only if nobody has read the old one for 100 ms.
const MAX_LIST_RETRIES: u32 = 60;
const LIST_RETRY_DELAY: Duration = Duration::from_millis(250);

const FIND_DECIDED: &str = concat!(
    "SELECT b.order_id, b.outcome = 'COMPLETED' AS holds FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN order_outcomes AS b FORCE INDEX (PRIMARY) ON b.order_id = wanted.order_id",
);

impl OrderStore {
    /// [`StockStore::silent_transactions`] of the order store.
    pub(crate) async fn silent_transactions(
        &self,
        seconds: u32,
    ) -> Result<SilentTransactions, StoreError> {
        on_connection!(self.db, |conn| silent_transactions(conn, seconds).await)
    }
}

impl StockStore {
    /// The sessions of this database that hold a transaction open and have been silent for more
    /// than `seconds`.
    pub(crate) async fn silent_transactions(
        &self,
        seconds: u32,
    ) -> Result<SilentTransactions, StoreError> {
        on_connection!(self.db, |conn| silent_transactions(conn, seconds).await)
    }
}

/// The first statement lists the open transactions, and the second one the sessions. If a session
/// is silent for whole seconds at the second statement, it held the same transaction at the first
/// one. SHOW lists a session whatever statement runs in it.
async fn silent_transactions(
    conn: &mut MySqlConnection,
    seconds: u32,
) -> Result<SilentTransactions, sqlx::Error> {
    let Some(transactions) = open_transactions(conn).await? else {
        return Ok(SilentTransactions::Forbidden);
    };
    let mut silent = Vec::new();
    for session in sqlx::raw_sql("SHOW PROCESSLIST").fetch_all(conn).await? {
        let database: Option<String> = session.try_get_unchecked("db")?;
        let session_id = session.try_get_unchecked("Id")?;
        let silent_seconds: Option<i64> = session.try_get_unchecked("Time")?;
        let is_silent = session.try_get_unchecked::<String, _>("Command")? == "Sleep";
        let holds_one = transactions
            .iter()
            .any(|open| open.session == session_id && database.as_ref() == Some(&open.database));
        let is_too_long = |silent: &i64| is_silent && holds_one && *silent > i64::from(seconds);
        silent.extend(
            silent_seconds
                .filter(is_too_long)
                .map(|silent_seconds| SilentTransaction { session: session_id, silent_seconds }),
        );
    }
    Ok(SilentTransactions::Listed(silent))
}

/// A transaction that a session of the server holds open.
#[derive(sqlx::FromRow)]
struct OpenTransaction {
    /// The database of this connection, not of the session.
    database: String,
    session: u64,
}

/// All open transactions. `None` if the user may not see them.
async fn open_transactions(
    conn: &mut MySqlConnection,
) -> Result<Option<Vec<OpenTransaction>>, sqlx::Error> {
    let sql = "SELECT DATABASE() AS `database`, CAST(trx_mysql_thread_id AS UNSIGNED) AS session
               FROM information_schema.innodb_trx";
    let mut failures = 0;
    loop {
        let failure = match sqlx::query_as(sql).fetch_all(&mut *conn).await {
            Ok(found) => return Ok(Some(found)),
            Err(failure) => failure,
        };
        match raised_by_server(&failure).map(MySqlDatabaseError::number) {
            Some(ACCESS_DENIED) => return Ok(None),
            Some(CANNOT_CONVERT) if failures < MAX_LIST_RETRIES => failures += 1,
            _ => return Err(failure),
        }
        sleep(jittered(LIST_RETRY_DELAY, 0.5..1.0)).await;
    }
}

impl OrderStore {
    /// Up to `limit` orders after `after`, in the order of their ids.
    pub(crate) async fn page_of_orders(
        &self,
        after: Option<OrderId>,
        limit: u32,
    ) -> Result<Vec<FoundOrder>, StoreError> {
        let sql = "SELECT order_id, status, `lines` FROM orders
                   WHERE order_id > ? ORDER BY order_id LIMIT ?";
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let query = sqlx::query(sql).bind(after).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(found_order).collect()
    }

    /// The orders among `ids` that exist.
    pub async fn find_orders(&self, ids: &[OrderId]) -> Result<Vec<FoundOrder>, StoreError> {
        let query = sqlx::query(READ_ORDERS).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(found_order).collect()
    }
}

/// Fails only if the order's id cannot be read.
fn found_order(row: &MySqlRow) -> Result<FoundOrder, StoreError> {
    let content = order_content(row).map_err(|error| error.to_string());
    Ok(FoundOrder { order_id: order_id(row)?, content })
}

fn order_content(row: &MySqlRow) -> Result<OrderContent, StoreError> {
    let lines = parse_json("orders.lines", ascii(row, "lines")?)?;
    Ok(OrderContent { state: order_state(row)?, lines })
}

impl StockStore {
    /// The outcomes of the orders `ids`, each with its error text if it cannot be read.
    pub async fn find_outcomes(
        &self,
        ids: &[OrderId],
    ) -> Result<HashMap<OrderId, Result<Outcome, String>>, StoreError> {
        let query = sqlx::query(outcomes::READ).bind(order_ids(ids.iter().copied())?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        let found = |row| Ok((order_id(row)?, outcome(row).map_err(|error| error.to_string())));
        rows.iter().map(found).collect()
    }

    /// The orders among `ids` that were decided, and whether each holds stock.
    pub(crate) async fn find_holdings(
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

    /// Reads the whole store in one consistent snapshot, which takes no locks and has no time
    /// limit.
    pub async fn snapshot(&self) -> Result<StockSnapshot, StoreError> {
        let mut in_use = self.db.acquire().await?;
        in_use.without_limit().await?;
        let begin = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
                     START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
        sqlx::raw_sql(begin).execute(in_use.conn()).await?;
        let snapshot = read_snapshot(in_use.conn()).await?;
        sqlx::raw_sql("COMMIT").execute(in_use.conn()).await?;
        in_use.end(Ok(snapshot))
    }
}

async fn read_snapshot(conn: &mut MySqlConnection) -> Result<StockSnapshot, StoreError> {
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
    let purged_below = purged_below(conn).await?;
    let mut rows = sqlx::query("SELECT order_id, outcome, reason, `lines` FROM order_outcomes")
        .fetch(&mut *conn);
    while let Some(row) = rows.try_next().await? {
        snapshot.outcomes += 1;
        let id = order_id(&row)?;
        if id < purged_below {
            let detail = "was decided although its outcome may have been purged before".to_owned();
            snapshot.corrupt.push(CorruptOutcome { order_id: id, detail });
        }
        match outcome(&row) {
            Ok(Outcome::Completed(demand)) => {
                for (id, quantity) in demand.iter() {
                    *snapshot.held.entry(id.clone()).or_insert(0) += quantity;
                }
            }
            Ok(Outcome::Failed(_) | Outcome::Released(_)) => {}
            Err(error) => {
                let detail = error.to_string();
                snapshot.corrupt.push(CorruptOutcome { order_id: id, detail });
            }
        }
    }
    Ok(snapshot)
}

/// Adds the sum `n` of each row to that of its product.
async fn add_sums(
    conn: &mut MySqlConnection,
    sql: &'static str,
    sums: &mut BTreeMap<ProductId, i64>,
) -> Result<(), StoreError> {
    let mut rows = sqlx::query(sql).fetch(conn);
    while let Some(row) = rows.try_next().await? {
        *sums.entry(product_id(&row)?).or_insert(0) += row.try_get::<i64, _>("n")?;
    }
    Ok(())
}
