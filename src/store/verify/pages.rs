//! The orders and the outcomes of a range of ids, or of a list of ids.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};
use uuid::Uuid;

use crate::{
    domain::{Lines, OrderId, OrderState, fold::Outcome},
    store::{
        OrderStore, OwedRelease, StockStore, StoreError,
        database::on_connection,
        outcomes::outcome,
        releases::owed_release,
        retention::{orders_purged_below, purged_below},
        rows::{ascii, order_id, order_ids, order_state, parse_json, wanted_orders},
    },
};

/// What `verify` compares with an order's outcome.
#[derive(Debug, Clone)]
pub(crate) struct OrderContent {
    pub(crate) state: OrderState,
    pub(crate) lines: Lines,
}

/// The ids after one, up to and including another.
#[derive(Debug, Clone, Copy)]
pub struct IdRange {
    after: [u8; 16],
    to: [u8; 16],
    /// Most rows of a table that are read at once.
    limit: u32,
}

/// What the order store has of some orders, at one instant.
#[derive(Debug)]
pub(crate) struct OrderPage {
    /// Each with its error text if it cannot be read.
    pub(crate) orders: BTreeMap<OrderId, Result<OrderContent, String>>,
    pub(crate) owed: BTreeMap<OrderId, OwedRelease>,
    /// The ends of the open holds.
    pub(crate) holds: BTreeMap<OrderId, DateTime<Utc>>,
    /// Orders below this one are purged, unless retention keeps them.
    pub(crate) purged_below: OrderId,
    /// The last id that was read. `None` if the page has all that was asked for.
    pub(crate) end: Option<OrderId>,
}

/// The outcomes of some orders.
#[derive(Debug)]
pub struct OutcomePage {
    /// Each with its error text if it cannot be read.
    pub(crate) outcomes: BTreeMap<OrderId, Result<Outcome, String>>,
    /// Outcomes of orders below this one are purged. Read after the outcomes: an outcome that was
    /// purged before that is not missing.
    pub(crate) purged_below: OrderId,
    /// As in [`OrderPage`].
    pub(crate) end: Option<OrderId>,
}

/// A statement for a range of ids, and one for a list of ids.
struct Read {
    in_range: &'static str,
    of_ids: &'static str,
}

/// The parameters of a [`Read`].
enum Wanted {
    Range(IdRange),
    Ids(String),
}

/// Reads columns of a table whose primary key is `order_id`, as `o`.
macro_rules! read {
    ($columns:literal, $table:literal) => {
        Read {
            in_range: concat!(
                "SELECT ",
                $columns,
                " FROM ",
                $table,
                " AS o WHERE o.order_id > UNHEX(?) AND o.order_id <= UNHEX(?)
                ORDER BY o.order_id LIMIT ?",
            ),
            of_ids: concat!(
                "SELECT ",
                $columns,
                " FROM ",
                wanted_orders!(),
                " STRAIGHT_JOIN ",
                $table,
                " AS o FORCE INDEX (PRIMARY) ON o.order_id = wanted.order_id",
            ),
        }
    };
}

const ORDERS: Read = read!("o.order_id, o.status, o.`lines`", "orders");
const OWED: Read = read!("o.order_id, o.owed_at, o.sent, o.due_at", "owed_releases");
const HOLDS: Read = read!("o.order_id, o.expires_at", "holds");
const OUTCOMES: Read = read!("o.order_id, o.outcome, o.reason, o.`lines`", "order_outcomes");

/// Only the transaction that follows reads as of one instant. It takes no locks.
const BEGIN_SNAPSHOT: &str = "
    SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
    START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";

impl IdRange {
    /// All ids from `first` on, or all. `limit` bounds the rows of a table.
    pub fn from(first: Option<OrderId>, limit: u32) -> Self {
        // No order has the lowest id of all.
        let before = |id: OrderId| u128::from_be_bytes(*id.as_bytes()).saturating_sub(1);
        Self { after: first.map_or(0, before).to_be_bytes(), to: [0xFF; 16], limit }
    }

    /// The ids of the range after `end`.
    pub(crate) fn after(self, end: OrderId) -> Self {
        Self { after: *end.as_bytes(), ..self }
    }

    /// The ids of the range up to `end`.
    pub(crate) fn up_to(self, end: Option<OrderId>) -> Self {
        Self { to: end.map_or(self.to, |end| *end.as_bytes()), ..self }
    }

    /// The last of the rows if there may be more of them in the range.
    fn end<T>(&self, rows: &BTreeMap<OrderId, T>) -> Option<OrderId> {
        let is_full = u32::try_from(rows.len()).is_ok_and(|count| count >= self.limit);
        rows.keys().next_back().copied().filter(|_| is_full)
    }
}

impl Read {
    async fn fetch(
        &self,
        conn: &mut MySqlConnection,
        wanted: &Wanted,
    ) -> Result<Vec<MySqlRow>, sqlx::Error> {
        match wanted {
            Wanted::Range(IdRange { after, to, limit }) => {
                let query = sqlx::query(self.in_range).bind(hex_of(*after)).bind(hex_of(*to));
                query.bind(limit).fetch_all(conn).await
            }
            Wanted::Ids(ids) => sqlx::query(self.of_ids).bind(ids).fetch_all(conn).await,
        }
    }
}

