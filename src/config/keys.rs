/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    /// As it would be written; empty means not set.
    pub(crate) default: &'static str,
    pub help: &'static str,
}

const fn key(name: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { name, default, help }
}

impl Key {
    /// Whether the value is never shown. (Of a URL, only the password is hidden.)
    pub(crate) fn is_secret(&self) -> bool {
        self.name.ends_with("password")
    }

    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The known key that is written most like `name`.
    pub(crate) fn nearest(name: &str) -> &'static Self {
        let nearest = KEYS.iter().min_by_key(|key| strsim::damerau_levenshtein(key.name, name));
        nearest.unwrap_or(&KEYS[0])
    }

    /// The key that a variable was meant to set which is not read: its underscores are not those of
    /// [`Self::environment_name`], or its letters are small. `None` for variables that have nothing
    /// to do with it.
    pub(crate) fn meant_by(variable: &str) -> Option<&'static Self> {
        let name = variable.to_lowercase().replace(['.', '-'], "_");
        let name = name.strip_prefix("stocklock_")?;
        let plain = |text: &str| {
            text.replace('.', "_")
                .split('_')
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
                .join("_")
        };
        let meant = KEYS.iter().find(|key| plain(key.name) == plain(name));
        // Nobody but us has two underscores in a name that begins so.
        meant.or_else(|| {
            name.contains("__")
                .then(|| Self::nearest(&name.trim_start_matches('_').replace("__", ".")))
        })
    }

    /// `STOCKLOCK__SECTION__KEY`
    pub(crate) fn environment_name(&self) -> String {
        format!("STOCKLOCK__{}", self.name.replace('.', "__").to_uppercase())
    }
}

