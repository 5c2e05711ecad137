//! The long-running roles, each wired from the same parts.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};

use super::{Answer, process};
use crate::{
    compensate::Compensator,
    config::{Config, LockFallback, LockStrategy},
    deduct::Worker,
    http,
    ingest::{self, Api, Catalog, Committer, Desk},
    kafka::{Consumer, DeadLetters, Producer, Subscription},
    lifecycle::Shutdown,
    lock::{Lease, Locks},
    relay::{PendingWatch, Relay},
    retention::{Kept, Retention},
    store::OrderStore,
    telemetry::{Health, Metrics, serve_admin},
    wire::{OrderEventCodec, OrderStatusCodec},
};

#[derive(Debug, Clone, Copy)]
pub enum Role {
    Ingest,
    Worker,
    Compensator,
}

/// What the roles of a process share.
#[derive(Clone)]
struct Shared {
    config: Arc<Config>,
    metrics: Metrics,
    health: Health,
    shutdown: Shutdown,
    producer: Producer,
    events: Arc<OrderEventCodec>,
    statuses: Arc<OrderStatusCodec>,
}

/// Runs roles until SIGTERM or SIGINT, or until one of them fails; then all stop in order.
pub async fn run(config: Config, roles: &[Role]) -> anyhow::Result<Answer> {
    let metrics = process::metrics()?;
    let shared = Shared {
        producer: Producer::new(&config.kafka).context("kafka")?,
        metrics,
        health: Health::default(),
        shutdown: Shutdown::on_signals()?,
        events: Arc::new(OrderEventCodec::new()?),
        statuses: Arc::new(OrderStatusCodec::new()?),
        config: Arc::new(config),
    };
    let admin = listen("admin.listen", shared.config.admin.listen).await?;
    let (health, metrics) = (shared.health.clone(), shared.metrics.clone());
    let mut tasks = JoinSet::new();
    for role in roles {
        match role {
            Role::Ingest => {
                let http = listen("http.listen", shared.config.http.listen).await?;
                tasks.spawn(ingest(shared.clone(), http));
            }
            Role::Worker => drop(tasks.spawn(worker(shared.clone()))),
            Role::Compensator => drop(tasks.spawn(compensator(shared.clone()))),
        }
    }
    let admin_stop = Shutdown::default();
    let admin = tokio::spawn(serve_admin(admin, health, metrics, admin_stop.clone()));
    tracing::info!(?roles, admin = %shared.config.admin.listen, "started");
    let mut failed = None;
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended.context("a role panicked").and_then(|result| result) {
            tracing::error!(%error, "a role failed");
            failed = failed.or(Some(error));
        }
        shared.shutdown.request();
    }
    shared.producer.flush().await;
    admin_stop.request();
    admin.await?;
    failed.map_or(Ok(Answer::Done), Err)
}

async fn listen(key: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{key} = {address}"))
}

impl Shared {
    fn relay(&self, store: OrderStore) -> Relay {
        Relay::new(store, self.producer.clone(), &self.config.topics.orders, Arc::clone(&self.events))
    }

    /// Deletes what is old in a store, until the process stops.
    fn purge(&self, store: Kept) -> anyhow::Result<JoinHandle<()>> {
        let name = match store {
            Kept::Orders(_) => "retention of orders",
            Kept::Stock(_) => "retention of stock",
        };
        let config = &self.config;
        let retention = Retention {
            store,
            ages: config.retention.clone(),
            lease: Lease::new(&config.lock, &config.redis, name)?,
            metrics: self.metrics.clone(),
        };
        Ok(tokio::spawn(retention.run(self.health.register(name), self.shutdown.clone())))
    }

    fn dead_letters(&self, topic: &str) -> DeadLetters {
        DeadLetters::new(self.producer.clone(), topic, &self.metrics)
    }
}

async fn ingest(shared: Shared, listener: TcpListener) -> anyhow::Result<()> {
    let Shared { config, metrics, health, shutdown, .. } = &shared;
    metrics.begin_retries(&["order_store", "kafka"]);
    let orders = process::open_order_store(config, metrics)?;
    let stock = process::open_stock_store(config, metrics)?;
    let relay = shared.relay(orders.clone());
    let (committer, mut committing) = Committer::start(
        orders.clone(),
        relay.clone(),
        (config.ingest.groups, config.ingest.deadline),
        metrics.clone(),
    );
    let desk = Desk::new(orders.clone(), shutdown.clone());
    let relaying = tokio::spawn(relay.clone().run(metrics.clone(), health.register("outbox"), shutdown.clone()));
    let asking = tokio::spawn(desk.clone().run());
    let watch =
        PendingWatch::new(relay.clone(), config.ingest.pending_after, config.retention.horizon, metrics.clone());
    let watching = tokio::spawn(watch.run(health.register("pending orders"), shutdown.clone()));
    let api = Api {
        catalog: Catalog::new(stock.clone()),
        outbox_max: config.ingest.outbox_max,
        max_connections: http::connections_beside(config.order_store.pool_max + config.stock_store.pool_max),
        metrics: metrics.clone(),
        orders: orders.clone(),
        stock: stock.clone(),
        committer,
        desk,
    };
    tracing::info!(address = %config.http.listen, "taking orders");
    ingest::serve(listener, api, shutdown.clone()).await;
    while committing.join_next().await.is_some() {}
    asking.await?;
    relaying.await?;
    watching.await?;
    relay.drain().await;
    orders.database().close().await;
    stock.database().close().await;
    Ok(())
}

