use std::sync::Arc;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::{Role, SharedParts, spawn};
use crate::{
    commands::process,
    config::{Config, LockFallback, LockStrategy},
    deduct::{Adjuster, Worker},
    kafka::{Consumer, Lane, Subscription},
    levels::{Levels, NotePublisher},
    lock::{Lease, Locks},
    retention::PurgedStore,
    store::{StockStore, StoreUse},
    telemetry::{ConsumerTraces, Metrics},
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
    let traces = ConsumerTraces::new(&shared.traces, &config.topics.orders, &config.kafka.group_id);
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
            traces: traces.clone(),
        };
        let (batches, metrics) = (config.worker.batches, metrics.clone());
        let dead_letters = shared.dead_letters(&config.topics.orders_dlq);
        running
            .spawn(async move { lane.run(worker, dead_letters, batches, &metrics, health).await });
    }
    let adjusting = start_adjusting(&shared, &store)?;
    let deducting = async {
        while let Some(ended) = running.join_next().await {
            ended.context("a lane panicked")?;
        }
        anyhow::Ok(())
    };
    shutdown.finish("batches of orders", deducting).await.transpose()?;
    running.shutdown().await;
    if let Some((adjusters, lanes)) = adjusting {
        finish_adjusting(&shared, adjusters, lanes).await?;
    }
    shared.leave("the group of workers", consumer).await?;
    shutdown.finish("retention of stock", purging).await.transpose()?;
    if let Some(noting) = noting {
        shutdown.finish("levels of noted products", noting).await.transpose()?;
    }
    shared.disconnect(&[store.database()]).await;
    Ok(())
}

/// Starts to take requests to adjust stock, if `topics.stock_adjustments` is set.
fn start_adjusting(
    shared: &SharedParts,
    store: &StockStore,
) -> anyhow::Result<Option<(Consumer, Vec<AbortOnDropHandle<()>>)>> {
    let SharedParts { config, metrics, health, shutdown, .. } = shared;
    let Some(topic) = &config.topics.stock_adjustments else { return Ok(None) };
    metrics.begin_dead_letters(&topic.requests);
    store.begin_metrics(StoreUse::DeductAndAdjust);
    let subscription = Subscription {
        group_id: &config.kafka.adjusters_group_id(),
        topic: &topic.requests,
        lanes: 1,
    };
    let consumer = Consumer::start(
        &config.kafka,
        &subscription,
        metrics,
        health.register("stock-adjustments"),
        shutdown.clone(),
    );
    let (consumer, lanes) = consumer.context("cannot open the Kafka client")?;
    tracing::info!(topic = topic.requests, "adjusting stock");
    let run = |lane: Lane| {
        let health = ["adjusting", "dead-lettering adjustments"].map(|step| health.register(step));
        let adjuster = Adjuster {
            store: store.clone(),
            codec: Arc::clone(&shared.adjustments),
            kept: config.retention.movements,
        };
        let dead_letters = shared.dead_letters(&topic.dead_letters);
        let (batches, metrics) = (config.worker.batches, metrics.clone());
        spawn(async move { lane.run(adjuster, dead_letters, batches, &metrics, health).await })
    };
    Ok(Some((consumer, lanes.into_iter().map(run).collect())))
}

/// Waits for the lanes of adjustments, and leaves their group. Fails if a lane panicked.
async fn finish_adjusting(
    shared: &SharedParts,
    adjusters: Consumer,
    lanes: Vec<AbortOnDropHandle<()>>,
) -> anyhow::Result<()> {
    let adjusting = async {
        for lane in lanes {
            lane.await.context("a lane of adjustments panicked")?;
        }
        anyhow::Ok(())
    };
    shared.shutdown.finish("adjustments of stock", adjusting).await.transpose()?;
    shared.leave("the group of adjustments", adjusters).await
}

/// What publishes levels, or `None` if levels are off.
fn levels(shared: &SharedParts, store: &StockStore) -> anyhow::Result<Option<Levels>> {
    let topics = &shared.config.topics;
    let Some(topic) = &topics.stock_levels else { return Ok(None) };
    store.begin_metrics(StoreUse::PublishLevels);
    let schemas = shared.registry.as_ref().map(|registry| &registry.schemas);
    Ok(Some(Levels {
        store: store.clone(),
        producer: shared.producer.clone(),
        topic: topic.as_str().into(),
        codec: Arc::new(StockLevelCodec::new()?.on(topics, schemas)),
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
