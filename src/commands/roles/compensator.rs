use std::sync::Arc;

use anyhow::Context as _;

use super::{Role, SharedParts, spawn};
use crate::{
    commands::process,
    compensate::{Compensator, HoldSweep},
    kafka::{Consumer, Subscription},
    retention::PurgedStore,
    store::StoreUse,
    telemetry::ConsumerTraces,
};

/// Runs a compensator until a stop is requested.
pub(super) async fn run(shared: SharedParts) -> anyhow::Result<()> {
    let SharedParts { config, metrics, health, shutdown, .. } = &shared;
    metrics.begin_dead_letters(&config.topics.order_status);
    metrics.begin_retries(&["order_store", "kafka"]);
    let store = process::open_order_store(config, metrics)?;
    store.begin_metrics(StoreUse::Compensate);
    shared.watch_order_store(Role::Compensator, &store);
    let compensator = Compensator {
        relay: shared.relay(store.clone()),
        announcer: shared.announcer(store.clone()),
        store: store.clone(),
        statuses: Arc::clone(&shared.statuses),
        horizon: config.retention.horizon,
        metrics: metrics.clone(),
        traces: ConsumerTraces::new(
            &shared.traces,
            &config.topics.order_status,
            &config.compensator.group_id,
        ),
    };
    let subscription = Subscription {
        group_id: &config.compensator.group_id,
        topic: &config.topics.order_status,
        lanes: 1,
    };
    let consumer = Consumer::start(
        &config.kafka,
        &subscription,
        metrics,
        health.register("order-status"),
        shutdown.clone(),
    );
    let (consumer, lanes) = consumer.context("cannot open the Kafka client")?;
    let purging = shared.purge(PurgedStore::Orders(store.clone().into()))?;
    let sweep = HoldSweep::new(compensator.clone());
    let sweeping = spawn(sweep.run(health.register("holds"), shutdown.clone()));
    tracing::info!(topic = config.topics.order_status, "applying outcomes");
    for lane in lanes {
        let health = ["compensating", "dead-lettering"].map(|step| health.register(step));
        let dead_letters = shared.dead_letters(&config.topics.order_status_dlq);
        let running = lane.run(
            compensator.clone(),
            dead_letters,
            config.compensator.batches,
            metrics,
            health,
        );
        shutdown.finish("batches of statuses", running).await;
    }
    shutdown.finish("holds", sweeping).await.transpose()?;
    shutdown.finish("events to Kafka", compensator.relay.drain()).await;
    shutdown.finish("announcements", compensator.announcer.drain()).await;
    shared.leave("the group of compensators", consumer).await?;
    shutdown.finish("retention of orders", purging).await.transpose()?;
    shared.disconnect(&[store.database()]).await;
    Ok(())
}
