//! Statements that `stocklock bench` alone needs of the stores.

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use hdrhistogram::Histogram;
use sqlx::{Connection, MySqlConnection, Row as _};
use url::Url;

use super::{
    OrderStore, StockStore, StoreError,
    rows::{expect_rows, order_ids, wanted_orders},
    transaction::transaction,
};
use crate::{config::SecretUrl, domain::OrderId};

/// A database beside a store's own, on the same server.
pub(crate) struct SiblingDatabase {
    pub(crate) url: SecretUrl,
    name: String,
}

impl SiblingDatabase {
    /// Creates a database whose name is that of the store's database and `suffix`.
    ///
    /// Fails with [`StoreError::Unavailable`] if the URL cannot be parsed, and with the error of
    /// the statement.
    pub(crate) async fn create(store: &SecretUrl, suffix: &str) -> Result<Self, StoreError> {
        let mut url =
            Url::parse(store.expose()).map_err(|error| sqlx::Error::Configuration(error.into()))?;
        let name = format!("{}{suffix}", url.path().trim_start_matches('/'));
        url.set_path(&name);
        run(store, format!("CREATE DATABASE `{name}`")).await?;
        Ok(Self { url: SecretUrl::new(url), name })
    }

    /// Removes the database and all that is in it.
    pub(crate) async fn remove(&self) -> Result<(), StoreError> {
        run(&self.url, format!("DROP DATABASE IF EXISTS `{}`", self.name)).await
    }
}

async fn run(server: &SecretUrl, sql: String) -> Result<(), StoreError> {
    let mut conn = MySqlConnection::connect(server.expose()).await?;
    sqlx::raw_sql(&sql).execute(&mut conn).await?;
    conn.close().await?;
    Ok(())
}

/// A day. An order that took longer counts as a day.
const MAX_SETTLE_MICROS: u64 = 86_400_000_000;

const ADD_ORDERS: &str = concat!(
    "INSERT INTO orders (order_id, status, reason, `lines`, created_at, updated_at)
    SELECT order_id, 'FAILED', 'INSUFFICIENT_STOCK', '[[\"sku-1\",1],[\"sku-2\",2]]', ?, ? FROM ",
    wanted_orders!(),
);

const ADD_OUTCOMES: &str = concat!(
    "INSERT INTO order_outcomes (order_id, outcome, reason, `lines`, decided_at)
    SELECT order_id, 'FAILED', 'INSUFFICIENT_STOCK', '[]', ? FROM ",
    wanted_orders!(),
);

impl OrderStore {
    /// Adds orders that were refused at `at`. [`StockStore::add_refused`] adds their outcomes.
    pub(crate) async fn add_refused(
        &self,
        ids: &[OrderId],
        at: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let hex = order_ids(ids.iter().copied())?;
        transaction!(self.db, AddHistory, |conn, _| {
            let added = sqlx::query(ADD_ORDERS).bind(at).bind(at).bind(&hex).execute(conn).await?;
            expect_rows("orders added", ids.len(), added.rows_affected())
        })
    }

    /// The time of each order from `first` on, from its acceptance to its last change, in
    /// microseconds.
    pub(crate) async fn settle_times(&self, first: OrderId) -> Result<Histogram<u64>, StoreError> {
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
    /// Adds the outcomes of orders that were refused at `at`.
    pub(crate) async fn add_refused(
        &self,
        ids: &[OrderId],
        at: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let hex = order_ids(ids.iter().copied())?;
        transaction!(self.db, AddHistory, |conn, _| {
            let added = sqlx::query(ADD_OUTCOMES).bind(at).bind(&hex).execute(conn).await?;
            expect_rows("outcomes added", ids.len(), added.rows_affected())
        })
    }
}
