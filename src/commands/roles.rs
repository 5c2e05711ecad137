//! The long-running roles: ingest, worker and compensator. Each is wired from the same parts.

mod access;
mod compensator;
mod ingest;
mod intake;
mod worker;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Answer,
    process::{self, Codecs, SchemaRegistry},
};
use crate::{
    config::{Config, ConfigError, InsecureConnection, Layers, TracesSettings},
    error_text,
    kafka::{Consumer, DeadLetters, Producer, count_token_retries, topic_names},
    lifecycle::Shutdown,
    lock::Lease,
    registry::Lookups,
    relay::{Announcer, Relay},
    retention::{PurgedStore, Purger},
    store::{Database, OrderStore},
    telemetry::{Admin, Health, LogFilter, MeasuredBy, Metrics, SpanExport, Traces, serve_admin},
    wire::{OrderEventCodec, OrderRequestCodec, OrderStatusCodec, StockAdjustmentCodec},
};

/// Most time for admin requests in flight at the end of a stop.
const ADMIN_DEADLINE: Duration = Duration::from_secs(1);
/// Most time for the last spans at the end of a stop. A collector that hangs delays it no longer.
const SPANS_DEADLINE: Duration = Duration::from_secs(2);
/// Most time to close the connections to the stores.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// A role of a process. `stocklock all` runs all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Ingest,
    Worker,
    Compensator,
}

/// Whether the roles may begin.
type Begin = Shared<BoxFuture<'static, bool>>;

/// The parts that all roles of a process share.
#[derive(Clone)]
pub(super) struct SharedParts {
    roles: Arc<[Role]>,
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) shutdown: Shutdown,
    pub(super) traces: Traces,
    producer: Producer,
    events: Arc<OrderEventCodec>,
    statuses: Arc<OrderStatusCodec>,
    adjustments: Arc<StockAdjustmentCodec>,
    pub(super) registry: Option<SchemaRegistry>,
    requests: Arc<OrderRequestCodec>,
}

