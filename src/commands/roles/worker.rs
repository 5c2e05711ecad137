use std::sync::Arc;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::{Role, SharedParts, spawn};
use crate::{
    commands::process,
    config::{Config, LockFallback, LockStrategy},
    deduct::Worker,
    kafka::{Consumer, Subscription},
    levels::{Levels, NotePublisher},
    lock::{Lease, Locks},
    retention::PurgedStore,
    store::{StockStore, StoreUse},
    telemetry::Metrics,
    wire::StockLevelCodec,
};

/// Runs a worker until a stop is requested.
pub(super) async fn run(shared: SharedParts) -> anyhow::Result<()> {
    let SharedParts { config, metrics, health, shutdown, .. } = &shared;
    begin_worker_at_zero(config, metrics);
    let store = process::open_stock_store(config, metrics)?;
    store.begin_metrics(StoreUse::Deduct);
    shared.watch_stock_store(Role::Worker, &store);
    let subscription = Subscription {
        group_id: &config.kafka.group_id,
        topic: &config.topics.orders,
        lanes: config.worker.lanes,
    };
    let consumer = Consumer::start(
        &config.kafka,
        &subscription,
        metrics,
        health.register("orders"),
        shutdown.clone(),
    );
    let (consumer, lanes) = consumer.context("cannot open the Kafka client")?;
    let purging = shared.purge(PurgedStore::Stock(store.clone().into()))?;
    let levels = levels(&shared, &store)?;
    let noting = levels.clone().map(|levels| publish_notes(&shared, levels)).transpose()?;
    tracing::info!(
        strategy = config.lock.strategy.as_str(),
        topic = config.topics.orders,
        "deducting stock"
    );
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
            levels: levels.clone(),
            metrics: metrics.clone(),
        };
        let (batches, metrics) = (config.worker.batches, metrics.clone());
        let dead_letters = shared.dead_letters(&config.topics.orders_dlq);
        running
            .spawn(async move { lane.run(worker, dead_letters, batches, &metrics, health).await });
    }
    let deducting = async {
        while let Some(ended) = running.join_next().await {
            ended.context("a lane panicked")?;
        }
        anyhow::Ok(())
    };
    shutdown.finish("batches of orders", deducting).await.transpose()?;
    running.shutdown().await;
    shared.leave("the group of workers", consumer).await?;
    shutdown.finish("retention of stock", purging).await.transpose()?;
    if let Some(noting) = noting {
        shutdown.finish("levels of noted products", noting).await.transpose()?;
    }
    shared.disconnect(&[store.database()]).await;
    Ok(())
}

/// What publishes levels, or `None` if levels are off.
fn levels(shared: &SharedParts, store: &StockStore) -> anyhow::Result<Option<Levels>> {
    let Some(topic) = &shared.config.topics.stock_levels else { return Ok(None) };
    Ok(Some(Levels {
        store: store.clone(),
        producer: shared.producer.clone(),
        topic: topic.as_str().into(),
        codec: Arc::new(StockLevelCodec::new()?),
        metrics: shared.metrics.clone(),
    }))
}

/// Starts to publish the levels of noted products, until the process stops.
fn publish_notes(shared: &SharedParts, levels: Levels) -> anyhow::Result<AbortOnDropHandle<()>> {
    let name = "levels of noted products";
    let lease = Lease::new(&shared.config.lock, &shared.config.redis, name)?;
    let publisher = NotePublisher { levels, lease };
    Ok(spawn(publisher.run(shared.health.register(name), shared.shutdown.clone())))
}

/// Creates the series of a worker at 0, as its lock strategy and its fallback need them.
fn begin_worker_at_zero(config: &Config, metrics: &Metrics) {
    let (row, redlock) = (LockStrategy::Row.as_str(), LockStrategy::Redlock.as_str());
    let (strategies, dependencies): (&[_], &[_]) =
        match (config.lock.strategy, config.lock.fallback) {
            (LockStrategy::Row, _) => (&[row], &["stock_store", "kafka"]),
            (LockStrategy::Redlock, LockFallback::None) => {
                (&[redlock], &["stock_store", "kafka", "redis"])
            }
            (LockStrategy::Redlock, LockFallback::Row) => {
                (&[redlock, row], &["stock_store", "kafka", "redis"])
            }
        };
    metrics.begin_dead_letters(&config.topics.orders);
    metrics.begin_retries(dependencies);
    metrics.begin_decisions(strategies);
}
