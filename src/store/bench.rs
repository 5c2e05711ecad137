//! Statements that `stocklock bench` alone needs of the stores.

use futures::TryStreamExt as _;
use hdrhistogram::Histogram;
use sqlx::Row as _;

use super::{Database, OrderStore, StockStore, StoreError, database::on_connection};
use crate::domain::OrderId;

/// The longest time that is measured: a day. Longer ones count as a day.
const MAX_SETTLE_MICROS: u64 = 86_400_000_000;

impl OrderStore {
    pub(crate) async fn has_orders(&self) -> Result<bool, StoreError> {
        has_rows(&self.db, "orders", "SELECT EXISTS (SELECT 1 FROM orders)").await
    }

    pub(crate) async fn has_pending_orders(&self) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM orders WHERE status = 'PENDING')";
        has_rows(&self.db, "orders", sql).await
    }

    /// The time of each order from `first` on, from its acceptance to its last change, in
    /// microseconds.
    pub async fn settle_times(&self, first: OrderId) -> Result<Histogram<u64>, StoreError> {
        let mut histogram = Histogram::new_with_max(MAX_SETTLE_MICROS, 3)
            .map_err(|error| sqlx::Error::Configuration(error.into()))?;
        let mut in_use = self.db.acquire().await?;
        in_use.without_limit().await?;
        let sql = "SELECT TIMESTAMPDIFF(MICROSECOND, created_at, updated_at) AS micros
                   FROM orders WHERE order_id >= ?";
        let mut rows = sqlx::query(sql).bind(first.as_bytes().as_slice()).fetch(in_use.conn());
        while let Some(row) = rows.try_next().await? {
            let micros: i64 = row.try_get("micros")?;
            histogram.saturating_record(micros.max(0).unsigned_abs());
        }
        drop(rows);
        in_use.end(Ok(histogram))
    }
}

impl StockStore {
    pub(crate) async fn has_products(&self) -> Result<bool, StoreError> {
        has_rows(&self.db, "products", "SELECT EXISTS (SELECT 1 FROM products)").await
    }
}

/// Whether the query finds a row. A table that does not exist yet has none.
async fn has_rows(db: &Database, table: &str, sql: &str) -> Result<bool, StoreError> {
    let exists = "SELECT EXISTS (SELECT 1 FROM information_schema.tables
                  WHERE table_schema = DATABASE() AND table_name = ?)";
    on_connection!(db, |conn| {
        let query = sqlx::query_scalar::<_, i64>(exists).bind(table);
        if query.fetch_one(&mut *conn).await? == 0 {
            return Ok(false);
        }
        sqlx::query_scalar::<_, i64>(sql).fetch_one(conn).await.map(|found| found == 1)
    })
}
