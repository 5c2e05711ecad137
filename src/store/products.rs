//! The stock as people handle it: read, imported, and restocked.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row};

use super::{
    StockStore, StoreError,
    database::on_connection,
    error::Conflict,
    levels::note,
    rows::{expect_rows, json, product_id, product_ids, text, wanted_products},
    transaction::transaction,
};
use crate::domain::{MAX_AVAILABLE, ProductId};

/// A product, as it is shown, or as an import wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    pub(crate) id: ProductId,
    pub(crate) name: String,
    pub available: i64,
}

/// A product and its version, which rises by one with every write.
#[derive(Debug, Clone)]
pub(crate) struct VersionedProduct {
    pub(crate) product: Product,
    pub(crate) version: i64,
}

/// How many products an import added, changed, and left as they were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ImportSummary {
    pub(crate) added: usize,
    pub(crate) changed: usize,
    pub(crate) unchanged: usize,
}

/// What became of a restock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restocked {
    /// So many units are available now.
    Available(i64),
    UnknownProduct,
    /// More than [`MAX_AVAILABLE`] units would be available, so nothing was changed.
    AboveMax,
}

macro_rules! read_products {
    ($lock:literal) => {
        concat!(
            "SELECT p.product_id, p.name, p.available, p.version FROM ",
            wanted_products!(),
            " STRAIGHT_JOIN products AS p FORCE INDEX (PRIMARY)
            ON p.product_id = wanted.product_id",
            $lock
        )
    };
}

const READ: &str = read_products!("");
const LOCK: &str = read_products!(" FOR UPDATE");

const INSERT: &str = "
    INSERT INTO products (product_id, name, available, updated_at)
    SELECT product_id, name, available, ?
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
        name       VARCHAR(255) CHARACTER SET utf8mb4 PATH '$[1]',
        available  BIGINT PATH '$[2]')) AS imported";

const UPDATE: &str = "
    UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
        name       VARCHAR(255) CHARACTER SET utf8mb4 PATH '$[1]',
        available  BIGINT PATH '$[2]')) AS imported
    STRAIGHT_JOIN products AS p FORCE INDEX (PRIMARY) ON p.product_id = imported.product_id
    SET p.name = imported.name, p.available = imported.available, p.version = p.version + 1,
        p.updated_at = ?";

const BOOK: &str = "
    INSERT INTO stock_movements (product_id, kind, quantity, created_at)
    SELECT product_id, kind, quantity, ?
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$[0]',
        kind       VARCHAR(16) CHARACTER SET ascii PATH '$[1]',
        quantity   BIGINT PATH '$[2]')) AS booked";

impl StockStore {
    /// Gives products these names and quantities, and books the differences as movements, in one
    /// transaction. The products must be distinct.
    ///
    /// Fails with [`StoreError::Refused`] if the server refuses a value, and with the errors of a
    /// transaction.
    pub(crate) async fn import(
        &self,
        products: &[Product],
        now: DateTime<Utc>,
    ) -> Result<ImportSummary, StoreError> {
        let wanted: BTreeMap<_, _> = products.iter().map(|p| (&p.id, p)).collect();
        let keys = product_ids(wanted.keys().copied())?;
        transaction!(self.db, Import, |conn, _| {
            let found = sqlx::query(LOCK).bind(&keys).fetch_all(&mut *conn).await?;
            let found = found.iter().map(product).collect::<Result<Vec<_>, _>>()?;
            let present: BTreeMap<_, _> = found.iter().map(|p| (&p.id, p)).collect();
            let (mut added, mut changed, mut movements) = (Vec::new(), Vec::new(), Vec::new());
            for (id, product) in &wanted {
                let row = (id.as_str(), product.name.as_str(), product.available);
                match present.get(id) {
                    None => {
                        added.push(row);
                        movements.push((id.as_str(), "IMPORT", product.available));
                    }
                    Some(before) if before == product => {}
                    Some(before) => {
                        changed.push(row);
                        movements.push((
                            id.as_str(),
                            "ADJUST",
                            product.available - before.available,
                        ));
                    }
                }
            }
            insert(conn, INSERT, &added, now).await?;
            if !changed.is_empty() {
                let updated =
                    sqlx::query(UPDATE).bind(json(&changed)?).bind(now).execute(&mut *conn).await?;
                expect_rows("products changed", changed.len(), updated.rows_affected())?;
            }
            movements.retain(|(_, _, quantity)| *quantity != 0);
            insert(conn, BOOK, &movements, now).await?;
            note(conn, &keys).await?;
            let unchanged = wanted.len() - added.len() - changed.len();
            Ok(ImportSummary { added: added.len(), changed: changed.len(), unchanged })
        })
    }

