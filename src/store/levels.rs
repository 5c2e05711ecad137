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

/// A product whose level must be published.
#[derive(Debug, Clone)]
pub(crate) struct LevelNote {
    pub(crate) product_id: ProductId,
    /// Another one for each note of the product. So a publisher deletes no note that it has not
    /// read before it read the product.
    note_id: u64,
}

const NOTE: &str = concat!(
    "INSERT INTO level_notes (product_id, note_id)
     SELECT p.product_id, UUID_SHORT() FROM ",
    wanted_products!(),
    " STRAIGHT_JOIN products AS p FORCE INDEX (PRIMARY) ON p.product_id = wanted.product_id
     ON DUPLICATE KEY UPDATE level_notes.note_id = UUID_SHORT()",
);

const READ_NOTES: &str = concat!(
    "SELECT n.product_id, n.note_id FROM ",
    wanted_products!(),
    " STRAIGHT_JOIN level_notes AS n FORCE INDEX (PRIMARY)
     ON n.product_id = wanted.product_id",
);

/// Leaves a note that another process wrote meanwhile.
const FORGET: &str = "
    DELETE n FROM JSON_TABLE(?, '$[*]' COLUMNS (
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
        note_id    BIGINT UNSIGNED PATH '$[1]')) AS published
    STRAIGHT_JOIN level_notes AS n FORCE INDEX (PRIMARY)
        ON n.product_id = published.product_id AND n.note_id = published.note_id";

/// Notes that the levels of these products must be published. `keys` is the parameter of
/// [`product_ids`], sorted. The caller has written the products in the same transaction.
///
/// Each writer of stock calls it, except a worker that decides orders. That worker publishes the
/// levels itself before it stores an offset.
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

    /// The notes of these products, in the order of their ids.
    pub(crate) async fn read_level_notes(
        &self,
        ids: &[ProductId],
    ) -> Result<Vec<LevelNote>, StoreError> {
        let query = sqlx::query(READ_NOTES).bind(product_ids(ids)?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(level_note).collect()
    }

    /// Up to `limit` notes of products whose ids come after `after`, in the order of their ids.
    pub(crate) async fn list_level_notes(
        &self,
        after: Option<&ProductId>,
        limit: u32,
    ) -> Result<Vec<LevelNote>, StoreError> {
        let sql = "SELECT product_id, note_id FROM level_notes
                   WHERE product_id > ? ORDER BY product_id LIMIT ?";
        let query = sqlx::query(sql).bind(after.map_or("", ProductId::as_str)).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(level_note).collect()
    }

    /// Deletes these notes, unless the products have newer ones.
    ///
    /// Fails with the errors of a transaction.
    pub(crate) async fn forget_level_notes(&self, notes: &[&LevelNote]) -> Result<(), StoreError> {
        let rows: Vec<_> =
            notes.iter().map(|note| (note.product_id.as_str(), note.note_id)).collect();
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

fn level_note(row: &MySqlRow) -> Result<LevelNote, StoreError> {
    Ok(LevelNote { product_id: product_id(row)?, note_id: row.try_get("note_id")? })
}