impl Wanted {
    fn up_to(self, end: Option<OrderId>) -> Self {
        match self {
            Self::Range(range) => Self::Range(range.up_to(end)),
            ids @ Self::Ids(_) => ids,
        }
    }

    fn end<T>(&self, rows: &BTreeMap<OrderId, T>) -> Option<OrderId> {
        match self {
            Self::Range(range) => range.end(rows),
            Self::Ids(_) => None,
        }
    }
}

impl OrderStore {
    /// The first orders of a range, at one instant. The page ends where one of the tables has
    /// `limit` rows.
    pub(crate) async fn page_of_orders(&self, range: IdRange) -> Result<OrderPage, StoreError> {
        self.read_page(Wanted::Range(range)).await
    }

    /// What there is of the orders `ids`, at one instant.
    pub(crate) async fn find_page(&self, ids: &[OrderId]) -> Result<OrderPage, StoreError> {
        self.read_page(Wanted::Ids(order_ids(ids.iter().copied())?)).await
    }

    async fn read_page(&self, wanted: Wanted) -> Result<OrderPage, StoreError> {
        on_connection!(self.db, |conn| {
            sqlx::raw_sql(BEGIN_SNAPSHOT).execute(&mut *conn).await?;
            let page = read_order_page(conn, wanted).await;
            sqlx::raw_sql("ROLLBACK").execute(conn).await?;
            page
        })
    }
}

async fn read_order_page(
    conn: &mut MySqlConnection,
    wanted: Wanted,
) -> Result<OrderPage, StoreError> {
    let orders = by_id(&ORDERS.fetch(conn, &wanted).await?, |row| Ok(order_content(row)))?;
    let mut end = wanted.end(&orders);
    let mut wanted = wanted.up_to(end);
    let owed = by_id(&OWED.fetch(conn, &wanted).await?, owed_release)?;
    end = wanted.end(&owed).or(end);
    wanted = wanted.up_to(end);
    let expires_at = |row: &MySqlRow| Ok(row.try_get("expires_at")?);
    let holds = by_id(&HOLDS.fetch(conn, &wanted).await?, expires_at)?;
    end = wanted.end(&holds).or(end);
    let purged_below = orders_purged_below(conn).await?;
    let mut page = OrderPage { orders, owed, holds, purged_below, end };
    page.cut(end);
    Ok(page)
}

impl OrderPage {
    /// Drops what lies beyond `end`, which becomes the end of the page.
    pub(crate) fn cut(&mut self, end: Option<OrderId>) {
        let Some(last) = end else { return };
        self.end = end;
        self.orders.retain(|id, _| *id <= last);
        self.owed.retain(|id, _| *id <= last);
        self.holds.retain(|id, _| *id <= last);
    }
}

impl StockStore {
    /// The first outcomes of a range, up to `limit` of them.
    pub async fn page_of_outcomes(&self, range: IdRange) -> Result<OutcomePage, StoreError> {
        self.read_outcomes(Wanted::Range(range)).await
    }

    /// The outcomes of the orders `ids`.
    pub(crate) async fn find_outcome_page(
        &self,
        ids: &[OrderId],
    ) -> Result<OutcomePage, StoreError> {
        self.read_outcomes(Wanted::Ids(order_ids(ids.iter().copied())?)).await
    }

    async fn read_outcomes(&self, wanted: Wanted) -> Result<OutcomePage, StoreError> {
        on_connection!(self.db, |conn| {
            let rows = OUTCOMES.fetch(conn, &wanted).await?;
            let purged_below = purged_below(conn).await?;
            let outcomes = by_id(&rows, |row| Ok(outcome(row).map_err(|error| error.to_string())))?;
            let end = wanted.end(&outcomes);
            Ok::<_, StoreError>(OutcomePage { outcomes, purged_below, end })
        })
    }
}

/// A text: MySQL cannot list its sessions while one of them runs a statement with binary
/// parameters.
fn hex_of(bytes: [u8; 16]) -> String {
    Uuid::from_bytes(bytes).simple().to_string()
}

/// Fails if an order's id cannot be read, and with the errors of `read`.
fn by_id<T>(
    rows: &[MySqlRow],
    read: impl Fn(&MySqlRow) -> Result<T, StoreError>,
) -> Result<BTreeMap<OrderId, T>, StoreError> {
    rows.iter().map(|row| Ok((order_id(row)?, read(row)?))).collect()
}

/// Fails with a text that says what is corrupt.
fn order_content(row: &MySqlRow) -> Result<OrderContent, String> {
    let read = || {
        let lines = parse_json("orders.lines", ascii(row, "lines")?)?;
        Ok(OrderContent { state: order_state(row)?, lines })
    };
    read().map_err(|error: StoreError| error.to_string())
}
