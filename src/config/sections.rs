//! Sections of the configuration whose keys depend on each other.

use std::path::PathBuf;

use url::Url;

use super::{
    BatchConfig, ClientFiles, IntakeTopic, Key, OrdersConfig, ReaderVersion, RedisConfig,
    RegistryConfig, RetentionConfig, SchemaSource, StoreConfig, TopicsConfig, formats,
    formats::short_duration, values::Values,
};
use crate::domain::Horizon;

/// The consumer groups.
pub(super) struct Groups {
    pub(super) workers: String,
    pub(super) compensators: String,
    pub(super) ingest: String,
}

impl Values<'_> {
    /// Reads the keys `url`, `migrate_url`, `pool_max` and `insecure_tls` of a store.
    pub(super) fn store(&mut self, keys: [&str; 4]) -> StoreConfig {
        let [url, migrate_url, pool_max, insecure_tls] = keys;
        let url = self.read(url, formats::mysql_url);
        let or_url =
            |text: &str| if text.is_empty() { Ok(url.clone()) } else { formats::mysql_url(text) };
        let migrate_url = self.read(migrate_url, or_url);
        let (pool_max, insecure_tls) = (self.number(pool_max), self.flag(insecure_tls));
        StoreConfig { url, migrate_url, pool_max, insecure_tls }
    }

    /// Refuses a topic that has two purposes.
    pub(super) fn topics(&mut self) -> TopicsConfig {
        const NAMES: [&str; 9] = [
            "topics.orders",
            "topics.order_status",
            "topics.orders_dlq",
            "topics.order_status_dlq",
            "topics.order_requests",
            "topics.order_requests_dlq",
            "topics.stock_adjustments",
            "topics.stock_adjustments_dlq",
            "topics.stock_levels",
        ];
        // A topic without a default may be left out.
        let or_none =
            |text: &str| if text.is_empty() { Ok(String::new()) } else { formats::topic(text) };
        let topics = NAMES.map(|name| match Key::find(name) {
            Some(key) if key.default.is_empty() => self.read(name, or_none),
            _ => self.read(name, formats::topic),
        });
        for (number, (name, topic)) in NAMES.iter().zip(&topics).enumerate() {
            // To Kafka, names that differ in dots and underscores alone collide.
            let is_same = |other: &str| {
                !topic.is_empty() && other.replace('.', "_") == topic.replace('.', "_")
            };
            let mut earlier = NAMES.iter().zip(&topics).take(number);
            if let Some((other, _)) = earlier.find(|(_, other)| is_same(other)) {
                self.refuse(name, &format!("expected a topic of its own, but {other} names it"));
            }
        }
        let replication = self.number("topics.replication");
        if replication == 0 {
            self.refuse("topics.replication", "expected -1, or 1 to 100 replicas");
        }
        let [
            orders,
            order_status,
            orders_dlq,
            order_status_dlq,
            requests,
            requests_dlq,
            adjustments,
            adjustments_dlq,
            levels,
        ] = topics;
        let intake = |requests: String, dead_letters| IntakeTopic { requests, dead_letters };
        TopicsConfig {
            orders,
            order_status,
            orders_dlq,
            order_status_dlq,
            order_requests: self.flag("ingest.intake").then(|| intake(requests, requests_dlq)),
            stock_adjustments: (!adjustments.is_empty())
                .then(|| intake(adjustments, adjustments_dlq)),
            stock_levels: Some(levels).filter(|levels| !levels.is_empty()),
            status_format: self.choice("topics.status_format"),
            cloudevents: self.flag("topics.cloudevents"),
            writer_schemas: self.read("topics.writer_schemas", schema_sources),
            readable_by: self.read("topics.readable_by", ReaderVersion::parse),
            partitions: self.number("topics.partitions"),
            replication,
            retention: self.duration("topics.retention"),
        }
    }

    pub(super) fn batches(&mut self, max: &str, linger: &str) -> BatchConfig {
        BatchConfig { max: self.number(max), linger: self.duration(linger) }
    }

    /// Refuses a horizon that is shorter than an event may wait on its topic, and orders that are
    /// deleted before the rows that refer to them.
    pub(super) fn retention(&mut self, topics: &TopicsConfig) -> RetentionConfig {
        let outcomes = self.duration("retention.outcomes");
        let movements = self.duration("retention.movements");
        let orders = self.duration("retention.orders");
        let idempotency_keys = self.duration("retention.idempotency_keys");
        let horizon = Horizon::new(outcomes);
        let longest_wait = horizon.longest_wait();
        if topics.retention > longest_wait {
            let longest_wait = short_duration(longest_wait);
            let error = format!(
                "expected at most {longest_wait}, after which an event may expire; \
                 or raise retention.outcomes"
            );
            self.refuse("topics.retention", &error);
        }
        for (name, age) in
            [("retention.outcomes", outcomes), ("retention.idempotency_keys", idempotency_keys)]
        {
            if age > orders {
                let error = "is more than retention.orders; \
                             an order must outlive the rows that refer to it";
                self.refuse(name, error);
            }
        }
        RetentionConfig { horizon, movements, orders, idempotency_keys }
    }

    /// Refuses holds that last as long as an order may be released.
    pub(super) fn orders(&mut self, horizon: Horizon) -> OrdersConfig {
        const NAME: &str = "orders.hold_max";
        let (hold_max, longest_wait) = (self.duration(NAME), horizon.longest_wait());
        if hold_max.subsec_nanos() != 0 {
            self.refuse(NAME, "expected whole seconds");
        }
        if hold_max >= longest_wait {
            let longest_wait = short_duration(longest_wait);
            let error = format!(
                "expected less than {longest_wait}, after which an order is too old for a \
                 release; or raise retention.outcomes"
            );
            self.refuse(NAME, &error);
        }
        OrdersConfig { hold_max_seconds: u32::try_from(hold_max.as_secs()).unwrap_or(u32::MAX) }
    }

    pub(super) fn redis(&mut self) -> RedisConfig {
        const CERTIFICATE: &str = "redis.ssl_certificate_location";
        const KEY: &str = "redis.ssl_key_location";
        let ssl_ca = self.optional("redis.ssl_ca_location").map(PathBuf::from);
        let files = self.optional(CERTIFICATE).zip(self.optional(KEY));
        self.go_together(CERTIFICATE, KEY);
        RedisConfig {
            urls: self.read("redis.urls", formats::redis_urls),
            ssl_ca,
            ssl_client: files.map(|(certificate, key)| ClientFiles {
                certificate: certificate.into(),
                key: key.into(),
            }),
            insecure_tls: self.flag("redis.insecure_tls"),
        }
    }

    pub(super) fn schema_registry(&mut self) -> Option<RegistryConfig> {
        const USERNAME: &str = "schema_registry.username";
        const PASSWORD: &str = "schema_registry.password";
        let credentials = self.optional(USERNAME).zip(self.optional(PASSWORD));
        self.go_together(USERNAME, PASSWORD);
        let or_none = |text: &str| match text {
            "" => Ok(None),
            text => registry_url(text).map(Some),
        };
        let url = self.read("schema_registry.url", or_none)?;
        Some(RegistryConfig { url, credentials })
    }

    /// Refuses one group for two purposes: its members would take each other's partitions.
    pub(super) fn groups(&mut self) -> Groups {
        let workers = self.text("kafka.group_id");
        let compensators = self.text("compensator.group_id");
        if workers == compensators {
            self.refuse(
                "compensator.group_id",
                "expected another group than kafka.group_id: a group has one role's members",
            );
        }
        let ingest = self.text("ingest.group_id");
        if [&workers, &compensators].contains(&&ingest) {
            self.refuse(
                "ingest.group_id",
                "expected a group of its own: a group has one role's members",
            );
        }
        let adjusters = adjusters_of(&workers);
        for (name, group) in [("compensator.group_id", &compensators), ("ingest.group_id", &ingest)]
        {
            if *group == adjusters {
                let error = "expected another group: it is that of topics.stock_adjustments";
                self.refuse(name, error);
            }
        }
        Groups { workers, compensators, ingest }
    }
}

