//! The levels of products, as they are published, and the notes of levels that are not yet.

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};

use super::{
    StockStore, StoreError,
    database::on_connection,
    rows::{json, product_id, product_ids, wanted_products},
    stock::{READ_STOCK, read_stock},
    transaction::transaction,
};
use crate::domain::{ProductId, StockLevel};

/// Reads the versions in the transaction that wrote them. A note never falls to an older version.
const NOTE: &str = concat!(
    "INSERT INTO level_notes (product_id, version)
     SELECT p.product_id, p.version FROM ",
    wanted_products!(),
    " STRAIGHT_JOIN products AS p FORCE INDEX (PRIMARY) ON p.product_id = wanted.product_id
     ON DUPLICATE KEY UPDATE level_notes.version = GREATEST(level_notes.version, p.version)",
);

/// Leaves a note of a later version.
const FORGET: &str = "
    DELETE n FROM JSON_TABLE(?, '$[*]' COLUMNS (
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
        version    BIGINT PATH '$[1]')) AS published
    STRAIGHT_JOIN level_notes AS n FORCE INDEX (PRIMARY)
        ON n.product_id = published.product_id AND n.version <= published.version";

/// Notes that the levels of these products must be published. `keys` is the parameter of
/// [`product_ids`], sorted. The caller has written the products in the same transaction.
///
/// Each writer of stock but the worker calls it, also where levels are off: then it costs one row a
/// product, and turning levels on publishes them.
pub(super) async fn note(conn: &mut MySqlConnection, keys: &str) -> Result<(), StoreError> {
    sqlx::query(NOTE).bind(keys).execute(conn).await?;
    Ok(())
}

impl StockStore {
    /// The present levels of the products that exist, in the order of `ids`.
    ///
    /// Fails with [`StoreError::Unavailable`].
    pub(crate) async fn read_levels(
        &self,
        ids: &[ProductId],
        now: DateTime<Utc>,
    ) -> Result<Vec<StockLevel>, StoreError> {
        let keys = product_ids(ids)?;
        let stock = on_connection!(self.db, |conn| read_stock(conn, READ_STOCK, &keys).await)?;
        let level = |(product_id, row): (ProductId, super::stock::StockRow)| StockLevel {
            product_id,
            available: row.available,
            version: row.version,
            as_of: now,
        };
        Ok(stock.into_iter().map(level).collect())
    }

    /// Notes that the levels of these products must be published. The ids are sorted.
    ///
    /// Fails with the errors of a transaction.
    pub(crate) async fn note_levels(&self, ids: &[ProductId]) -> Result<(), StoreError> {
        let keys = product_ids(ids)?;
        transaction!(self.db, NoteLevels, |conn, _| note(conn, &keys).await)
    }

    /// Up to `limit` products that have a note and whose ids come after `after`, in the order of
    /// their ids.
    pub(crate) async fn noted_products(
        &self,
        after: Option<&ProductId>,
        limit: u32,
    ) -> Result<Vec<ProductId>, StoreError> {
        let sql = "SELECT product_id FROM level_notes
                   WHERE product_id > ? ORDER BY product_id LIMIT ?";
        let query = sqlx::query(sql).bind(after.map_or("", ProductId::as_str)).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(product_id).collect()
    }

    /// Deletes the notes that ask for none but these levels. The broker has acknowledged them.
    ///
    /// Fails with the errors of a transaction.
    pub(crate) async fn forget_level_notes(
        &self,
        published: &[(&ProductId, i64)],
    ) -> Result<(), StoreError> {
        let rows: Vec<_> = published.iter().map(|(id, version)| (id.as_str(), version)).collect();
        let rows = json(&rows)?;
        transaction!(self.db, ForgetLevelNotes, |conn, _| {
            sqlx::query(FORGET).bind(&rows).execute(conn).await?;
            Ok(())
        })
    }

    /// The number of notes. Reads all of them: one a product at most.
    pub(crate) async fn count_level_notes(&self) -> Result<i64, StoreError> {
        self.count("SELECT COUNT(*) AS rows_found FROM level_notes").await
    }

    /// The number of products. Reads all of their keys.
    pub(crate) async fn count_products(&self) -> Result<i64, StoreError> {
        self.count("SELECT COUNT(*) AS rows_found FROM products").await
    }

    async fn count(&self, sql: &'static str) -> Result<i64, StoreError> {
        let row: MySqlRow = on_connection!(self.db, |conn| sqlx::query(sql).fetch_one(conn).await)?;
        Ok(row.try_get("rows_found")?)
    }
}
