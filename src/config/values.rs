use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use super::{
    BatchConfig, ConfigError, Key, Layers, ListenConfig, RedisConfig, RetentionConfig,
    SchemaSource, StoreConfig, TopicsConfig, formats,
};
use crate::domain::Horizon;

const LONGEST_AGE: Duration = Duration::from_secs(3650 * 86_400);

/// How a worker keeps others off the products of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockStrategy {
    Row,
    Redlock,
}

impl LockStrategy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Redlock => "redlock",
        }
    }
}

/// What a worker does while no majority of the Redis masters answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockFallback {
    /// It waits.
    None,
    /// It locks rows instead.
    Row,
}

/// How the members of a consumer group share its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupProtocol {
    /// The members agree among themselves.
    Classic,
    /// The broker says who has what (KIP-848).
    Consumer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// A URL whose password is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = self
            .0
            .split_once("://")
            .and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)));
        match authority {
            Some((scheme, (user, host))) => match user.split_once(':') {
                Some((name, _)) => write!(f, "{scheme}://{name}:***@{host}"),
                None => write!(f, "{scheme}://{user}@{host}"),
            },
            None => f.write_str(&self.0),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A value that can be read from a key's text.
pub(super) trait Value: Sized {
    fn read(text: &str) -> Result<Self, String>;
}

impl Value for String {
    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("must not be empty".into()) } else { Ok(text.into()) }
    }
}

impl Value for Duration {
    fn read(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map_err(|e| format!("{e}; a duration reads like 250ms, 10s or 7d"))
    }
}

impl Value for ListenConfig {
    fn read(text: &str) -> Result<Self, String> {
        let listen = text.parse().map_err(|_| "is not an address such as 127.0.0.1:8080")?;
        Ok(Self { listen })
    }
}

impl Value for LockStrategy {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "row" => Ok(Self::Row),
            "redlock" => Ok(Self::Redlock),
            _ => Err("is neither row nor redlock".into()),
        }
    }
}

impl Value for LockFallback {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "row" => Ok(Self::Row),
            _ => Err("is neither none nor row".into()),
        }
    }
}

impl Value for GroupProtocol {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "classic" => Ok(Self::Classic),
            "consumer" => Ok(Self::Consumer),
            _ => Err("is neither classic nor consumer".into()),
        }
    }
}

impl Value for LogFormat {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("is neither text nor json".into()),
        }
    }
}

/// Reads keys one by one and gathers what is wrong; a wrong key reads as its default until then.
pub(super) struct Values<'a> {
    layers: &'a Layers,
    errors: Vec<String>,
}

