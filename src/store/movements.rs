//! The one place that writes stock for a cause other than orders, and the ledger of these changes.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{MySqlConnection, Row as _, mysql::MySqlRow};

use super::{
    StockStore, StoreError,
    database::on_connection,
    error::Conflict,
    levels,
    rows::{ascii, expect_rows, json, product_ids, text},
};
use crate::domain::ProductId;

/// What a product's row becomes. The transaction holds the lock of the row.
#[derive(Debug)]
pub(super) struct ProductWrite<'a> {
    pub(super) id: &'a ProductId,
    pub(super) name: &'a str,
    pub(super) available: i64,
    pub(super) versions: Versions,
}

/// The versions of a row that is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Versions {
    /// The row is inserted.
    New,
    /// The row has the first version, and gets the second one.
    Raised { from: i64, to: i64 },
}

/// A row of the ledger: units that no order moved.
#[derive(Debug, Serialize)]
pub(super) struct Movement<'a> {
    pub(super) product_id: &'a str,
    pub(super) kind: &'static str,
    pub(super) quantity: i64,
    pub(super) reason: Option<&'a str>,
    pub(super) reference: Option<&'a str>,
    pub(super) request_id: Option<&'a str>,
}

impl Versions {
    /// Those of a row that was read with this version.
    pub(super) fn after(version: i64) -> Self {
        Self::Raised { from: version, to: version + 1 }
    }
}

impl<'a> Movement<'a> {
    /// A movement that no request asked for.
    pub(super) fn new(product: &'a ProductId, kind: &'static str, quantity: i64) -> Self {
        let product_id = product.as_str();
        Self { product_id, kind, quantity, reason: None, reference: None, request_id: None }
    }
}

/// A movement as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredMovement {
    /// Rises with each movement of a product.
    pub(crate) id: i64,
    pub(crate) kind: String,
    /// Units; negative if stock was removed.
    pub(crate) quantity: i64,
    pub(crate) reason: Option<String>,
    pub(crate) reference: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) created_at: DateTime<Utc>,
}

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
        available  BIGINT PATH '$[2]',
        read_version BIGINT PATH '$[3]',
        new_version  BIGINT PATH '$[4]')) AS written
    STRAIGHT_JOIN products AS p FORCE INDEX (PRIMARY)
        ON p.product_id = written.product_id AND p.version = written.read_version
    SET p.name = written.name, p.available = written.available, p.version = written.new_version,
        p.updated_at = ?";

const BOOK: &str = "
    INSERT INTO stock_movements
        (product_id, kind, quantity, reason, reference, request_id, created_at)
    SELECT product_id, kind, quantity, reason, reference, request_id, ?
    FROM JSON_TABLE(?, '$[*]' COLUMNS (
        product_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PATH '$.product_id',
        kind       VARCHAR(16) CHARACTER SET ascii PATH '$.kind',
        quantity   BIGINT PATH '$.quantity',
        reason     VARCHAR(255) CHARACTER SET utf8mb4 PATH '$.reason',
        reference  VARCHAR(128) CHARACTER SET utf8mb4 PATH '$.reference',
        request_id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin PATH '$.request_id'))
        AS booked";

const LIST: &str = "
    SELECT movement_id, kind, quantity, reason, reference, request_id, created_at
    FROM stock_movements FORCE INDEX (by_product)
    WHERE product_id = ? AND movement_id > ? ORDER BY movement_id LIMIT ?";

/// Inserts rows. The parameters of `statement` are the time and the rows.
///
/// Fails with [`StoreError::Conflict`] if another import inserts one of them, or if the server
/// inserts fewer.
async fn insert<T: Serialize>(
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

impl StockStore {
    /// Writes products and books their movements. Every change of stock that no order makes passes
    /// here: imports, restocks and adjustments. The products must be distinct, and in the order of
    /// their ids. Notes their levels if levels are on.
    ///
    /// Fails with [`StoreError::Conflict`] if a row was inserted meanwhile or has another version
    /// than the one read, and with the errors of a statement.
    pub(super) async fn write_changes(
        &self,
        conn: &mut MySqlConnection,
        products: &[ProductWrite<'_>],
        movements: &[Movement<'_>],
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let (mut inserted, mut updated) = (Vec::new(), Vec::new());
        for ProductWrite { id, name, available, versions } in products {
            match versions {
                Versions::New => inserted.push((id.as_str(), name, available)),
                Versions::Raised { from, to } => {
                    updated.push((id.as_str(), name, available, from, to));
                }
            }
        }
        insert(conn, INSERT, &inserted, now).await?;
        if !updated.is_empty() {
            let written = sqlx::query(UPDATE).bind(json(&updated)?).bind(now).execute(&mut *conn);
            expect_rows("products changed", updated.len(), written.await?.rows_affected())?;
        }
        if self.notes_levels && !products.is_empty() {
            let keys = product_ids(products.iter().map(|product| product.id))?;
            levels::note(conn, &keys).await?;
        }
        insert(conn, BOOK, movements, now).await
    }

    /// Up to `limit` movements of a product after the movement `after`, oldest first. A product has
    /// one movement at a time, so a later page never lacks a movement that was booked before.
    ///
    /// Fails with the errors of a statement.
    pub(crate) async fn list_movements(
        &self,
        product: &ProductId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StoredMovement>, StoreError> {
        let query = sqlx::query(LIST).bind(product.as_str()).bind(after).bind(limit);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(stored_movement).collect()
    }
}

fn stored_movement(row: &MySqlRow) -> Result<StoredMovement, StoreError> {
    Ok(StoredMovement {
        id: row.try_get("movement_id")?,
        kind: ascii(row, "kind")?.to_owned(),
        quantity: row.try_get("quantity")?,
        reason: text(row, "reason")?,
        reference: text(row, "reference")?,
        request_id: text(row, "request_id")?,
        created_at: row.try_get("created_at")?,
    })
}