/// The group in which the workers of a group take requests to adjust stock. Their own group has
/// another topic.
pub(super) fn adjusters_of(workers: &str) -> String {
    format!("{workers}-adjustments")
}

/// Reads the URL of a schema registry. Logs and the lines of the doctor show the URL, so it may
/// hold no credentials.
fn registry_url(text: &str) -> Result<String, String> {
    let has_credentials = |url: Url| !url.username().is_empty() || url.password().is_some();
    if Url::parse(text).is_ok_and(has_credentials) {
        let keys = "schema_registry.username and schema_registry.password";
        return Err(format!("expected a URL without credentials: set {keys}"));
    }
    formats::http_url(text)
}

/// Reads entries `FILE`, `FOLDER` or `ID=FILE`, comma separated.
fn schema_sources(text: &str) -> Result<Vec<SchemaSource>, String> {
    let mut sources: Vec<SchemaSource> = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|_| !text.is_empty()) {
        let (registered_id, path) = match entry.split_once('=') {
            Some((id, path)) => {
                let id = id.trim().parse();
                let id =
                    id.map_err(|_| format!("expected ID=FILE with a number, not {entry:?}"))?;
                (Some(id), path.trim())
            }
            None => (None, entry),
        };
        if path.is_empty() {
            return Err(format!("expected a file in the entry {entry:?}"));
        }
        let is_taken = |source: &SchemaSource| source.registered_id == registered_id;
        if registered_id.is_some() && sources.iter().any(is_taken) {
            return Err(format!("expected each id once, but {entry:?} repeats one"));
        }
        sources.push(SchemaSource { path: path.into(), registered_id });
    }
    Ok(sources)
}
