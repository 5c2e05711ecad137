//! The configuration. This room alone reads the environment.
//!
//! Later layers win: defaults, the TOML file (`--config`), the environment
//! (`STOCKLOCK__SECTION__KEY`), flags (`--set SECTION.KEY=VALUE`).
//!
//! | file | does |
//! | --- | --- |
//! | `keys` | lists all settings with defaults and bounds |
//! | `layers` | gathers the texts that are set, with their origin |
//! | `values` | reads one key, and gathers errors |
//! | `formats`, `choices`, `secret_url` | parse the forms of values |
//! | `insecure` | finds connections that others could read or divert |
//! | `access` | reads who may use the HTTP API, and how much |
//! | `kafka_security` | reads encryption and identity of the connections to brokers |
//! | `sections` | reads sections whose keys depend on each other |
//! | `traces` | reads the variables of OpenTelemetry |

mod access;
mod choices;
mod formats;
#[cfg(test)]
mod fuzz;
mod insecure;
mod kafka_security;
mod keys;
mod layers;
mod reader_version;
mod secret_url;
mod sections;
mod traces;
mod values;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use crate::domain::Horizon;

pub(crate) use access::{
    AuthConfig, ClientConfig, ClientToken, HttpConfig, JwksConfig, LimitsConfig, PrincipalLimits,
    TlsFiles,
};
pub(crate) use choices::{GroupProtocol, LockFallback, LogFormat};
pub use choices::{LockStrategy, StatusFormat};
pub(crate) use formats::log_level;
pub(crate) use insecure::{InsecureConnection, is_local};
use kafka_security::KafkaSecurity;
pub(crate) use kafka_security::OAuthConfig;
pub use keys::KEYS;
pub(crate) use keys::{Allowed, Key};
pub(crate) use layers::ConfigError;
pub use layers::Layers;
pub(crate) use reader_version::ReaderVersion;
pub use secret_url::SecretUrl;
pub(crate) use traces::{SamplerConfig, SpanQueueConfig, TracesConfig, TracesSettings};
use values::Values;

/// All settings, parsed and within their bounds. [`KEYS`] has the meaning of each.
#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: KafkaConfig,
    pub topics: TopicsConfig,
    pub schema_registry: Option<RegistryConfig>,
    pub order_store: StoreConfig,
    pub stock_store: StoreConfig,
    pub redis: RedisConfig,
    pub lock: LockConfig,
    pub worker: WorkerConfig,
    pub compensator: CompensatorConfig,
    pub ingest: IngestConfig,
    pub(crate) orders: OrdersConfig,
    pub(crate) auth: AuthConfig,
    pub retention: RetentionConfig,
    pub(crate) stop: StopConfig,
    pub(crate) http: HttpConfig,
    pub(crate) limits: LimitsConfig,
    pub(crate) admin: ListenConfig,
    pub(crate) client: ClientConfig,
    pub(crate) log: LogConfig,
}

#[derive(Debug, Clone)]
pub struct KafkaConfig {
    pub brokers: String,
    pub group_id: String,
    /// The name for static membership; `None`: dynamic membership.
    pub(crate) group_instance_id: Option<String>,
    pub(crate) group_protocol: GroupProtocol,
    /// For the classic protocol. Under the other one, the broker sets it.
    pub(crate) session_timeout: Duration,
    /// At least the session timeout.
    pub(crate) max_poll_interval: Duration,
    pub(crate) stall_timeout: Duration,
    /// The security settings that are set, under librdkafka's names.
    pub(crate) security: Vec<(&'static str, String)>,
    /// Where clients get their tokens; `None`: they need none.
    pub(crate) oauth: Option<OAuthConfig>,
}

#[derive(Debug, Clone)]
pub struct TopicsConfig {
    pub orders: String,
    pub order_status: String,
    pub orders_dlq: String,
    pub order_status_dlq: String,
    /// Where ingest takes orders from; `None`: off.
    pub order_requests: Option<IntakeTopic>,
    /// Where the workers take adjustments of stock from; `None`: off.
    pub stock_adjustments: Option<IntakeTopic>,
    /// Where the levels of stock are published; `None`: off.
    pub stock_levels: Option<String>,
    pub status_format: StatusFormat,
    /// Whether statuses and stock levels carry the headers of `CloudEvents`.
    pub cloudevents: bool,
    /// The Avro schemas with which other systems write their values.
    pub(crate) writer_schemas: Vec<SchemaSource>,
    /// The oldest version of stocklock that reads what this process writes.
    pub(crate) readable_by: ReaderVersion,
    pub partitions: i32,
    pub(crate) replication: i32,
    pub(crate) retention: Duration,
}

/// A topic of requests, and the topic of its dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntakeTopic {
    pub requests: String,
    pub dead_letters: String,
}

