//! Opens the parts that several commands need: stores, metrics, codecs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;

use crate::{
    config::{Config, SchemaSource},
    registry::{OwnIdError, RegistryClient, find_own_ids, with_attempts},
    store::{Database, OrderStore, StockStore, StoreName},
    telemetry::Metrics,
    wire::{
        OrderEventCodec, OrderRequestCodec, OrderStatusCodec, RegisteredSchemas,
        StockAdjustmentCodec, WriterSchema, check_readable, check_writer_schemas,
    },
};

pub(super) fn metrics() -> anyhow::Result<Metrics> {
    Metrics::new().context("cannot make the metrics")
}

/// Opens the order store. No session keeps a row locked for longer than the lock TTL: the server
/// ends a session that is silent for longer, and an attempt that takes longer is given up and
/// killed in the server.
pub(super) fn open_order_store(config: &Config, metrics: &Metrics) -> anyhow::Result<OrderStore> {
    let database = Database::open(
        &config.order_store,
        StoreName::OrderStore,
        config.lock.ttl,
        metrics.clone(),
    );
    Ok(OrderStore::new(database.context("order_store.url")?))
}

/// Opens the stock store, with the same limit as the order store.
pub(super) fn open_stock_store(config: &Config, metrics: &Metrics) -> anyhow::Result<StockStore> {
    let database = Database::open(
        &config.stock_store,
        StoreName::StockStore,
        config.lock.ttl,
        metrics.clone(),
    );
    let (database, horizon) = (database.context("stock_store.url")?, config.retention.horizon);
    let store = StockStore::new(database, metrics.clone(), horizon);
    Ok(store.noting_levels(config.topics.stock_levels.is_some()))
}

/// The schema registry, and what the process knows of it.
#[derive(Clone)]
pub(super) struct SchemaRegistry {
    pub(super) client: RegistryClient,
    pub(super) schemas: Arc<RegisteredSchemas>,
}

impl SchemaRegistry {
    /// `None` if no registry is configured. Does not connect.
    pub(super) fn open(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(registry) = &config.schema_registry else { return Ok(None) };
        let client = RegistryClient::new(registry).context("schema_registry.url")?;
        Ok(Some(Self { client, schemas: RegisteredSchemas::new(&config.topics) }))
    }

    /// The same for a command that ends by itself: asks for the ids of the own schemas. Fails if
    /// the registry does not answer, or does not have them.
    pub(super) async fn open_for_command(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(opened) = Self::open(config)? else { return Ok(None) };
        let url = config.schema_registry.as_ref().map_or("", |registry| &registry.url);
        let ask = async || find_own_ids(&opened.client, &opened.schemas).await;
        let found = with_attempts(ask, OwnIdError::is_transient).await;
        found.with_context(|| format!("schema registry, {url}"))?;
        Ok(Some(opened))
    }
}

/// The codecs of the topics.
pub(super) struct Codecs {
    pub(super) events: OrderEventCodec,
    pub(super) statuses: OrderStatusCodec,
    pub(super) adjustments: StockAdjustmentCodec,
    pub(super) requests: OrderRequestCodec,
}

impl Codecs {
    /// Opens codecs that also read values with the schemas of `topics.writer_schemas` and of the
    /// registry. Fails if a file cannot be read, or if its schema cannot be resolved.
    pub(super) fn open(config: &Config, registry: Option<&SchemaRegistry>) -> anyhow::Result<Self> {
        let writers =
            writer_schemas(&config.topics.writer_schemas).context("topics.writer_schemas")?;
        check_writer_schemas(&writers).context("topics.writer_schemas")?;
        check_readable(&config.topics, registry.is_some()).map_err(anyhow::Error::msg)?;
        let schemas = registry.map(|registry| &registry.schemas);
        Ok(Self {
            events: OrderEventCodec::reading(&writers)?.on(&config.topics, schemas),
            statuses: OrderStatusCodec::reading(&writers)?.on(&config.topics, schemas),
            adjustments: StockAdjustmentCodec::reading(&writers)?.on(&config.topics, schemas),
            requests: OrderRequestCodec::reading(&writers)?.on(&config.topics, schemas),
        })
    }
}

fn writer_schemas(sources: &[SchemaSource]) -> anyhow::Result<Vec<WriterSchema>> {
    let mut writers = Vec::new();
    for SchemaSource { path, registered_id } in sources {
        let files = if path.is_dir() && registered_id.is_none() {
            schema_files(path)?
        } else {
            vec![path.clone()]
        };
        for file in files {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(&file).with_context(|| name.clone())?;
            writers.push(WriterSchema::parse(&name, *registered_id, &text)?);
        }
    }
    Ok(writers)
}

/// The `.avsc` files of a folder, sorted by name.
fn schema_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    let mut paths = paths.collect::<std::io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "avsc"));
    paths.sort();
    Ok(paths)
}
