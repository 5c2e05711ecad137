//! The long-running roles: ingest, worker and compensator. Each is wired from the same parts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Answer,
    process::{self, Codecs},
};
use crate::{
    compensate::Compensator,
    config::{Config, ConfigError, LockFallback, LockStrategy},
    deduct::Worker,
    error_text, http,
    ingest::{self, Api, Catalog, Committer, OutcomeWatch},
    kafka::{Consumer, DeadLetters, Producer, Subscription, topic_names},
    lifecycle::Shutdown,
    lock::{Lease, Locks},
    relay::{PendingWatch, Relay, ReleaseWatch},
    retention::{PurgedStore, Purger},
    store::{Database, OrderStore, StoreUse},
    telemetry::{Health, MeasuredBy, Metrics, serve_admin},
    wire::{OrderEventCodec, OrderStatusCodec},
};

/// Most time for admin requests in flight at the end of a stop.
const ADMIN_DEADLINE: Duration = Duration::from_secs(1);
/// Most time to close the connections to the stores.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// A role of a process. `stocklock all` runs all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Ingest,
    Worker,
    Compensator,
}

/// The parts that all roles of a process share.
#[derive(Clone)]
pub(super) struct SharedParts {
    roles: Arc<[Role]>,
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) shutdown: Shutdown,
    producer: Producer,
    events: Arc<OrderEventCodec>,
    statuses: Arc<OrderStatusCodec>,
}

/// Runs roles until SIGTERM or SIGINT, or until one of them fails. Then all stop in order, within
/// `stop.deadline`. Fails if a role fails, or if the stop cut off work.
pub(super) async fn run(config: Config, roles: &[Role]) -> anyhow::Result<Answer> {
    if roles.contains(&Role::Ingest) {
        config
            .check_listeners()
            .map_err(|ConfigError(errors)| super::wrong_configuration(errors))?;
    }
    let shared = SharedParts::new(config, roles)?;
    let health = shared.health.clone();
    shared.shutdown.enforce(shared.config.stop.deadline, move || health.not_ready());
    tokio::spawn(fit_batches(shared.producer.clone(), Arc::clone(&shared.config)));
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
    shared.watch_servers().context("cannot watch the dependencies")?;
    let admin_stop = Shutdown::default();
    let admin = spawn(serve_admin(admin, health, metrics, admin_stop.clone()));
    tracing::info!(?roles, admin = %shared.config.admin.listen, "started");
    let mut failed = None;
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended.context("a role panicked").and_then(|result| result) {
            let error_text = error_text::with_causes(error.as_ref());
            tracing::error!(error = error_text, "role failed");
            failed = failed.or(Some(error));
        }
        shared.shutdown.request();
    }
    shared.shutdown.finish("messages to Kafka", shared.producer.flush()).await;
    admin_stop.request();
    let answered = tokio::time::timeout(ADMIN_DEADLINE, admin);
    if let Ok(answered) = shared.shutdown.close("admin requests", answered).await {
        answered?;
    }
    if failed.is_none() && !shared.shutdown.cut_off().is_empty() {
        anyhow::bail!(
            "the stop cut off work that was not done in time: {}",
            shared.shutdown.cut_off().join(", ")
        );
    }
    failed.map_or(Ok(Answer::Done), Err)
}

/// Limits the producer's batches to what the topics take. If the brokers do not answer now, the
/// producer learns the limit when a broker refuses a batch.
async fn fit_batches(producer: Producer, config: Arc<Config>) {
    if let Err(error) = producer.fit_batches_to(&topic_names(&config.topics)).await {
        tracing::warn!(%error, "limits of the topics unknown, batches not limited");
    }
}

/// Opens the address of a setting. Fails if it is in use, or not this machine's.
async fn listen(key: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {key} = {address}"))
}

impl SharedParts {
    fn new(config: Config, roles: &[Role]) -> anyhow::Result<Self> {
        let runs = |role| roles.contains(&role);
        let Codecs { events, statuses } = Codecs::open(&config)?;
        let measured_by = MeasuredBy {
            ingest: runs(Role::Ingest),
            worker: runs(Role::Worker),
            compensator: runs(Role::Compensator),
        };
        Ok(Self {
            roles: roles.into(),
            producer: Producer::new(&config.kafka).context("cannot open the Kafka client")?,
            metrics: process::metrics()?.measured_by(measured_by),
            health: Health::default(),
            shutdown: Shutdown::on_signals()?,
            events: Arc::new(events),
            statuses: Arc::new(statuses),
            config: Arc::new(config),
        })
    }