/// A schema registry with the Confluent API.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    pub url: String,
    /// The user and the password.
    pub credentials: Option<(String, String)>,
}

/// A file of Avro schemas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SchemaSource {
    /// A file. If there is no id, it may be a folder of `.avsc` files.
    pub(crate) path: PathBuf,
    /// The id of the schema in a registry.
    pub(crate) registered_id: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub url: SecretUrl,
    /// The URL for `setup`, whose user may alter tables.
    pub migrate_url: SecretUrl,
    pub pool_max: u32,
    /// Whether a connection that nobody protects is meant, and is not warned of.
    pub(crate) insecure_tls: bool,
}

impl KafkaConfig {
    /// The group in which workers take requests to adjust stock: another one than that of orders,
    /// since each of the two has a topic of its own.
    pub fn adjusters_group_id(&self) -> String {
        sections::adjusters_of(&self.group_id)
    }
}

impl StoreConfig {
    /// The server of the URL, without user, database and options.
    pub(crate) fn server(&self) -> String {
        let parsed = url::Url::parse(self.url.expose()).ok();
        parsed.map_or_else(String::new, |url| {
            let port = url.port().map_or(String::new(), |port| format!(":{port}"));
            format!("{}{port}", url.host_str().unwrap_or_default())
        })
    }

    /// The files of certificates and keys that the two URLs name.
    pub(crate) fn tls_files(&self) -> BTreeSet<PathBuf> {
        [&self.url, &self.migrate_url].into_iter().flat_map(formats::mysql_files).collect()
    }
}

#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// 1, 3 or 5 independent masters.
    pub urls: Vec<SecretUrl>,
    /// The authorities that sign the masters' certificates; `None`: those of the system.
    pub(crate) ssl_ca: Option<PathBuf>,
    pub(crate) ssl_client: Option<ClientFiles>,
    /// Whether a password without TLS is meant, and is not warned of.
    pub(crate) insecure_tls: bool,
}

/// The files of a client's certificate and of its private key.
#[derive(Debug, Clone)]
pub(crate) struct ClientFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Debug, Clone)]
pub struct LockConfig {
    pub strategy: LockStrategy,
    pub ttl: Duration,
    pub node_timeout: Duration,
    pub wait: Duration,
    pub(crate) fallback: LockFallback,
    pub prefix: String,
}

#[derive(Debug, Clone)]
pub struct WorkerConfig {
    pub batches: BatchConfig,
    pub(crate) lanes: usize,
}

#[derive(Debug, Clone)]
pub struct CompensatorConfig {
    pub group_id: String,
    pub batches: BatchConfig,
}

/// When a batch (of a lane) or a group (of ingest) is closed.
#[derive(Debug, Clone, Copy)]
pub struct BatchConfig {
    /// Most messages of a batch, or orders of a group.
    pub max: usize,
    /// Least time since the batch before was closed, unless this one is full.
    pub linger: Duration,
}

#[derive(Debug, Clone)]
pub struct IngestConfig {
    pub groups: BatchConfig,
    /// The consumer group of the intake.
    pub group_id: String,
    /// After this time, ingest begins no transaction for an order.
    pub(crate) deadline: Duration,
    pub(crate) outbox_max: u64,
    pub pending_after: Duration,
}

#[derive(Debug, Clone)]
pub(crate) struct OrdersConfig {
    /// The longest hold that a client may ask for, at least 1.
    pub(crate) hold_max_seconds: u32,
}

/// Ages at which rows may be deleted.
#[derive(Debug, Clone)]
pub struct RetentionConfig {
    /// From the age of `retention.outcomes`.
    pub horizon: Horizon,
    pub(crate) movements: Duration,
    pub(crate) orders: Duration,
    pub(crate) idempotency_keys: Duration,
}

