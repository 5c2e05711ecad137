//! Databases of a run's own, beside the configured ones, and the orders of the past in them.

use std::path::Path;

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection as _, MySqlConnection, QueryBuilder};
use stocklock::{
    commands::bench::Site,
    config::{Config, Layers, SecretUrl},
    domain::OrderId,
    lifecycle::Shutdown,
};
use url::Url;

/// Rows of an INSERT.
const MAX_ROWS: usize = 10_000;

/// A database that only this run uses.
struct ScratchDatabase {
    url: SecretUrl,
    name: String,
}

impl ScratchDatabase {
    /// Creates a database on the server of `store`, whose name is the store's and `suffix`.
    async fn create(store: &SecretUrl, suffix: &str) -> anyhow::Result<Self> {
        let mut url = Url::parse(store.expose())?;
        let name = format!("{}{suffix}", url.path().trim_start_matches('/'));
        url.set_path(&name);
        run(store, format!("CREATE DATABASE `{name}`")).await?;
        Ok(Self { url: SecretUrl::new(url), name })
    }

    async fn drop(&self) -> anyhow::Result<()> {
        run(&self.url, format!("DROP DATABASE IF EXISTS `{}`", self.name)).await
    }
}

async fn run(server: &SecretUrl, sql: String) -> anyhow::Result<()> {
    let mut conn = MySqlConnection::connect(server.expose()).await?;
    sqlx::raw_sql(&sql).execute(&mut conn).await?;
    conn.close().await?;
    Ok(())
}

/// Does `work` on scratch databases and topics, which are removed however it ends, unless by force.
///
/// The configured users may create and drop databases.
pub(crate) async fn on_scratch<T>(
    layers: &Layers,
    settings: &[(&'static str, String)],
    binary: &Path,
    stop: &Shutdown,
    work: impl AsyncFnOnce(&Site) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let configured = Config::resolve(layers)?;
    let suffix = format!("_bench_{}", &uuid::Uuid::now_v7().simple().to_string()[20..]);
    let orders = &configured.order_store.migrate_url;
    let stock = &configured.stock_store.migrate_url;
    let orders = ScratchDatabase::create(orders, &format!("{suffix}_orders"))
        .await
        .context("a database for orders")?;
    let stock = ScratchDatabase::create(stock, &format!("{suffix}_stock"))
        .await
        .context("a database for stock")?;
    let url = |database: &ScratchDatabase| database.url.expose().to_owned();
    let mut all = vec![
        ("order_store.url", url(&orders)),
        ("order_store.migrate_url", url(&orders)),
        ("stock_store.url", url(&stock)),
        ("stock_store.migrate_url", url(&stock)),
    ];
    all.extend_from_slice(settings);
    let done = match Site::open(layers, &all, binary).await {
        Ok(site) => site.use_for(stop, work).await,
        Err(error) => Err(error),
    };
    orders.drop().await?;
    stock.drop().await?;
    done
}

/// Adds `count` refused orders of the past to both stores, one a millisecond until now.
pub(crate) async fn add_history(site: &Site, count: u32) -> anyhow::Result<()> {
    let now = Utc::now();
    let ids: Vec<_> = (1..=count)
        .rev()
        .map(|age| OrderId::first_of(now - TimeDelta::milliseconds(age.into())))
        .collect();
    let mut orders = MySqlConnection::connect(site.config.order_store.url.expose()).await?;
    let mut stock = MySqlConnection::connect(site.config.stock_store.url.expose()).await?;
    for chunk in ids.chunks(MAX_ROWS) {
        tokio::try_join!(
            add_orders(&mut orders, chunk, now),
            add_outcomes(&mut stock, chunk, now)
        )?;
    }
    Ok(())
}

async fn add_orders(
    conn: &mut MySqlConnection,
    ids: &[OrderId],
    at: DateTime<Utc>,
) -> sqlx::Result<()> {
    let mut insert = QueryBuilder::new(
        "INSERT INTO orders (order_id, status, reason, `lines`, created_at, updated_at) ",
    );
    insert.push_values(ids, |mut row, id| {
        row.push_bind(id.as_bytes().as_slice())
            .push("'FAILED', 'INSUFFICIENT_STOCK', '[[\"sku-1\",1],[\"sku-2\",2]]'")
            .push_bind(at)
            .push_bind(at);
    });
    insert.build().persistent(false).execute(conn).await.map(drop)
}

async fn add_outcomes(
    conn: &mut MySqlConnection,
    ids: &[OrderId],
    at: DateTime<Utc>,
) -> sqlx::Result<()> {
    let mut insert = QueryBuilder::new(
        "INSERT INTO order_outcomes (order_id, outcome, reason, `lines`, decided_at) ",
    );
    insert.push_values(ids, |mut row, id| {
        row.push_bind(id.as_bytes().as_slice())
            .push("'FAILED', 'INSUFFICIENT_STOCK', '[]'")
            .push_bind(at);
    });
    insert.build().persistent(false).execute(conn).await.map(drop)
}