    /// Adds units of a product, and books them. The quantity stays within [`MAX_AVAILABLE`]; only
    /// units that failed orders release may raise it above.
    ///
    /// Fails with the errors of a transaction.
    pub(crate) async fn restock(
        &self,
        id: &ProductId,
        quantity: i64,
        now: DateTime<Utc>,
    ) -> Result<Restocked, StoreError> {
        let keys = product_ids([id])?;
        transaction!(self.db, Restock, |conn, _| {
            let Some(row) = sqlx::query(LOCK).bind(&keys).fetch_optional(&mut *conn).await? else {
                return Ok(Restocked::UnknownProduct);
            };
            let before = product(&row)?;
            let after = before.available.checked_add(quantity);
            let Some(after) = after.filter(|after| *after <= MAX_AVAILABLE) else {
                return Ok(Restocked::AboveMax);
            };
            let changed = [(id.as_str(), before.name.as_str(), after)];
            let updated =
                sqlx::query(UPDATE).bind(json(&changed)?).bind(now).execute(&mut *conn).await?;
            expect_rows("products restocked", 1, updated.rows_affected())?;
            insert(conn, BOOK, &[(id.as_str(), "RESTOCK", quantity)], now).await?;
            note(conn, &keys).await?;
            Ok(Restocked::Available(after))
        })
    }

    /// The products among `ids` that exist, in the order of their ids.
    pub async fn find_products(&self, ids: &[ProductId]) -> Result<Vec<Product>, StoreError> {
        let keys = product_ids(ids)?;
        let rows =
            on_connection!(self.db, |conn| sqlx::query(READ).bind(keys).fetch_all(conn).await)?;
        rows.iter().map(product).collect()
    }

    /// One product; `None` if the store does not have it.
    pub(crate) async fn find_product(
        &self,
        id: &ProductId,
    ) -> Result<Option<VersionedProduct>, StoreError> {
        let query = sqlx::query(READ).bind(product_ids([id])?);
        let row = on_connection!(self.db, |conn| query.fetch_optional(conn).await)?;
        let versioned = |row| {
            let product = product(&row)?;
            Ok(VersionedProduct { product, version: row.try_get("version")? })
        };
        row.map(versioned).transpose()
    }

    /// Up to `limit` products whose ids come after `after`, in the order of their ids.
    pub(crate) async fn list_products(
        &self,
        after: Option<&ProductId>,
        limit: u32,
    ) -> Result<Vec<Product>, StoreError> {
        let sql = "SELECT product_id, name, available FROM products
                   WHERE product_id > ? ORDER BY product_id LIMIT ?";
        let query = sqlx::query(sql).bind(after.map_or("", ProductId::as_str)).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(product).collect()
    }
}

fn product(row: &sqlx::mysql::MySqlRow) -> Result<Product, StoreError> {
    Ok(Product {
        id: product_id(row)?,
        name: text(row, "name")?,
        available: row.try_get("available")?,
    })
}

/// Inserts rows. The parameters of `statement` are the time and the rows.
///
/// Fails with [`StoreError::Conflict`] if another import inserts one of them, or if the server
/// inserts fewer.
async fn insert<T: serde::Serialize>(
    conn: &mut MySqlConnection,
    statement: &'static str,
    rows: &[T],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let inserted = sqlx::query(statement).bind(now).bind(json(rows)?).execute(conn).await;
    let inserted =
        inserted.map_err(|error| StoreError::from(error).duplicate_as(Conflict::Imported))?;
    expect_rows("rows inserted", rows.len(), inserted.rows_affected())
}