async fn worker(shared: Shared) -> anyhow::Result<()> {
    let Shared { config, metrics, health, shutdown, .. } = &shared;
    begin_worker_at_zero(config, metrics);
    let store = process::open_stock_store(config, metrics)?;
    let subscription =
        Subscription { group_id: &config.kafka.group_id, topic: &config.topics.orders, lanes: config.worker.lanes };
    let consumer = Consumer::start(&config.kafka, &subscription, metrics, health.register("orders"), shutdown.clone());
    let (consumer, lanes) = consumer.context("kafka")?;
    let purging = shared.purge(Kept::Stock(store.clone().into()))?;
    tracing::info!(strategy = config.lock.strategy.as_str(), topic = config.topics.orders, "deducting");
    let mut running = JoinSet::new();
    for lane in lanes {
        let health = ["deducting", "reporting outcomes"].map(|step| health.register(step));
        let worker = Worker {
            store: store.clone(),
            locks: Locks::new(&config.lock, &config.redis, metrics)?,
            producer: shared.producer.clone(),
            events: Arc::clone(&shared.events),
            statuses: Arc::clone(&shared.statuses),
            status_topic: config.topics.order_status.as_str().into(),
            metrics: metrics.clone(),
        };
        let (batches, metrics) = (config.worker.batches, metrics.clone());
        let dead_letters = shared.dead_letters(&config.topics.orders_dlq);
        running.spawn(async move { lane.run(worker, dead_letters, batches, &metrics, health).await });
    }
    while let Some(ended) = running.join_next().await {
        ended.context("a lane panicked")?;
    }
    consumer.stopped().await?;
    purging.await?;
    store.database().close().await;
    Ok(())
}

fn begin_worker_at_zero(config: &Config, metrics: &Metrics) {
    let row = LockStrategy::Row.as_str();
    let (strategies, dependencies): (&[_], &[_]) = match (config.lock.strategy, config.lock.fallback) {
        (LockStrategy::Row, _) => (&[row], &["stock_store", "kafka"]),
        (redlock, LockFallback::None) => (&[redlock.as_str()], &["stock_store", "kafka", "redis"]),
        (redlock, LockFallback::Row) => (&[redlock.as_str(), row], &["stock_store", "kafka", "redis"]),
    };
    metrics.begin_dead_letters(&config.topics.orders);
    metrics.begin_retries(dependencies);
    metrics.begin_decisions(strategies);
}

async fn compensator(shared: Shared) -> anyhow::Result<()> {
    let Shared { config, metrics, health, shutdown, .. } = &shared;
    metrics.begin_dead_letters(&config.topics.order_status);
    metrics.begin_retries(&["order_store", "kafka"]);
    let store = process::open_order_store(config, metrics)?;
    let compensator = Compensator {
        relay: shared.relay(store.clone()),
        store: store.clone(),
        statuses: Arc::clone(&shared.statuses),
        horizon: config.retention.horizon,
        metrics: metrics.clone(),
    };
    let subscription =
        Subscription { group_id: &config.compensator.group_id, topic: &config.topics.order_status, lanes: 1 };
    let consumer =
        Consumer::start(&config.kafka, &subscription, metrics, health.register("order-status"), shutdown.clone());
    let (consumer, lanes) = consumer.context("kafka")?;
    let purging = shared.purge(Kept::Orders(store.clone().into()))?;
    tracing::info!(topic = config.topics.order_status, "bringing outcomes back");
    for lane in lanes {
        let health = ["compensating", "setting aside"].map(|step| health.register(step));
        let dead_letters = shared.dead_letters(&config.topics.order_status_dlq);
        lane.run(compensator.clone(), dead_letters, config.compensator.batches, metrics, health).await;
    }
    compensator.relay.drain().await;
    consumer.stopped().await?;
    purging.await?;
    store.database().close().await;
    Ok(())
}