/// Every key, in the order in which `stocklock config` shows them.
pub const KEYS: &[Key] = &[
    key("kafka.brokers", "127.0.0.1:9092", "bootstrap servers, comma separated"),
    key("kafka.group_id", "stocklock-worker", "consumer group of the workers"),
    key(
        "kafka.group_instance_id",
        "",
        "static membership: a name that no other process of the role has; not set: none",
    ),
    key("kafka.group_protocol", "classic", "classic, or consumer (KIP-848, brokers from 4.0)"),
    key(
        "kafka.session_timeout",
        "6s",
        "silence after which a member is out of its group; classic protocol alone",
    ),
    key(
        "kafka.max_poll_interval",
        "5m",
        "time without a poll after which a member leaves its group",
    ),
    key(
        "kafka.stall_timeout",
        "20s",
        "silence of a partition that has messages after which the consumer is replaced",
    ),
    key("kafka.security_protocol", "plaintext", "plaintext, ssl, sasl_plaintext or sasl_ssl"),
    key("kafka.sasl_mechanism", "", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
    key("kafka.sasl_username", "", "SASL user"),
    key("kafka.sasl_password", "", "SASL password"),
    key(
        "kafka.ssl_ca_location",
        "",
        "file of the certificate authorities that sign the brokers' certificates",
    ),
    key("kafka.ssl_certificate_location", "", "file of the client's certificate"),
    key("kafka.ssl_key_location", "", "file of the client's private key"),
    key("kafka.ssl_key_password", "", "password of the client's private key"),
    key("topics.orders", "orders", "topic of order events"),
    key("topics.order_status", "order-status", "topic of outcomes"),
    key("topics.orders_dlq", "orders.dlq", "dead letters of the orders topic"),
    key("topics.order_status_dlq", "order-status.dlq", "dead letters of the order-status topic"),
    key(
        "topics.writer_schemas",
        "",
        "other systems' Avro schemas: files, folders of .avsc files, or ID=FILE with a registry's id, comma separated",
    ),
    key("topics.partitions", "12", "partitions of a topic that setup creates"),
    key(
        "topics.replication",
        "-1",
        "replicas of a topic that setup creates; -1 is the broker's default",
    ),
    key("topics.retention", "7d", "retention of a topic that setup creates"),
    key(
        "order_store.url",
        "mysql://stocklock:stocklock@127.0.0.1:3306/stocklock",
        "database of the orders",
    ),
    key(
        "order_store.migrate_url",
        "",
        "the same for a user that may alter tables, for setup; not set: the url",
    ),
    key(
        "order_store.pool_max",
        "8",
        "most connections of a process to it, from 2; one only ends others",
    ),
    key(
        "stock_store.url",
        "mysql://stocklock:stocklock@127.0.0.1:3306/stocklock",
        "database of the stock",
    ),
    key(
        "stock_store.migrate_url",
        "",
        "the same for a user that may alter tables, for setup; not set: the url",
    ),
    key(
        "stock_store.pool_max",
        "8",
        "most connections of a process to it, from 2; one only ends others",
    ),
    key(
        "redis.urls",
        "redis://127.0.0.1:6379",
        "1, 3 or 5 independent masters, comma separated; redlock alone uses them",
    ),
    key(
        "redis.ssl_ca_location",
        "",
        "file of the certificate authorities of rediss:// masters; not set: the system's",
    ),
    key("redis.ssl_certificate_location", "", "file of the client's certificate"),
    key("redis.ssl_key_location", "", "file of the client's private key"),
    key("lock.strategy", "row", "row (MySQL row locks) or redlock (a multi-lock in Redis)"),
    key(
        "lock.ttl",
        "10s",
        "a lock that nobody renews, in Redis or in a database, is free after this time",
    ),
    key("lock.node_timeout", "100ms", "how long one Redis master may take to connect or to answer"),
    key(
        "lock.wait",
        "500ms",
        "how long a batch waits for its locks before it goes on with the orders that have theirs",
    ),
    key(
        "lock.fallback",
        "none",
        "while no majority of the Redis masters answers: none (wait) or row (lock rows instead)",
    ),
    key("lock.prefix", "stocklock:lock:", "a product's lock key is this and its id"),
    key("worker.batch_max", "4000", "most new orders of a transaction"),
    key(
        "worker.linger",
        "5ms",
        "a batch that is not full closes no sooner than this after the one before",
    ),
    key("worker.lanes", "1", "batches that a worker decides side by side"),
    key("compensator.group_id", "stocklock-compensator", "consumer group of the compensators"),
    key("compensator.batch_max", "4000", "most statuses of a transaction"),
    key(
        "compensator.linger",
        "5ms",
        "a batch that is not full closes no sooner than this after the one before",
    ),
    key(
        "ingest.linger",
        "15ms",
        "a group that is not full is committed no sooner than this after the one before",
    ),
    key("ingest.group_max", "500", "most orders that share a commit"),
    key(
        "ingest.deadline",
        "5s",
        "how long an order may wait for its transaction to begin; then ingest answers 503",
    ),
    key("ingest.outbox_max", "100000", "unpublished orders beyond which ingest answers 503"),
    key(
        "ingest.pending_after",
        "5m",
        "how long an order may be pending before it is produced again",
    ),
    key(
        "retention.outcomes",
        "30d",
        "how long an order may be decided and given back; more than topics.retention",
    ),
    key("retention.movements", "90d", "how long movements of stock are kept; then their sums are"),
    key(
        "retention.orders",
        "90d",
        "how long orders are kept that are not pending; not less than retention.outcomes",
    ),
    key("retention.idempotency_keys", "7d", "how long an Idempotency-Key stands for its order"),
    key(
        "stop.deadline",
        "20s",
        "a stop ends within this time, whatever hangs; work that hangs is cut off",
    ),
    key("http.listen", "127.0.0.1:8080", "address of the HTTP API"),
    key("admin.listen", "127.0.0.1:9464", "address of /livez, /readyz and /metrics"),
    key("client.url", "http://127.0.0.1:8080", "where the order commands find the HTTP API"),
    key("log.format", "text", "text or json"),
    key("log.level", "info", "a level, or tracing directives such as info,stocklock=debug"),
];