    pub(super) fn runs(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    fn relay(&self, store: OrderStore) -> Relay {
        let Config { topics, ingest, .. } = &*self.config;
        Relay::new(
            store,
            self.producer.clone(),
            &topics.orders,
            Arc::clone(&self.events),
            ingest.pending_after,
        )
    }

    /// Starts to delete old rows of a store, until the process stops.
    fn purge(&self, store: PurgedStore) -> anyhow::Result<AbortOnDropHandle<()>> {
        let (name, tables) = match store {
            PurgedStore::Orders(_) => ("retention of orders", ["orders", "idempotency_keys"]),
            PurgedStore::Stock(_) => ("retention of stock", ["order_outcomes", "stock_movements"]),
        };
        for table in tables {
            self.metrics.retention_deleted.with_label_values(&[table]);
        }
        let config = &self.config;
        let purger = Purger {
            store,
            ages: config.retention.clone(),
            lease: Lease::new(&config.lock, &config.redis, name)?,
            metrics: self.metrics.clone(),
        };
        Ok(spawn(purger.run(self.health.register(name), self.shutdown.clone())))
    }

    /// Leaves the consumer group. Fails if the consumer failed before.
    async fn leave(&self, group: &'static str, consumer: Consumer) -> anyhow::Result<()> {
        let limit = self.shutdown.leave_limit(Instant::now());
        Ok(self.shutdown.close(group, consumer.stopped(limit)).await?)
    }

    /// Closes the connections to stores. Drops connections that do not close in time.
    async fn disconnect(&self, databases: &[&Database]) {
        let closing = futures::future::join_all(databases.iter().map(|database| database.close()));
        let closed = tokio::time::timeout(CLOSE_DEADLINE, closing);
        if self.shutdown.close("connections to stores", closed).await.is_err() {
            tracing::warn!("connections to stores not closed in time, dropping them");
        }
    }

    fn dead_letters(&self, topic: &str) -> DeadLetters {
        DeadLetters::new(self.producer.clone(), topic, &self.metrics)
    }
}

/// Starts a task that ends when its handle is dropped.
fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

/// Runs ingest until a stop is requested. Stops in the order of an order's way: requests, saving,
/// answers, publishing, connections.
async fn ingest(shared: SharedParts, listener: TcpListener) -> anyhow::Result<()> {
    let SharedParts { config, metrics, health, shutdown, .. } = &shared;
    metrics.begin_retries(&["order_store", "kafka"]);
    let orders = process::open_order_store(config, metrics)?;
    let stock = process::open_stock_store(config, metrics)?;
    orders.begin_metrics(StoreUse::Place);
    stock.begin_metrics(StoreUse::Read);
    shared.watch_order_store(Role::Ingest, &orders);
    shared.watch_stock_store(Role::Ingest, &stock);
    let relay = shared.relay(orders.clone());
    let (groups, deadline) = (config.ingest.groups, config.ingest.deadline);
    let (committer, mut committing) =
        Committer::start(orders.clone(), relay.clone(), groups, deadline, metrics);
    let outcomes = OutcomeWatch::new(orders.clone(), shutdown.clone());
    let relaying =
        spawn(relay.clone().run(metrics.clone(), health.register("outbox"), shutdown.clone()));
    let asking = spawn(outcomes.clone().run());
    let watch = PendingWatch::new(relay.clone(), config.retention.horizon, metrics.clone());
    let watching = spawn(watch.run(health.register("pending orders"), shutdown.clone()));
    let watch = ReleaseWatch::new(relay.clone(), config.retention.horizon, metrics.clone());
    let releasing = spawn(watch.run(health.register("owed releases"), shutdown.clone()));
    let api = Api {
        catalog: Catalog::new(stock.clone()),
        outbox_max: config.ingest.outbox_max,
        max_connections: http::connections_beside(
            config.order_store.pool_max + config.stock_store.pool_max,
        ),
        metrics: metrics.clone(),
        orders: orders.clone(),
        stock: stock.clone(),
        committer,
        outcomes,
    };
    tracing::info!(address = %config.http.listen, "accepting orders");
    let serving = Box::pin(ingest::serve(listener, api, shutdown.clone()));
    shutdown
        .finish("HTTP requests", while_committing(serving, &mut committing))
        .await
        .transpose()?;
    shutdown.finish("orders to save", ended(committing)).await;
    shutdown.finish("answers to waiting clients", asking).await.transpose()?;
    shutdown.finish("the outbox", relaying).await.transpose()?;
    shutdown.finish("pending orders", watching).await.transpose()?;
    shutdown.finish("owed releases", releasing).await.transpose()?;
    shutdown.finish("events to Kafka", relay.drain()).await;
    shared.disconnect(&[orders.database(), stock.database()]).await;
    Ok(())
}

/// Serves requests. Fails if a committing task ends before.
async fn while_committing(
    serving: impl Future<Output = ()>,
    committing: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = serving => Ok(()),
        Some(ended) = committing.join_next() => {
            ended.context("a task that saves orders ended")?;
            bail!("a task that saves orders ended")
        }
    }
}

async fn ended(mut tasks: JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// Runs a worker until a stop is requested.
async fn worker(shared: SharedParts) -> anyhow::Result<()> {
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
    shared.disconnect(&[store.database()]).await;
    Ok(())
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

/// Runs a compensator until a stop is requested.
async fn compensator(shared: SharedParts) -> anyhow::Result<()> {
    let SharedParts { config, metrics, health, shutdown, .. } = &shared;
    metrics.begin_dead_letters(&config.topics.order_status);
    metrics.begin_retries(&["order_store", "kafka"]);
    let store = process::open_order_store(config, metrics)?;
    store.begin_metrics(StoreUse::Compensate);
    shared.watch_order_store(Role::Compensator, &store);
    let compensator = Compensator {
        relay: shared.relay(store.clone()),
        store: store.clone(),
        statuses: Arc::clone(&shared.statuses),
        horizon: config.retention.horizon,
        metrics: metrics.clone(),
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
    shutdown.finish("events to Kafka", compensator.relay.drain()).await;
    shared.leave("the group of compensators", consumer).await?;
    shutdown.finish("retention of orders", purging).await.transpose()?;
    shared.disconnect(&[store.database()]).await;
    Ok(())
}
