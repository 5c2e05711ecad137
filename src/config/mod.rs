//! The configuration, and the only reader of the environment: defaults, then a TOML file, then `STOCKLOCK__SECTION__KEY`,
//! then flags.

mod formats;
mod keys;
mod layers;
mod values;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use crate::domain::Horizon;

pub use keys::KEYS;
pub(crate) use keys::Key;
pub(crate) use layers::ConfigError;
pub use layers::Layers;
pub(crate) use values::{GroupProtocol, LockFallback, LogFormat};
pub use values::{LockStrategy, SecretUrl};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Everything that can be set, parsed and bounded. [`KEYS`] says what each key means.
#[derive(Debug, Clone)]
pub struct Config {
    pub kafka: KafkaConfig,
    pub topics: TopicsConfig,
    pub order_store: StoreConfig,
    pub stock_store: StoreConfig,
    pub redis: RedisConfig,
    pub lock: LockConfig,
    pub(crate) worker: WorkerConfig,
    pub compensator: CompensatorConfig,
    pub ingest: IngestConfig,
    pub retention: RetentionConfig,
    pub(crate) stop: StopConfig,
    pub(crate) http: ListenConfig,
    pub(crate) admin: ListenConfig,
    pub(crate) client: ClientConfig,
    pub(crate) log: LogConfig,
}

#[derive(Debug, Clone)]
pub struct KafkaConfig {
    pub brokers: String,
    pub group_id: String,
    /// Static membership, where it is wanted.
    pub(crate) group_instance_id: Option<String>,
    pub(crate) group_protocol: GroupProtocol,
    /// With the classic protocol; the broker says it with the other.
    pub(crate) session_timeout: Duration,
    /// At least the session timeout.
    pub(crate) max_poll_interval: Duration,
    pub(crate) stall_timeout: Duration,
    /// Security settings under librdkafka's own names, those that were set.
    pub(crate) security: Vec<(&'static str, String)>,
}

#[derive(Debug, Clone)]
pub struct TopicsConfig {
    pub orders: String,
    pub order_status: String,
    pub orders_dlq: String,
    pub order_status_dlq: String,
    /// The schemas that other systems write their values with.
    pub(crate) writer_schemas: Vec<SchemaSource>,
    pub partitions: i32,
    pub(crate) replication: i32,
    pub(crate) retention: Duration,
}

/// Where an Avro schema comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaSource {
    /// A file; without an id, a folder of `.avsc` files too.
    pub(crate) path: PathBuf,
    /// The id that a schema registry gave it.
    pub(crate) registered_id: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct StoreConfig {
    pub url: SecretUrl,
    /// For `setup` alone.
    pub(crate) migrate_url: SecretUrl,
    pub pool_max: u32,
}

impl StoreConfig {
    /// The files of certificates and keys that the two URLs name.
    pub(crate) fn tls_files(&self) -> BTreeSet<PathBuf> {
        [&self.url, &self.migrate_url].into_iter().flat_map(formats::mysql_files).collect()
    }
}

#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// 1, 3 or 5 independent masters.
    pub urls: Vec<SecretUrl>,
    /// The authorities that sign the masters' certificates; `None`: the system's.
    pub(crate) ssl_ca: Option<PathBuf>,
    /// The files of the client's certificate and of its private key.
    pub(crate) ssl_client: Option<(PathBuf, PathBuf)>,
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
    pub(crate) batches: BatchConfig,
    pub(crate) lanes: usize,
}

#[derive(Debug, Clone)]
pub struct CompensatorConfig {
    pub group_id: String,
    pub(crate) batches: BatchConfig,
}

/// When a batch, or a group, is closed.
#[derive(Debug, Clone, Copy)]
pub struct BatchConfig {
    /// Messages, or orders.
    pub max: usize,
    /// After the batch before was closed.
    pub linger: Duration,
}

#[derive(Debug, Clone)]
pub struct IngestConfig {
    pub(crate) groups: BatchConfig,
    /// After which no transaction is begun for an order.
    pub(crate) deadline: Duration,
    pub(crate) outbox_max: u64,
    pub pending_after: Duration,
}