impl<'a> Values<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self { layers, errors: layers.errors().to_vec() }
    }

    pub(super) fn finish(self) -> Result<(), ConfigError> {
        if self.errors.is_empty() { Ok(()) } else { Err(ConfigError(self.errors)) }
    }

    pub(super) fn get<T: Value>(&mut self, name: &str) -> T {
        self.read(name, T::read)
    }

    /// A text, or `None` where it is empty.
    pub(super) fn optional(&mut self, name: &str) -> Option<String> {
        self.read(name, |text| Ok((!text.is_empty()).then(|| text.to_owned())))
    }

    pub(super) fn within<T: FromStr + PartialOrd + fmt::Display + Copy>(
        &mut self,
        name: &str,
        low: T,
        high: T,
    ) -> T {
        self.read(name, |text| match text.parse::<T>() {
            Ok(value) if low <= value && value <= high => Ok(value),
            _ => Err(format!("is not a number from {low} to {high}")),
        })
    }

    pub(super) fn between(&mut self, name: &str, low: Duration, high: Duration) -> Duration {
        self.read(name, |text| {
            let value = Duration::read(text)?;
            let range = || {
                format!(
                    "is outside {} to {}",
                    humantime::format_duration(low),
                    humantime::format_duration(high)
                )
            };
            if (low..=high).contains(&value) { Ok(value) } else { Err(range()) }
        })
    }

    pub(super) fn store(&mut self, url: &str, migrate_url: &str, pool_max: &str) -> StoreConfig {
        let url = self.read(url, formats::mysql_url);
        let or_url =
            |text: &str| if text.is_empty() { Ok(url.clone()) } else { formats::mysql_url(text) };
        let migrate_url = self.read(migrate_url, or_url);
        StoreConfig { url, migrate_url, pool_max: self.within(pool_max, 2, 1000) }
    }

    pub(super) fn topics(&mut self) -> TopicsConfig {
        const NAMES: [&str; 4] = [
            "topics.orders",
            "topics.order_status",
            "topics.orders_dlq",
            "topics.order_status_dlq",
        ];
        let [orders, order_status, orders_dlq, order_status_dlq] =
            NAMES.map(|name| (name, self.read(name, formats::topic)));
        let named = [&orders, &order_status, &orders_dlq, &order_status_dlq];
        for (number, (name, topic)) in named.into_iter().enumerate() {
            // Kafka counts two names as one where they differ in dots and underscores alone.
            let is_same = |other: &str| other.replace('.', "_") == topic.replace('.', "_");
            if let Some((other, _)) =
                named.into_iter().take(number).find(|(_, other)| is_same(other))
            {
                self.refuse(name, &format!("is the topic of {other} already"));
            }
        }
        let replication = self.within("topics.replication", -1, 100);
        if replication == 0 {
            self.refuse("topics.replication", "is no number of replicas");
        }
        TopicsConfig {
            orders: orders.1,
            order_status: order_status.1,
            orders_dlq: orders_dlq.1,
            order_status_dlq: order_status_dlq.1,
            writer_schemas: self.read("topics.writer_schemas", schema_sources),
            partitions: self.within("topics.partitions", 1, 10_000),
            replication,
            retention: self.between("topics.retention", Duration::from_secs(60), LONGEST_AGE),
        }
    }

    pub(super) fn batches(&mut self, max: &str, linger: &str) -> BatchConfig {
        let linger = self.between(linger, Duration::ZERO, Duration::from_secs(1));
        BatchConfig { max: self.within(max, 1, 10_000), linger }
    }

    /// The horizon is longer than any event waits on its topic, and an order outlives all that refers to it.
    pub(super) fn retention(&mut self, topics: &TopicsConfig) -> RetentionConfig {
        let mut age = |name| self.between(name, Duration::from_secs(60), LONGEST_AGE);
        let (outcomes, movements, orders) =
            (age("retention.outcomes"), age("retention.movements"), age("retention.orders"));
        let idempotency_keys = age("retention.idempotency_keys");
        let horizon = Horizon::new(outcomes);
        let wait = horizon.longest_wait();
        if topics.retention > wait {
            let wait = humantime::format_duration(wait);
            let error = format!(
                "is more than {wait}, after which an event may expire: raise retention.outcomes"
            );
            self.refuse("topics.retention", &error);
        }
        for (name, age) in
            [("retention.outcomes", outcomes), ("retention.idempotency_keys", idempotency_keys)]
        {
            if age > orders {
                self.refuse(
                    name,
                    "is more than retention.orders: an order outlives what refers to it",
                );
            }
        }
        RetentionConfig { horizon, movements, orders, idempotency_keys }
    }

    pub(super) fn redis(&mut self) -> RedisConfig {
        const NAMES: [&str; 3] =
            ["redis.ssl_ca_location", "redis.ssl_certificate_location", "redis.ssl_key_location"];
        let [ssl_ca, certificate, key] = NAMES.map(|name| self.optional(name).map(PathBuf::from));
        self.go_together(NAMES[1], NAMES[2]);
        RedisConfig {
            urls: self.read("redis.urls", formats::redis_urls),
            ssl_ca,
            ssl_client: certificate.zip(key),
        }
    }

    /// The two groups, of which no process may be in both under one name.
    pub(super) fn groups(&mut self) -> [String; 2] {
        let [workers, compensators]: [String; 2] =
            ["kafka.group_id", "compensator.group_id"].map(|name| self.get(name));
        if workers == compensators {
            self.refuse(
                "compensator.group_id",
                "is kafka.group_id: workers and compensators are two groups",
            );
        }
        [workers, compensators]
    }

    /// The keys that librdkafka knows under the same name with dots.
    pub(super) fn kafka_security(&mut self) -> Vec<(&'static str, String)> {
        const PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];
        const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
        const NAMES: [(&str, &str); 8] = [
            ("kafka.security_protocol", "security.protocol"),
            ("kafka.sasl_mechanism", "sasl.mechanism"),
            ("kafka.sasl_username", "sasl.username"),
            ("kafka.sasl_password", "sasl.password"),
            ("kafka.ssl_ca_location", "ssl.ca.location"),
            ("kafka.ssl_certificate_location", "ssl.certificate.location"),
            ("kafka.ssl_key_location", "ssl.key.location"),
            ("kafka.ssl_key_password", "ssl.key.password"),
        ];
        let all = NAMES.map(|(ours, theirs)| {
            let value = self.read(ours, |text| match ours {
                "kafka.security_protocol" => formats::one_of(text, &PROTOCOLS).map(str::to_owned),
                "kafka.sasl_mechanism" if !text.is_empty() => {
                    formats::one_of(text, &MECHANISMS).map(str::to_owned)
                }
                _ => Ok(text.to_owned()),
            });
            (theirs, value)
        });
        if all[0].1.starts_with("sasl_") {
            for ((ours, _), (_, value)) in NAMES.iter().zip(&all).skip(1).take(3) {
                if value.is_empty() {
                    self.refuse(
                        ours,
                        &format!("is needed with kafka.security_protocol = {}", all[0].1),
                    );
                }
            }
        }
        self.go_together("kafka.ssl_certificate_location", "kafka.ssl_key_location");
        all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    /// Refuses one of two keys without the other.
    fn go_together(&mut self, first: &str, second: &str) {
        for (name, other) in [(first, second), (second, first)] {
            if self.optional(name).is_none() && self.optional(other).is_some() {
                self.refuse(name, &format!("is needed with {other}"));
            }
        }
    }

    /// Adds an error to a key whose value goes ill with another's.
    fn refuse(&mut self, name: &str, error: &str) {
        if let Some((text, origin)) = Key::find(name).map(|key| self.layers.value(key)) {
            self.errors.push(format!("{name} = {text:?} ({origin}): {error}"));
        }
    }

    #[expect(
        clippy::panic,
        reason = "a key that KEYS lacks, or a default that does not parse, is a bug that a test finds"
    )]
    pub(super) fn read<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let Some(key) = Key::find(name) else { panic!("no key {name}") };
        let (text, origin) = self.layers.value(key);
        match parse(text) {
            Ok(value) => value,
            Err(error) => {
                let shown = if key.is_secret() {
                    "***".to_owned()
                } else {
                    SecretUrl::new(text).to_string()
                };
                self.errors.push(format!("{name} = {shown:?} ({origin}): {error}"));
                match parse(key.default) {
                    Ok(value) => value,
                    Err(error) => panic!("{name}: default: {error}"),
                }
            }
        }
    }
}

/// Entries `FILE`, `FOLDER` or `ID=FILE`, comma separated.
fn schema_sources(text: &str) -> Result<Vec<SchemaSource>, String> {
    let mut sources: Vec<SchemaSource> = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|_| !text.is_empty()) {
        let (registered_id, path) = match entry.split_once('=') {
            Some((id, path)) => {
                let id = id
                    .trim()
                    .parse()
                    .map_err(|_| format!("{entry:?} begins with no number: it reads ID=FILE"))?;
                (Some(id), path.trim())
            }
            None => (None, entry),
        };
        if path.is_empty() {
            return Err(format!("{entry:?} names no file"));
        }
        if registered_id.is_some()
            && sources.iter().any(|source| source.registered_id == registered_id)
        {
            return Err(format!("{entry:?} has the id of another entry"));
        }
        sources.push(SchemaSource { path: path.into(), registered_id });
    }
    Ok(sources)
}
