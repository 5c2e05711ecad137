use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::{Role, SharedParts, intake::RunningIntake, spawn};
use crate::{
    commands::process,
    http,
    ingest::{self, Api, BatchSlots, Catalog, ChangeTask, Changer, Committer, OutcomeWatch},
    lifecycle::Shutdown,
    relay::{Announcer, PendingWatch, Relay, ReleaseWatch},
    store::StoreUse,
};

/// The most clients that watch an order, and at most half of all connections: watching clients take
/// no connection from those that place orders.
const MAX_WATCHING_CLIENTS: usize = 5_000;

/// Runs ingest until a stop is requested. Stops in the order of an order's way: requests, saving,
/// answers, publishing, connections.
pub(super) async fn run(shared: SharedParts, listener: TcpListener) -> anyhow::Result<()> {
    let SharedParts { config, metrics, shutdown, .. } = &shared;
    metrics.begin_retries(&["order_store", "kafka"]);
    let orders = process::open_order_store(config, metrics)?;
    let stock = process::open_stock_store(config, metrics)?;
    orders.begin_metrics(StoreUse::Place);
    stock.begin_metrics(StoreUse::Read);
    shared.watch_order_store(Role::Ingest, &orders);
    shared.watch_stock_store(Role::Ingest, &stock);
    let relay = shared.relay(orders.clone());
    let announcer = shared.announcer(orders.clone());
    let (groups, deadline) = (config.ingest.groups, config.ingest.deadline);
    let (committer, mut committing) =
        Committer::start(orders.clone(), relay.clone(), groups, deadline, metrics);
    let changing = ChangeTask {
        store: orders.clone(),
        relay: relay.clone(),
        announcer: announcer.clone(),
        horizon: config.retention.horizon,
        metrics: metrics.clone(),
    };
    let (changer, mut changing) = Changer::start(&changing, groups, deadline);
    let max_connections =
        http::connections_beside(config.order_store.pool_max + config.stock_store.pool_max);
    let max_watching = MAX_WATCHING_CLIENTS.min(max_connections / 2);
    let outcomes = OutcomeWatch::new(orders.clone(), max_watching, shutdown.clone());
    let asking = spawn(outcomes.clone().run());
    let background = Background::start(&shared, &relay, &announcer);
    let api = Arc::new(Api {
        catalog: Catalog::new(stock.clone()),
        hold_max_seconds: config.orders.hold_max_seconds,
        outbox_max: config.ingest.outbox_max,
        horizon: config.retention.horizon,
        batch_slots: BatchSlots::default(),
        max_connections,
        shutdown: shutdown.clone(),
        metrics: metrics.clone(),
        orders: orders.clone(),
        stock: stock.clone(),
        committer,
        changer,
        outcomes,
    });
    let mut intake = RunningIntake::start(&shared, &api)?;
    tracing::info!(address = %config.http.listen, "accepting orders");
    let serving = Box::pin(ingest::serve(listener, api));
    let serving = while_committing(serving, &mut committing, &mut changing, &mut intake);
    shutdown.finish("HTTP requests", serving).await.transpose()?;
    // The committer ends once nobody can give it orders.
    let consumer = match intake {
        Some(intake) => Some(intake.drained(&shared).await?),
        None => None,
    };
    shutdown.finish("orders to save", ended(committing)).await;
    shutdown.finish("orders to change", ended(changing)).await;
    shutdown.finish("answers to waiting clients", asking).await.transpose()?;
    background.finish(shutdown).await?;
    shutdown.finish("events to Kafka", relay.drain()).await;
    shutdown.finish("announcements to Kafka", announcer.drain()).await;
    if let Some(consumer) = consumer {
        shared.leave("the group of the intake", consumer).await?;
    }
    shared.disconnect(&[orders.database(), stock.database()]).await;
    Ok(())
}

/// The loops that publish what is due, until a stop is requested.
struct Background([(&'static str, AbortOnDropHandle<()>); 4]);

impl Background {
    fn start(shared: &SharedParts, relay: &Relay, announcer: &Announcer) -> Self {
        let SharedParts { config, metrics, health, shutdown, .. } = shared;
        let (horizon, stop) = (config.retention.horizon, || shutdown.clone());
        let relaying = relay.clone().run(metrics.clone(), health.register("outbox"), stop());
        let watch = PendingWatch::new(relay.clone(), horizon, metrics.clone());
        let watching = watch.run(health.register("pending orders"), stop());
        let watch = ReleaseWatch::new(relay.clone(), horizon, metrics.clone());
        let releasing = watch.run(health.register("owed releases"), stop());
        let announcing =
            announcer.clone().run(metrics.clone(), health.register("announcements"), stop());
        Self([
            ("the outbox", spawn(relaying)),
            ("pending orders", spawn(watching)),
            ("owed releases", spawn(releasing)),
            ("announcements", spawn(announcing)),
        ])
    }

    /// Fails if a loop panicked.
    async fn finish(self, shutdown: &Shutdown) -> anyhow::Result<()> {
        for (name, running) in self.0 {
            shutdown.finish(name, running).await.transpose()?;
        }
        Ok(())
    }
}

/// Serves requests. Fails if a task that takes, saves or changes orders ends before.
async fn while_committing(
    serving: impl Future<Output = ()>,
    committing: &mut JoinSet<()>,
    changing: &mut JoinSet<()>,
    intake: &mut Option<RunningIntake>,
) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = serving => Ok(()),
        Some(ended) = committing.join_next() => {
            ended.context("a task that saves orders ended")?;
            bail!("a task that saves orders ended")
        }
        Some(ended) = changing.join_next() => {
            ended.context("a task that changes orders ended")?;
            bail!("a task that changes orders ended")
        }
        failed = RunningIntake::failed(intake) => failed,
    }
}

async fn ended(mut tasks: JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}
