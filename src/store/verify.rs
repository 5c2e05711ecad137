//! What `stocklock verify` reads of the stores.
//!
//! | file | reads |
//! | --- | --- |
//! | `pages` | orders and outcomes, page by page or by their ids |
//! | `snapshot` | the whole stock store at one instant |
//! | `silent` | open transactions of silent sessions |

mod pages;
mod silent;
mod snapshot;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::Row as _;

pub use pages::IdRange;
pub(crate) use pages::{OrderContent, OrderPage, OutcomePage};
pub(crate) use silent::SilentTransactions;
pub use snapshot::StockSnapshot;
pub(crate) use snapshot::{CorruptOutcome, OutcomeFault, RepeatedAdjustment};

use super::{
    OrderStore, StockStore, StoreError,
    database::on_connection,
    rows::{ascii, hex, order_id, order_ids, wanted_orders},
};
use crate::domain::{OrderId, fold::Outcome};

const FIND_DECIDED: &str = concat!(
    "SELECT b.order_id, b.outcome = 'COMPLETED' AS holds FROM ",
    wanted_orders!(),
    " STRAIGHT_JOIN order_outcomes AS b FORCE INDEX (PRIMARY) ON b.order_id = wanted.order_id",
);

/// The server's estimate. It may be wrong by a half.
const ESTIMATE_ROWS: &str = "
    SELECT CAST(COALESCE(MAX(table_rows), 0) AS SIGNED) AS n FROM information_schema.tables
    WHERE table_schema = DATABASE() AND table_name = ?";

impl OrderStore {
    /// About how many orders there are.
    pub(crate) async fn estimate_orders(&self) -> Result<u64, StoreError> {
        let query = sqlx::query(ESTIMATE_ROWS).bind("orders");
        let row = on_connection!(self.db, |conn| query.fetch_one(conn).await)?;
        Ok(row.try_get::<i64, _>("n")?.unsigned_abs())
    }
}

/// An announcement that no role has published for long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LateAnnouncement {
    pub(crate) order_id: OrderId,
    /// The state that it has to report.
    pub(crate) status: String,
}

impl OrderStore {
    /// Up to `limit` announcements of moves before `before`, of orders from `first` on.
    pub(crate) async fn late_announcements(
        &self,
        before: DateTime<Utc>,
        first: Option<OrderId>,
        limit: u32,
    ) -> Result<Vec<LateAnnouncement>, StoreError> {
        let sql = "SELECT order_id, status FROM announcements
                   WHERE occurred_at < ? AND order_id >= UNHEX(?) LIMIT ?";
        let first = first.map_or_else(String::new, hex);
        let query = sqlx::query(sql).bind(before).bind(first).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        let late = |row| {
            let status = ascii(row, "status")?.to_owned();
            Ok(LateAnnouncement { order_id: order_id(row)?, status })
        };
        rows.iter().map(late).collect()
    }
}

impl StockStore {
    /// About how many outcomes there are.
    pub(crate) async fn estimate_outcomes(&self) -> Result<u64, StoreError> {
        let query = sqlx::query(ESTIMATE_ROWS).bind("order_outcomes");
        let row = on_connection!(self.db, |conn| query.fetch_one(conn).await)?;
        Ok(row.try_get::<i64, _>("n")?.unsigned_abs())
    }

    /// The outcomes of the orders `ids`, each with its error text if it cannot be read.
    pub async fn find_outcomes(
        &self,
        ids: &[OrderId],
    ) -> Result<HashMap<OrderId, Result<Outcome, String>>, StoreError> {
        Ok(self.find_outcome_page(ids).await?.outcomes.into_iter().collect())
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
}