/// What is deleted when.
#[derive(Debug, Clone)]
pub struct RetentionConfig {
    /// How long the outcomes of orders are kept.
    pub horizon: Horizon,
    pub(crate) movements: Duration,
    pub(crate) orders: Duration,
    pub(crate) idempotency_keys: Duration,
}

#[derive(Debug, Clone)]
pub struct StopConfig {
    /// From the request until the end of the process.
    pub(crate) deadline: Duration,
}

#[derive(Debug, Clone)]
pub struct ListenConfig {
    pub(crate) listen: SocketAddr,
}

#[derive(Debug, Clone)]
pub struct ClientConfig {
    pub(crate) url: String,
}

#[derive(Debug, Clone)]
pub struct LogConfig {
    pub(crate) format: LogFormat,
    pub(crate) level: String,
}

impl Config {
    /// Fails with every key that is wrong, not with the first alone.
    pub fn resolve(layers: &Layers) -> Result<Self, ConfigError> {
        let mut values = values::Values::new(layers);
        let session_timeout = values.between(
            "kafka.session_timeout",
            Duration::from_secs(6),
            Duration::from_secs(300),
        );
        let topics = values.topics();
        let [worker_group, compensator_group] = values.groups();
        let lock_ttl =
            values.between("lock.ttl", Duration::from_millis(500), Duration::from_secs(600));
        let config = Self {
            kafka: KafkaConfig {
                brokers: values.read("kafka.brokers", formats::brokers),
                group_id: worker_group,
                group_instance_id: values.optional("kafka.group_instance_id"),
                group_protocol: values.get("kafka.group_protocol"),
                session_timeout,
                max_poll_interval: values.between("kafka.max_poll_interval", session_timeout, DAY),
                stall_timeout: values.between("kafka.stall_timeout", Duration::from_secs(5), DAY),
                security: values.kafka_security(),
            },
            order_store: values.store(
                "order_store.url",
                "order_store.migrate_url",
                "order_store.pool_max",
            ),
            stock_store: values.store(
                "stock_store.url",
                "stock_store.migrate_url",
                "stock_store.pool_max",
            ),
            redis: values.redis(),
            lock: LockConfig {
                strategy: values.get("lock.strategy"),
                ttl: lock_ttl,
                node_timeout: values.between(
                    "lock.node_timeout",
                    Duration::from_millis(1),
                    lock_ttl / 2,
                ),
                wait: values.between(
                    "lock.wait",
                    Duration::from_millis(10),
                    Duration::from_secs(10),
                ),
                fallback: values.get("lock.fallback"),
                prefix: values.get("lock.prefix"),
            },
            worker: WorkerConfig {
                batches: values.batches("worker.batch_max", "worker.linger"),
                lanes: values.within("worker.lanes", 1, 64),
            },
            compensator: CompensatorConfig {
                group_id: compensator_group,
                batches: values.batches("compensator.batch_max", "compensator.linger"),
            },
            ingest: IngestConfig {
                groups: values.batches("ingest.group_max", "ingest.linger"),
                deadline: values.between(
                    "ingest.deadline",
                    Duration::from_millis(100),
                    Duration::from_secs(60),
                ),
                outbox_max: values.within("ingest.outbox_max", 1, 1_000_000_000),
                pending_after: values.between(
                    "ingest.pending_after",
                    Duration::from_secs(1),
                    Duration::from_secs(86_400),
                ),
            },
            retention: values.retention(&topics),
            topics,
            stop: StopConfig {
                deadline: values.between(
                    "stop.deadline",
                    Duration::from_secs(1),
                    Duration::from_secs(3600),
                ),
            },
            http: values.get("http.listen"),
            admin: values.get("admin.listen"),
            client: ClientConfig { url: values.read("client.url", formats::http_url) },
            log: LogConfig {
                format: values.get("log.format"),
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

#[cfg(test)]
mod tests;
