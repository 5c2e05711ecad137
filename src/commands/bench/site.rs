//! Where a run takes place: two stores, and topics, groups and lock keys that only this run uses.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use chrono::{SubsecRound as _, Utc};

use super::{super::process, workload::Workload};
use crate::{
    config::{Config, IntakeTopic, Layers, TracesSettings},
    domain::{OrderEvent, OrderId, ProductId},
    kafka::{Message, Producer, delete_topics, ensure_topics},
    store::{
        NewOrder, OrderStore, Product, PublishedGroup, StockStore, migrate_order_store,
        migrate_stock_store,
    },
    telemetry::{Metrics, TraceStarter},
    wire::OrderEventCodec,
};

/// Products, orders or messages of a statement or of a request to the broker.
const CHUNK: usize = 1_000;
/// The relay publishes nothing that is placed here: no run takes longer.
const LEASE: Duration = Duration::from_secs(3_600);

/// The configured stores, migrated, and topics of this run alone.
pub struct Site {
    pub config: Config,
    layers: Layers,
    /// The program whose roles run.
    pub(super) binary: PathBuf,
}

impl Site {
    /// Migrates the configured stores and creates topics for one run, with `settings` over
    /// `layers`.
    ///
    /// Fails where the configuration is wrong, or a store or a broker is not reached.
    pub async fn open(
        layers: &Layers,
        settings: &[(&str, String)],
        binary: &Path,
    ) -> anyhow::Result<Self> {
        let configured = Config::resolve(layers)?;
        let name = format!("bench_{}", &uuid::Uuid::now_v7().simple().to_string()[20..]);
        let topics = &configured.topics;
        let mut own = vec![
            ("lock.prefix", format!("{name}:{}", configured.lock.prefix)),
            ("kafka.group_id", format!("{name}.{}", configured.kafka.group_id)),
            ("compensator.group_id", format!("{name}.{}", configured.compensator.group_id)),
            ("ingest.group_id", format!("{name}.{}", configured.ingest.group_id)),
            ("topics.order_requests", format!("{name}.order-requests")),
            ("topics.order_requests_dlq", format!("{name}.order-requests.dlq")),
            ("topics.orders", format!("{name}.{}", topics.orders)),
            ("topics.order_status", format!("{name}.{}", topics.order_status)),
            ("topics.orders_dlq", format!("{name}.{}", topics.orders_dlq)),
            ("topics.order_status_dlq", format!("{name}.{}", topics.order_status_dlq)),
        ];
        // The run deletes its topics. So it must not use the configured ones.
        if let Some(intake) = &topics.stock_adjustments {
            let IntakeTopic { requests, dead_letters } = intake;
            own.push(("topics.stock_adjustments", format!("{name}.{requests}")));
            own.push(("topics.stock_adjustments_dlq", format!("{name}.{dead_letters}")));
        }
        let levels = topics.stock_levels.as_ref();
        own.extend(levels.map(|topic| ("topics.stock_levels", format!("{name}.{topic}"))));
        let layers =
            layers.with(own.iter().chain(settings).map(|(key, value)| (*key, value.clone())));
        let config = Config::resolve(&layers)?;
        migrate_order_store(&config.order_store.migrate_url).await.context("the order store")?;
        migrate_stock_store(&config.stock_store.migrate_url).await.context("the stock store")?;
        ensure_topics(&config.kafka, &config.topics).await.context("topics")?;
        Ok(Self { config, layers, binary: binary.to_owned() })
    }

    /// The settings of a role of this run.
    pub(super) fn environment(&self) -> BTreeMap<String, String> {
        self.layers.environment()
    }

    /// Opens both stores.
    pub fn stores(&self, metrics: &Metrics) -> anyhow::Result<(OrderStore, StockStore)> {
        Ok((
            process::open_order_store(&self.config, metrics)?,
            process::open_stock_store(&self.config, metrics)?,
        ))
    }

    /// Brings the stock to `units`.
    pub async fn import(
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

    /// Saves the orders as ingest does, and publishes none.
    pub async fn place(
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
                    hold_seconds: None,
                    lines: lines.clone(),
                    accepted_at,
                })
                .collect();
            orders.place(&placed, LEASE).await?;
            let published = PublishedGroup::whole(placed.iter().map(|order| order.order_id));
            orders.forget_published(published.into_iter().collect()).await?;
            events.extend(placed.into_iter().map(NewOrder::into_event));
        }
        Ok(events)
    }

    /// Puts the events on the topic. If the environment turns traces on, the messages of sampled
    /// orders name a trace, as those of ingest do.
    pub(super) async fn publish(&self, events: &[OrderEvent]) -> anyhow::Result<()> {
        let (producer, codec) = (Producer::new(&self.config.kafka)?, OrderEventCodec::new()?);
        let TracesSettings { traces, .. } = TracesSettings::of_variables(Layers::variables());
        let traces = TraceStarter::new(traces.as_ref());
        for chunk in events.chunks(CHUNK) {
            let messages = chunk.iter().map(|event| {
                let message = Message::of_order(event.order_id, codec.encode(event));
                message.traced(traces.begin().as_ref())
            });
            producer.produce(&self.config.topics.orders, messages.collect()).await?;
        }
        Ok(())
    }

    /// Deletes the topics of this run. What it wrote to the stores stays.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        delete_topics(&self.config.kafka, &self.config.topics).await?;
        Ok(())
    }
}
