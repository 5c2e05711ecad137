//! The long-running roles, each wired from the same parts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, process};
use crate::{
    compensate::Compensator,
    config::{Config, ConfigError, LockFallback, LockStrategy},
    deduct::Worker,
    http,
    ingest::{self, Api, Catalog, Committer, Desk},
    kafka::{Consumer, DeadLetters, Producer, Subscription, topic_names},
    lifecycle::Shutdown,
    lock::{Lease, Locks},
    relay::{PendingWatch, Relay, ReleaseWatch},
    retention::{Kept, Retention},
    store::{Database, OrderStore},
    telemetry::{Health, MeasuredBy, Metrics, serve_admin},
    wire::{OrderEventCodec, OrderStatusCodec},
};

/// How long admin requests in flight may take at the end of a stop.
const ADMIN_DEADLINE: Duration = Duration::from_secs(1);
/// How long closing the connections to a store may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Ingest,
    Worker,
    Compensator,
}

/// What the roles of a process share.
#[derive(Clone)]
pub(super) struct Shared {
    roles: Arc<[Role]>,
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) shutdown: Shutdown,
    producer: Producer,
    events: Arc<OrderEventCodec>,
    statuses: Arc<OrderStatusCodec>,
}

/// Runs roles until SIGTERM or SIGINT, or until one of them fails; then all stop in order, within
/// `stop.deadline`. Fails where a role fails, and where the stop cut work off.
pub(super) async fn run(config: Config, roles: &[Role]) -> anyhow::Result<Answer> {
    if roles.contains(&Role::Ingest) {
        config
            .check_listeners()
            .map_err(|ConfigError(errors)| super::wrong_configuration(errors))?;
    }
    let shared = Shared::new(config, roles)?;
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
    shared.watch_servers().context("dependencies")?;
    let admin_stop = Shutdown::default();
    let admin = spawn(serve_admin(admin, health, metrics, admin_stop.clone()));
    tracing::info!(?roles, admin = %shared.config.admin.listen, "started");
    let mut failed = None;
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended.context("a role panicked").and_then(|result| result) {
            tracing::error!(%error, "a role failed");
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
        anyhow::bail!("the stop cut off what hung: {}", shared.shutdown.cut_off().join(", "));
    }
    failed.map_or(Ok(Answer::Done), Err)
}

/// What the broker does not say now is found out when it refuses a batch.
async fn fit_batches(producer: Producer, config: Arc<Config>) {
    if let Err(error) = producer.fit_batches_to(&topic_names(&config.topics)).await {
        tracing::warn!(%error, "the producer's batches are not limited");
    }
}

async fn listen(key: &str, address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{key} = {address}"))
}