/// Runs roles until SIGTERM or SIGINT, or until one of them fails. Then all stop in order, within
/// `stop.deadline`. Fails if a role fails, or if the stop cut off work.
pub(super) async fn run(
    config: Config,
    log_filter: LogFilter,
    roles: &[Role],
) -> anyhow::Result<Answer> {
    if roles.contains(&Role::Ingest) {
        config
            .check_listeners()
            .map_err(|ConfigError(errors)| super::wrong_configuration(errors))?;
    }
    warn_of_insecure_connections(&config, roles);
    let (shared, span_export) = SharedParts::new(config, roles)?;
    let health = shared.health.clone();
    shared.shutdown.enforce(shared.config.stop.deadline, move || health.not_ready());
    tokio::spawn(fit_batches(shared.producer.clone(), Arc::clone(&shared.config)));
    let listener = listen("admin.listen", shared.config.admin.listen).await?;
    let (health, metrics) = (shared.health.clone(), shared.metrics.clone());
    let admin = Admin { health, metrics, log_filter };
    let mut tasks = JoinSet::new();
    let begin = shared.find_schemas();
    // Ingest does not wait for the ids, so it would not drive the search.
    tokio::spawn(begin.clone());
    for role in roles {
        let begin = begin.clone();
        match role {
            Role::Ingest => {
                let http = listen("http.listen", shared.config.http.listen).await?;
                // Until the ids are known, orders wait in the outbox.
                tasks.spawn(ingest::run(shared.clone(), http));
            }
            Role::Worker => drop(tasks.spawn(when(begin, worker::run(shared.clone())))),
            Role::Compensator => drop(tasks.spawn(when(begin, compensator::run(shared.clone())))),
        }
    }
    shared.watch_servers().context("cannot watch the dependencies")?;
    let admin_stop = Shutdown::default();
    let admin = spawn(serve_admin(listener, admin, admin_stop.clone()));
    let (admin_address, readable_by) =
        (shared.config.admin.listen, shared.config.topics.readable_by);
    tracing::info!(?roles, admin = %admin_address, %readable_by, "started");
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
    if let Some(export) = span_export {
        let limit = shared.shutdown.closing_limit(Instant::now()).min(SPANS_DEADLINE);
        shared.shutdown.close("spans", export.stopped(limit)).await;
    }
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

/// Logs each connection of the roles that nobody protects, once.
fn warn_of_insecure_connections(config: &Config, roles: &[Role]) {
    for insecure in config.insecure_connections() {
        let InsecureConnection { section, key, server, risk, remedy } = insecure;
        let users: &[Role] = match key {
            "order_store.url" => &[Role::Ingest, Role::Compensator],
            "stock_store.url" => &[Role::Ingest, Role::Worker],
            // Locks, and the leases of retention.
            "redis.urls" => &[Role::Worker, Role::Compensator],
            // The roles do not use `migrate_url`.
            _ => &[],
        };
        if roles.iter().any(|role| users.contains(role)) {
            let silence = format!("{section}.insecure_tls = true");
            tracing::warn!(key, %server, risk, remedy, silence, "insecure connection");
        }
    }
}

/// Starts to send spans, if the environment names a collector. Traces that cannot be started are
/// off: no role stops working for them.
fn start_traces(metrics: &Metrics) -> (Traces, Option<SpanExport>) {
    let TracesSettings { traces, warnings } = TracesSettings::of_variables(Layers::variables());
    for warning in warnings {
        tracing::warn!(warning, "a setting of traces is wrong");
    }
    let Some(config) = traces else { return (Traces::off(), None) };
    match Traces::start(&config, metrics) {
        Ok((traces, export)) => {
            tracing::info!(ratio = config.sampler.ratio, "traces are on");
            metrics.begin_traces();
            (traces, Some(export))
        }
        Err(error) => {
            let error = error_text::with_causes(error.as_ref());
            tracing::warn!(error, "traces cannot be started, they are off");
            (Traces::off(), None)
        }
    }
}

/// Runs a role once its process has all that it needs to write values. `false`: it never will.
async fn when(begin: Begin, role: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    if begin.await { role.await } else { Ok(()) }
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
    fn new(config: Config, roles: &[Role]) -> anyhow::Result<(Self, Option<SpanExport>)> {
        let runs = |role| roles.contains(&role);
        let registry = SchemaRegistry::open(&config)?;
        let Codecs { events, statuses, adjustments, requests } =
            Codecs::open(&config, registry.as_ref())?;
        let measured_by = MeasuredBy {
            ingest: runs(Role::Ingest),
            intake: runs(Role::Ingest) && config.topics.order_requests.is_some(),
            worker: runs(Role::Worker),
            compensator: runs(Role::Compensator),
        };
        let metrics = process::metrics()?.measured_by(measured_by);
        let (traces, span_export) = start_traces(&metrics);
        count_token_retries(&config.kafka, &metrics);
        let shared = Self {
            roles: roles.into(),
            producer: Producer::new(&config.kafka).context("cannot open the Kafka client")?,
            metrics,
            traces,
            health: Health::default(),
            shutdown: Shutdown::on_signals()?,
            events: Arc::new(events),
            statuses: Arc::new(statuses),
            adjustments: Arc::new(adjustments),
            registry,
            requests: Arc::new(requests),
            config: Arc::new(config),
        };
        Ok((shared, span_export))
    }

    /// Starts to look up schemas, until the process stops. Workers and compensators begin once the
    /// ids of the schemas are known that they write. Ingest begins and is ready without them.
    fn find_schemas(&self) -> Begin {
        let Some(SchemaRegistry { client, schemas }) = self.registry.clone() else {
            return futures::future::ready(true).boxed().shared();
        };
        self.metrics.begin_retries(&["schema_registry"]);
        let (metrics, shutdown) = (self.metrics.clone(), self.shutdown.clone());
        let lookups = Lookups { client, schemas, metrics, shutdown };
        tokio::spawn(lookups.clone().run());
        let name = "schema ids";
        let is_ingest = *self.roles == [Role::Ingest];
        let health = if is_ingest {
            self.health.register_optional(name)
        } else {
            self.health.register(name)
        };
        async move { lookups.find_own_ids(health).await }.boxed().shared()
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
        .traced(self.traces.clone())
    }

    fn announcer(&self, store: OrderStore) -> Announcer {
        let topic = &self.config.topics.order_status;
        Announcer::new(store, self.producer.clone(), topic, Arc::clone(&self.statuses))
            .traced(self.traces.clone())
    }

    /// Starts to delete old rows of a store, until the process stops.
    fn purge(&self, store: PurgedStore) -> anyhow::Result<AbortOnDropHandle<()>> {
        let (name, tables): (_, &[_]) = match store {
            PurgedStore::Orders(_) => ("retention of orders", &["orders", "idempotency_keys"]),
            PurgedStore::Stock(_) => (
                "retention of stock",
                &["order_outcomes", "stock_movements", "adjustment_requests"],
            ),
        };
        for table in tables {
            self.metrics.retention_deleted.with_label_values(&[*table]);
        }
        self.metrics.begin_retention(store.name());
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
        let limit = self.shutdown.closing_limit(Instant::now());
        Ok(self.shutdown.close(group, consumer.stopped(limit)).await?)
    }

    /// Closes the connections to stores. Drops connections that do not close in time.
    async fn disconnect(&self, databases: &[&Database]) {
        let closing = futures::future::join_all(databases.iter().map(|database| database.close()));
        let limit = self.shutdown.closing_limit(Instant::now()).min(CLOSE_DEADLINE);
        let closed = tokio::time::timeout(limit, closing);
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
