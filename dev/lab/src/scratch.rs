//! Databases of a run's own, beside the configured ones.

use std::path::Path;

use anyhow::Context as _;
use sqlx::{Connection as _, MySqlConnection};
use stocklock::{
    commands::bench::Site,
    config::{Config, Layers, SecretUrl},
    lifecycle::Shutdown,
};
use url::Url;

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