#[derive(Debug, Clone)]
pub(crate) struct StopConfig {
    /// Most time from the request to stop until the end of the process.
    pub(crate) deadline: Duration,
}

#[derive(Debug, Clone)]
pub(crate) struct ListenConfig {
    pub(crate) listen: SocketAddr,
}

#[derive(Debug, Clone)]
pub(crate) struct LogConfig {
    pub(crate) format: LogFormat,
    pub(crate) level: String,
}

impl Config {
    /// Parses and validates all settings. Fails with an error for every wrong key.
    pub fn resolve(layers: &Layers) -> Result<Self, ConfigError> {
        let mut values = Values::new(layers);
        let topics = values.topics();
        let groups = values.groups();
        let retention = values.retention(&topics);
        let lock = lock(&mut values);
        let config = Self {
            kafka: kafka(&mut values, groups.workers),
            order_store: values.store([
                "order_store.url",
                "order_store.migrate_url",
                "order_store.pool_max",
                "order_store.insecure_tls",
            ]),
            stock_store: values.store([
                "stock_store.url",
                "stock_store.migrate_url",
                "stock_store.pool_max",
                "stock_store.insecure_tls",
            ]),
            redis: values.redis(),
            lock,
            worker: WorkerConfig {
                batches: values.batches("worker.batch_max", "worker.linger"),
                lanes: values.number("worker.lanes"),
            },
            compensator: CompensatorConfig {
                group_id: groups.compensators,
                batches: values.batches("compensator.batch_max", "compensator.linger"),
            },
            ingest: IngestConfig {
                groups: values.batches("ingest.group_max", "ingest.linger"),
                group_id: groups.ingest,
                deadline: values.duration("ingest.deadline"),
                outbox_max: values.number("ingest.outbox_max"),
                pending_after: values.duration("ingest.pending_after"),
            },
            orders: values.orders(retention.horizon),
            auth: values.auth(),
            retention,
            topics,
            schema_registry: values.schema_registry(),
            stop: StopConfig { deadline: values.duration("stop.deadline") },
            http: values.http(),
            limits: values.limits(),
            admin: values.read("admin.listen", formats::address),
            client: values.client(),
            log: LogConfig {
                format: values.choice("log.format"),
                level: values.read("log.level", formats::log_level),
            },
        };
        values.finish()?;
        Ok(config)
    }

    /// Fails if `http.listen` and `admin.listen` take the same port. Only ingest opens both.
    pub(crate) fn check_listeners(&self) -> Result<(), ConfigError> {
        let (http, admin) = (self.http.listen, self.admin.listen);
        let is_every = http.ip().is_unspecified() || admin.ip().is_unspecified();
        if http.port() != 0 && http.port() == admin.port() && (is_every || http.ip() == admin.ip())
        {
            let error = format!(
                "admin.listen = \"{admin}\": has the port of http.listen, which is \"{http}\""
            );
            return Err(ConfigError(vec![error]));
        }
        Ok(())
    }
}

fn kafka(values: &mut Values<'_>, group_id: String) -> KafkaConfig {
    let session_timeout = values.duration("kafka.session_timeout");
    let KafkaSecurity { settings: security, oauth } = values.kafka_security();
    KafkaConfig {
        brokers: values.read("kafka.brokers", formats::brokers),
        group_id,
        group_instance_id: values.optional("kafka.group_instance_id"),
        group_protocol: values.choice("kafka.group_protocol"),
        session_timeout,
        // A member may be silent for the session timeout before the broker removes it.
        max_poll_interval: values.duration_within(
            "kafka.max_poll_interval",
            session_timeout,
            Duration::MAX,
        ),
        stall_timeout: values.duration("kafka.stall_timeout"),
        security,
        oauth,
    }
}

fn lock(values: &mut Values<'_>) -> LockConfig {
    let ttl = values.duration("lock.ttl");
    LockConfig {
        strategy: values.choice("lock.strategy"),
        ttl,
        // A master that answers as slowly as this must leave time in which the lock is valid.
        node_timeout: values.duration_within("lock.node_timeout", Duration::ZERO, ttl / 2),
        wait: values.duration("lock.wait"),
        fallback: values.choice("lock.fallback"),
        prefix: values.text("lock.prefix"),
    }
}

#[cfg(test)]
mod tests;