impl Shared {
    fn new(config: Config, roles: &[Role]) -> anyhow::Result<Self> {
        let runs = |role| roles.contains(&role);
        let (events, statuses) = process::codecs(&config)?;
        let measured_by = MeasuredBy {
            ingest: runs(Role::Ingest),
            worker: runs(Role::Worker),
            compensator: runs(Role::Compensator),
        };
        Ok(Self {
            roles: roles.into(),
            producer: Producer::new(&config.kafka).context("kafka")?,
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

    /// Deletes what is old in a store, until the process stops.
    fn purge(&self, store: Kept) -> anyhow::Result<AbortOnDropHandle<()>> {
        let (name, tables) = match store {
            Kept::Orders(_) => ("retention of orders", ["orders", "idempotency_keys"]),
            Kept::Stock(_) => ("retention of stock", ["order_outcomes", "stock_movements"]),
        };
        for table in tables {
            self.metrics.retention_deleted.with_label_values(&[table]);
        }
        let config = &self.config;
        let retention = Retention {
            store,
            ages: config.retention.clone(),
            lease: Lease::new(&config.lock, &config.redis, name)?,
            metrics: self.metrics.clone(),
        };
        Ok(spawn(retention.run(self.health.register(name), self.shutdown.clone())))
    }

    /// Leaves the group. Fails where the consumer could not go on.
    async fn leave(&self, group: &'static str, consumer: Consumer) -> anyhow::Result<()> {
        let limit = self.shutdown.leave_limit(Instant::now());
        Ok(self.shutdown.close(group, consumer.stopped(limit)).await?)
    }

    /// Closes the connections to stores; those that do not close in time are dropped.
    async fn disconnect(&self, databases: &[&Database]) {
        let closing = futures::future::join_all(databases.iter().map(|database| database.close()));
        let closed = tokio::time::timeout(CLOSE_DEADLINE, closing);
        if self.shutdown.close("connections to stores", closed).await.is_err() {
            tracing::warn!("connections to stores do not close, they are dropped");
        }
    }

    fn dead_letters(&self, topic: &str) -> DeadLetters {
        DeadLetters::new(self.producer.clone(), topic, &self.metrics)
    }
}

/// A task that is aborted where its handle is dropped.
fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

async fn ingest(shared: Shared, listener: TcpListener) -> anyhow::Result<()> {
    let Shared { config, metrics, health, shutdown, .. } = &shared;
    metrics.begin_retries(&["order_store", "kafka"]);
    let orders = process::open_order_store(config, metrics)?;
    let stock = process::open_stock_store(config, metrics)?;
    shared.watch_order_store(Role::Ingest, &orders);
    shared.watch_stock_store(Role::Ingest, &stock);
    let relay = shared.relay(orders.clone());
    let limits = (config.ingest.groups, config.ingest.deadline);
    let (committer, mut committing) =
        Committer::start(orders.clone(), relay.clone(), limits, metrics.clone());
    let desk = Desk::new(orders.clone(), shutdown.clone());
    let relaying =
        spawn(relay.clone().run(metrics.clone(), health.register("outbox"), shutdown.clone()));
    let asking = spawn(desk.clone().run());
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
        desk,
    };
    tracing::info!(address = %config.http.listen, "taking orders");
    let serving = Box::pin(ingest::serve(listener, api, shutdown.clone()));
    shutdown
        .finish("HTTP requests", while_committing(serving, &mut committing))
        .await
        .transpose()?;
    shutdown.finish("orders to save", ended(committing)).await;
    shutdown.finish("answers to clients that wait", asking).await.transpose()?;
    shutdown.finish("the outbox", relaying).await.transpose()?;
    shutdown.finish("pending orders", watching).await.transpose()?;
    shutdown.finish("owed releases", releasing).await.transpose()?;
    shutdown.finish("events to Kafka", relay.drain()).await;
    shared.disconnect(&[orders.database(), stock.database()]).await;
    Ok(())
}

/// Serves requests. Fails where a task that commits ends before.
async fn while_committing(
    serving: impl Future<Output = ()>,
    committing: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = serving => Ok(()),
        Some(ended) = committing.join_next() => {
            ended.context("orders are not saved any more")?;
            bail!("orders are not saved any more")
        }
    }
}

async fn ended(mut tasks: JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

async fn worker(shared: Shared) -> anyhow::Result<()> {
    let Shared { config, metrics, health, shutdown, .. } = &shared;
    begin_worker_at_zero(config, metrics);
    let store = process::open_stock_store(config, metrics)?;
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
    let (consumer, lanes) = consumer.context("kafka")?;
    let purging = shared.purge(Kept::Stock(store.clone().into()))?;
    tracing::info!(
        strategy = config.lock.strategy.as_str(),
        topic = config.topics.orders,
        "deducting"
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

fn begin_worker_at_zero(config: &Config, metrics: &Metrics) {
    let row = LockStrategy::Row.as_str();
    let (strategies, dependencies): (&[_], &[_]) =
        match (config.lock.strategy, config.lock.fallback) {
            (LockStrategy::Row, _) => (&[row], &["stock_store", "kafka"]),
            (redlock, LockFallback::None) => {
                (&[redlock.as_str()], &["stock_store", "kafka", "redis"])
            }
            (redlock, LockFallback::Row) => {
                (&[redlock.as_str(), row], &["stock_store", "kafka", "redis"])
            }
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
    let (consumer, lanes) = consumer.context("kafka")?;
    let purging = shared.purge(Kept::Orders(store.clone().into()))?;
    tracing::info!(topic = config.topics.order_status, "bringing outcomes back");
    for lane in lanes {
        let health = ["compensating", "setting aside"].map(|step| health.register(step));
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
