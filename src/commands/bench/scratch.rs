//! Databases, topics, groups and lock keys that only one run uses, and that go with it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use chrono::{SubsecRound as _, TimeDelta, Utc};

use super::{super::process, workload::Workload};
use crate::{
    config::{Config, Layers},
    domain::{EventKind, OrderEvent, OrderId, ProductId},
    kafka::{Message, Producer, delete_topics, ensure_topics},
    store::{
        NewOrder, OrderStore, Product, SiblingDatabase, StockStore, migrate_order_store,
        migrate_stock_store,
    },
    telemetry::Metrics,
    wire::OrderEventCodec,
};

const CHUNK: usize = 1_000;
/// Nobody else publishes what is placed here.
const LEASE: Duration = Duration::from_secs(3_600);

pub(super) struct Scratch {
    pub(crate) config: Config,
    layers: Layers,
    databases: [SiblingDatabase; 2],
}

impl Scratch {
    /// Sets up both stores on the configured servers, whose user may create databases, and the topics.
    pub(super) async fn create(
        layers: &Layers,
        settings: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let configured = Config::resolve(layers)?;
        let name = format!("bench_{}", &uuid::Uuid::now_v7().simple().to_string()[20..]);
        let orders = SiblingDatabase::create(
            &configured.order_store.migrate_url,
            &format!("_{name}_orders"),
        )
        .await;
        let stock =
            SiblingDatabase::create(&configured.stock_store.migrate_url, &format!("_{name}_stock"))
                .await;
        let databases =
            [orders.context("a database for orders")?, stock.context("a database for stock")?];
        let [orders_url, stock_url] = databases.each_ref().map(|database| &database.url);
        let topics = &configured.topics;
        let own = [
            ("order_store.url", orders_url.expose().to_owned()),
            ("order_store.migrate_url", orders_url.expose().to_owned()),
            ("stock_store.url", stock_url.expose().to_owned()),
            ("stock_store.migrate_url", stock_url.expose().to_owned()),
            ("lock.prefix", format!("{name}:{}", configured.lock.prefix)),
            ("kafka.group_id", format!("{name}.{}", configured.kafka.group_id)),
            ("compensator.group_id", format!("{name}.{}", configured.compensator.group_id)),
            ("topics.orders", format!("{name}.{}", topics.orders)),
            ("topics.order_status", format!("{name}.{}", topics.order_status)),
            ("topics.orders_dlq", format!("{name}.{}", topics.orders_dlq)),
            ("topics.order_status_dlq", format!("{name}.{}", topics.order_status_dlq)),
        ];
        let layers =
            layers.with(own.iter().chain(settings).map(|(key, value)| (*key, value.clone())));
        migrate_order_store(orders_url).await?;
        migrate_stock_store(stock_url).await?;
        let scratch = Self { config: Config::resolve(&layers)?, layers, databases };
        ensure_topics(&scratch.config.kafka, &scratch.config.topics).await.context("topics")?;
        Ok(scratch)
    }

    /// The settings of a role of this run.
    pub(super) fn environment(&self) -> BTreeMap<String, String> {
        self.layers.environment()
    }

    pub(super) fn stores(&self, metrics: &Metrics) -> anyhow::Result<(OrderStore, StockStore)> {
        Ok((
            process::open_order_store(&self.config, metrics)?,
            process::open_stock_store(&self.config, metrics)?,
        ))
    }

    pub(super) async fn import(
        &self,
        stock: &StockStore,
        units: &BTreeMap<ProductId, i64>,
    ) -> anyhow::Result<()> {
        let products: Vec<_> = units
            .iter()
            .map(|(id, available)| Product {
                id: id.clone(),
                name: id.to_string(),
                available: *available,
            })
            .collect();
        for chunk in products.chunks(CHUNK) {
            stock.import(chunk, Utc::now()).await?;
        }
        Ok(())
    }

    /// Orders that were refused before, one a millisecond until now.
    pub(super) async fn add_history(
        &self,
        orders: &OrderStore,
        stock: &StockStore,
        count: u32,
    ) -> anyhow::Result<()> {
        let now = Utc::now();
        let ids: Vec<_> = (1..=count)
            .rev()
            .map(|age| OrderId::first_of(now - TimeDelta::milliseconds(age.into())))
            .collect();
        for chunk in ids.chunks(10 * CHUNK) {
            let (placed, decided) =
                tokio::join!(orders.add_refused(chunk, now), stock.add_refused(chunk, now));
            placed?;
            decided?;
        }
        Ok(())
    }

    /// Saves the orders as ingest does; none is published.
    pub(super) async fn place(
        &self,
        orders: &OrderStore,
        workload: &Workload,
    ) -> anyhow::Result<Vec<OrderEvent>> {
        let mut events = Vec::with_capacity(workload.orders.len());
        for chunk in workload.orders.chunks(CHUNK) {
            let accepted_at = Utc::now().trunc_subsecs(3);
            let placed: Vec<_> = chunk
                .iter()
                .map(|lines| NewOrder {
                    order_id: OrderId::generate(),
                    reference: None,
                    customer_id: None,
                    lines: lines.clone(),
                    accepted_at,
                })
                .collect();
            orders.place(&placed, LEASE).await?;
            orders
                .forget_published(
                    placed.iter().map(|order| (order.order_id, EventKind::Placed)).collect(),
                )
                .await?;
            events.extend(placed.into_iter().map(|NewOrder { order_id, lines, .. }| OrderEvent {
                order_id,
                kind: EventKind::Placed,
                lines,
                accepted_at,
            }));
        }
        Ok(events)
    }

    /// Puts the events on the topic.
    pub(super) async fn publish(&self, events: &[OrderEvent]) -> anyhow::Result<()> {
        let (producer, codec) = (Producer::new(&self.config.kafka)?, OrderEventCodec::new()?);
        for chunk in events.chunks(CHUNK) {
            let messages =
                chunk.iter().map(|event| Message::of_order(event.order_id, codec.encode(event)));
            producer.produce(&self.config.topics.orders, messages.collect()).await?;
        }
        Ok(())
    }

    /// Removes what was set up.
    pub(super) async fn remove(self) -> anyhow::Result<()> {
        for database in &self.databases {
            database.remove().await?;
        }
        delete_topics(&self.config.kafka, &self.config.topics).await?;
        Ok(())
    }
}
