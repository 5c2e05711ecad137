use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::{Role, SharedParts, access::RunningAccess, intake::RunningIntake, spawn};
use crate::{
    commands::process,
    config::Config,
    http,
    ingest::{
        self, AdjustTerms, Api, BatchSlots, Catalog, ChangeTask, Changer, Committer, OutcomeWatch,
    },
    lifecycle::Shutdown,
    relay::{Announcer, PendingWatch, Relay, ReleaseWatch},
    store::{OrderStore, StoreUse},
};

/// The most clients that watch an order, and at most half of all connections: watching clients take
/// no connection from those that place orders.
const MAX_WATCHING_CLIENTS: usize = 5_000;

/// Runs ingest until a stop is requested. Stops in the order of an order's way: requests, saving,
/// answers, publishing, connections.
pub(super) async fn run(shared: SharedParts, listener: TcpListener) -> anyhow::Result<()> {
    let SharedParts { config, metrics, shutdown, .. } = &shared;
    metrics.begin_retries(&["order_store", "kafka"]);
    let clients = RunningAccess::start(&shared)?;
    let orders = process::open_order_store(config, metrics)?;
    let stock = process::open_stock_store(config, metrics)?;
    orders.begin_metrics(StoreUse::Place);
    stock.begin_metrics(StoreUse::Read);
    shared.watch_order_store(Role::Ingest, &orders);
    shared.watch_stock_store(Role::Ingest, &stock);
    metrics.outbox_max.set(i64::try_from(config.ingest.outbox_max).unwrap_or(i64::MAX));
    let (relay, announcer) = (shared.relay(orders.clone()), shared.announcer(orders.clone()));
    let (groups, deadline) = (config.ingest.groups, config.ingest.deadline);
    let (committer, mut committing) =
        Committer::start(orders.clone(), relay.clone(), groups, deadline, metrics);
    let (changer, mut changing) = start_changer(&shared, &orders, &relay, &announcer);
    let max_connections = max_connections(config);
    let max_watching = MAX_WATCHING_CLIENTS.min(max_connections / 2);
    let outcomes = OutcomeWatch::new(orders.clone(), max_watching, shutdown.clone());
    let asking = spawn(outcomes.clone().run());
    let publishing = Publishing::start(&shared, relay, announcer);
    let api = Arc::new(Api {
        catalog: Catalog::new(stock.clone()),
        hold_max_seconds: config.orders.hold_max_seconds,
        outbox_max: config.ingest.outbox_max,
        horizon: config.retention.horizon,
        batch_slots: BatchSlots::default(),
        adjusting: adjust_terms(config),
        access: Arc::clone(&clients.access),
        tls: clients.tls.clone(),
        max_connections,
        shutdown: shutdown.clone(),
        metrics: metrics.clone(),
        traces: shared.traces.clone(),
        orders: orders.clone(),
        stock: stock.clone(),
        committer,
        changer,
        outcomes,
    });
    let mut intake = RunningIntake::start(&shared, &api)?;
    tracing::info!(address = %config.http.listen, "accepting orders");
    let serving = Box::pin(ingest::serve(listener, api));
    let serving = while_committing(serving, &mut committing, &mut changing);
    let serving = async {
        tokio::select! {
            biased;
            served = serving => served,
            failed = RunningIntake::failed(&mut intake) => failed,
        }
    };
    shutdown.finish("HTTP requests", serving).await.transpose()?;
    // The committer ends once nobody can give it orders.
    let consumer = match intake {
        Some(intake) => Some(intake.drained(&shared).await?),
        None => None,
    };
    shutdown.finish("orders to save", ended(committing)).await;
    shutdown.finish("orders to change", ended(changing)).await;
    shutdown.finish("answers to waiting clients", asking).await.transpose()?;
    publishing.ended(shutdown).await?;
    if let Some(consumer) = consumer {
        shared.leave("the group of the intake", consumer).await?;
    }
    shared.disconnect(&[orders.database(), stock.database()]).await;
    Ok(())
}

fn start_changer(
    shared: &SharedParts,
    orders: &OrderStore,
    relay: &Relay,
    announcer: &Announcer,
) -> (Changer, JoinSet<()>) {
    let SharedParts { config, metrics, .. } = shared;
    let task = ChangeTask {
        store: orders.clone(),
        relay: relay.clone(),
        announcer: announcer.clone(),
        horizon: config.retention.horizon,
        metrics: metrics.clone(),
    };
    Changer::start(&task, config.ingest.groups, config.ingest.deadline)
}

/// The tasks that publish what the order store has.
struct Publishing {
    relay: Relay,
    announcer: Announcer,
    /// Each with its name.
    tasks: Vec<(&'static str, AbortOnDropHandle<()>)>,
}

impl Publishing {
    fn start(shared: &SharedParts, relay: Relay, announcer: Announcer) -> Self {
        let SharedParts { config, metrics, health, shutdown, .. } = shared;
        let horizon = config.retention.horizon;
        let pending = PendingWatch::new(relay.clone(), horizon, metrics.clone());
        let releases = ReleaseWatch::new(relay.clone(), horizon, metrics.clone());
        let sweeping =
            relay.clone().run(metrics.clone(), health.register("outbox"), shutdown.clone());
        let pending = pending.run(health.register("pending orders"), shutdown.clone());
        let releases = releases.run(health.register("owed releases"), shutdown.clone());
        let announcements = health.register("announcements");
        let announcing = announcer.clone().run(metrics.clone(), announcements, shutdown.clone());
        let tasks = vec![
            ("the outbox", spawn(sweeping)),
            ("pending orders", spawn(pending)),
            ("owed releases", spawn(releases)),
            ("announcements", spawn(announcing)),
        ];
        Self { relay, announcer, tasks }
    }

    /// Waits for the end of the tasks, and for what they publish. Fails if a task panicked.
    async fn ended(self, shutdown: &Shutdown) -> anyhow::Result<()> {
        for (name, task) in self.tasks {
            shutdown.finish(name, task).await.transpose()?;
        }
        shutdown.finish("events to Kafka", self.relay.drain()).await;
        shutdown.finish("announcements to Kafka", self.announcer.drain()).await;
        Ok(())
    }
}

/// As many connections as the open files allow, and no more than the setting says.
fn max_connections(config: &Config) -> usize {
    let others = config.order_store.pool_max + config.stock_store.pool_max;
    let affordable = http::connections_beside(others);
    match config.limits.connections {
        0 => affordable,
        limit => limit.min(affordable),
    }
}

/// Without authentication, clients adjust stock on a loopback address alone, unless a setting
/// allows it everywhere.
fn adjust_terms(config: &Config) -> AdjustTerms {
    let is_allowed =
        config.http.listen.ip().is_loopback() || config.auth.anonymous_stock || config.auth.is_on();
    AdjustTerms::new(is_allowed, config.stock_store.pool_max, config.ingest.deadline)
}

/// Serves requests. Fails if a task that saves or changes orders ends before.
async fn while_committing(
    serving: impl Future<Output = ()>,
    committing: &mut JoinSet<()>,
    changing: &mut JoinSet<()>,
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
    }
}

async fn ended(mut tasks: JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}
