//! The stock as people handle it: read, imported, and restocked.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::{MySqlConnection, Row, mysql::MySqlRow};

use super::{
    StockStore, StoreError,
    database::on_connection,
    movements::{Movement, ProductWrite, Versions},
    rows::{product_id, product_ids, text, wanted_products},
    transaction::transaction,
};
use crate::{
    crash_point::crash_point,
    domain::{MAX_AVAILABLE, ProductId},
};

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
            let found = lock_products(conn, &keys).await?;
            let present: BTreeMap<_, _> = found.iter().map(|p| (&p.product.id, p)).collect();
            let (mut writes, mut movements) = (Vec::new(), Vec::new());
            let mut summary = ImportSummary::default();
            for (id, product) in &wanted {
                let (kind, units, versions) = match present.get(id) {
                    None => ("IMPORT", product.available, Versions::New),
                    Some(before) if before.product == **product => continue,
                    Some(before) => {
                        let units = product.available - before.product.available;
                        ("ADJUST", units, Versions::after(before.version))
                    }
                };
                match versions {
                    Versions::New => summary.added += 1,
                    Versions::Raised { .. } => summary.changed += 1,
                }
                let Product { name, available, .. } = product;
                writes.push(ProductWrite { id, name, available: *available, versions });
                movements.extend((units != 0).then(|| Movement::new(id, kind, units)));
            }
            self.write_changes(conn, &writes, &movements, now).await?;
            crash_point("import.written");
            summary.unchanged = wanted.len() - writes.len();
            Ok(summary)
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
            let found = lock_products(conn, &keys).await?;
            let Some(VersionedProduct { product, version }) = found.first() else {
                return Ok(Restocked::UnknownProduct);
            };
            let after = product.available.checked_add(quantity);
            let Some(available) = after.filter(|after| *after <= MAX_AVAILABLE) else {
                return Ok(Restocked::AboveMax);
            };
            let versions = Versions::after(*version);
            let write = ProductWrite { id, name: &product.name, available, versions };
            let movement = Movement::new(id, "RESTOCK", quantity);
            self.write_changes(conn, &[write], &[movement], now).await?;
            Ok(Restocked::Available(available))
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
        row.as_ref().map(versioned).transpose()
    }

    /// The products among `ids` that exist, with their versions, in the order of their ids.
    pub(super) async fn find_versioned(
        &self,
        ids: BTreeSet<&ProductId>,
    ) -> Result<Vec<VersionedProduct>, StoreError> {
        let query = sqlx::query(READ).bind(product_ids(ids)?);
        let rows = on_connection!(self.db, |conn| query.fetch_all(conn).await)?;
        rows.iter().map(versioned).collect()
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

fn product(row: &MySqlRow) -> Result<Product, StoreError> {
    Ok(Product {
        id: product_id(row)?,
        name: text(row, "name")?,
        available: row.try_get("available")?,
    })
}

fn versioned(row: &MySqlRow) -> Result<VersionedProduct, StoreError> {
    Ok(VersionedProduct { product: product(row)?, version: row.try_get("version")? })
}

/// Reads and locks the products that exist among `keys`, which are sorted.
pub(super) async fn lock_products(
    conn: &mut MySqlConnection,
    keys: &str,
) -> Result<Vec<VersionedProduct>, StoreError> {
    let rows = sqlx::query(LOCK).bind(keys).fetch_all(conn).await?;
    rows.iter().map(versioned).collect()
}
