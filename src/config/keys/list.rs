use std::time::Duration;

use super::{Allowed, Key, SASL_MECHANISMS, SECURITY_PROTOCOLS};
use crate::config::{GroupProtocol, LockFallback, LockStrategy, LogFormat};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MAX_AGE: Duration = Duration::from_secs(3650 * 24 * 3600);
const MAX_BATCH: i64 = 10_000;

const BROKERS: &str = "HOST:PORT, comma separated; without a port it is 9092";
const NOT_EMPTY: &str = "a text that is not empty";
const ANY_TEXT: &str = "any text";
const FILE: &str = "the path of a file";
const TOPIC: &str = "1 to 249 ASCII letters, digits, dots, underscores and hyphens";
const MYSQL_URL: &str = "mysql://USER:PASSWORD@HOST:PORT/DATABASE";
const REDIS_URLS: &str = "1, 3 or 5 URLs redis://USER:PASSWORD@HOST:PORT, comma separated";
const ADDRESS: &str = "IP:PORT, such as 127.0.0.1:8080 or [::]:8080";
const OWN_TOPIC: &str = "no other topic of this list has the same name";
const BOTH_FILES: &str = "the certificate and the private key are set together";

const fn key(
    name: &'static str,
    default: &'static str,
    allowed: Allowed,
    help: &'static str,
) -> Key {
    Key { name, default, allowed, rule: "", help }
}

const fn time(min: Duration, max: Duration) -> Allowed {
    Allowed::Time { min, max }
}

const fn number(min: i64, max: i64, unit: &'static str) -> Allowed {
    Allowed::Number { min, max, unit }
}

/// Every key, in the order in which `stocklock config` shows them.
pub const KEYS: &[Key] = &[
    key(
        "kafka.brokers",
        "127.0.0.1:9092",
        Allowed::Form(BROKERS),
        "bootstrap servers of the Kafka cluster",
    ),
    key(
        "kafka.group_id",
        "stocklock-worker",
        Allowed::Form(NOT_EMPTY),
        "consumer group of the workers",
    ),
    key(
        "kafka.group_instance_id",
        "",
        Allowed::Form(ANY_TEXT),
        "name of this process for static membership, unique in its group; not set: dynamic",
    ),
    key(
        "kafka.group_protocol",
        "classic",
        Allowed::Word(&GroupProtocol::WORDS),
        "how a group shares its partitions: classic, or consumer (KIP-848, brokers from 4.0)",
    ),
    key(
        "kafka.session_timeout",
        "6s",
        time(Duration::from_secs(6), Duration::from_secs(300)),
        "the broker removes a member that is silent for this long; only for group_protocol classic",
    ),
    key(
        "kafka.max_poll_interval",
        "5m",
        time(Duration::from_secs(6), DAY),
        "a member that does not poll for this long leaves its group",
    )
    .with_rule("at least kafka.session_timeout"),
    key(
        "kafka.stall_timeout",
        "20s",
        time(Duration::from_secs(5), DAY),
        "the consumer is replaced if a partition with messages delivers none for this long",
    ),
    key(
        "kafka.security_protocol",
        "plaintext",
        Allowed::Word(&SECURITY_PROTOCOLS),
        "protocol of the connections to brokers",
    )
    .with_rule("sasl_… needs the three kafka.sasl_… keys"),
    key("kafka.sasl_mechanism", "", Allowed::Word(&SASL_MECHANISMS), "SASL mechanism"),
    key("kafka.sasl_username", "", Allowed::Form(ANY_TEXT), "SASL user"),
    key("kafka.sasl_password", "", Allowed::Form(ANY_TEXT), "SASL password"),
    key(
        "kafka.ssl_ca_location",
        "",
        Allowed::Form(FILE),
        "certificate authorities that sign the brokers' certificates",
    ),
    key("kafka.ssl_certificate_location", "", Allowed::Form(FILE), "certificate of this client")
        .with_rule(BOTH_FILES),
    key("kafka.ssl_key_location", "", Allowed::Form(FILE), "private key of this client")
        .with_rule(BOTH_FILES),
    key("kafka.ssl_key_password", "", Allowed::Form(ANY_TEXT), "password of the private key"),
    key("topics.orders", "orders", Allowed::Form(TOPIC), "topic of order events")
        .with_rule(OWN_TOPIC),
    key("topics.order_status", "order-status", Allowed::Form(TOPIC), "topic of outcomes")
        .with_rule(OWN_TOPIC),
    key(
        "topics.orders_dlq",
        "orders.dlq",
        Allowed::Form(TOPIC),
        "topic of the dead letters of topics.orders",
    )
    .with_rule(OWN_TOPIC),
    key(
        "topics.order_status_dlq",
        "order-status.dlq",
        Allowed::Form(TOPIC),
        "topic of the dead letters of topics.order_status",
    )
    .with_rule(OWN_TOPIC),
    key(
        "topics.writer_schemas",
        "",
        Allowed::Form("FILE, FOLDER or ID=FILE, comma separated; ID is the id in a registry"),
        "Avro schemas of other systems: .avsc files, or folders of them",
    ),
    key(
        "topics.partitions",
        "12",
        number(1, 10_000, "partitions"),
        "partitions of a topic that setup creates",
    ),
    key(
        "topics.replication",
        "-1",
        number(-1, 100, "replicas"),
        "replicas of a topic that setup creates; -1: the broker's default",
    )
    .with_rule("not 0"),
    key("topics.retention", "7d", time(MINUTE, MAX_AGE), "retention of a topic that setup creates")
        .with_rule(
            "at most retention.outcomes minus its margin, which is a tenth of it and at most a day",
        ),
    key(
        "order_store.url",
        "mysql://stocklock:stocklock@127.0.0.1:3306/stocklock",
        Allowed::Form(MYSQL_URL),
        "database of the orders",
    ),
    key(
        "order_store.migrate_url",
        "",
        Allowed::Form(MYSQL_URL),
        "the same database as a user that may alter tables, for setup; not set: order_store.url",
    ),
    key(
        "order_store.pool_max",
        "8",
        number(2, 1_000, "connections"),
        "most connections of a process to the order store; one of them is kept for ending hung \
         sessions, and does no other work",
    ),
    key(
        "stock_store.url",
        "mysql://stocklock:stocklock@127.0.0.1:3306/stocklock",
        Allowed::Form(MYSQL_URL),
        "database of the stock; may be the database of the orders",
    ),
    key(
        "stock_store.migrate_url",
        "",
        Allowed::Form(MYSQL_URL),
        "the same database as a user that may alter tables, for setup; not set: stock_store.url",
    ),
    key(
        "stock_store.pool_max",
        "8",
        number(2, 1_000, "connections"),
        "most connections of a process to the stock store; one of them is kept for ending hung \
         sessions, and does no other work",
    ),
    key(
        "redis.urls",
        "redis://127.0.0.1:6379",
        Allowed::Form(REDIS_URLS),
        "independent Redis masters; the strategy redlock alone uses them",
    ),
    key(
        "redis.ssl_ca_location",
        "",
        Allowed::Form(FILE),
        "certificate authorities of rediss:// masters; not set: those of the system",
    ),
    key("redis.ssl_certificate_location", "", Allowed::Form(FILE), "certificate of this client")
        .with_rule(BOTH_FILES),
    key("redis.ssl_key_location", "", Allowed::Form(FILE), "private key of this client")
        .with_rule(BOTH_FILES),
    key(
        "lock.strategy",
        "row",
        Allowed::Word(&LockStrategy::WORDS),
        "row (row locks of MySQL) or redlock (a multi-lock in Redis)",
    ),
    key(
        "lock.ttl",
        "10s",
        time(Duration::from_millis(500), Duration::from_secs(600)),
        "a lock that its owner does not renew, in Redis or in a database, ends after this time",
    ),
    key(
        "lock.node_timeout",
        "100ms",
        time(Duration::from_millis(1), Duration::from_secs(300)),
        "most time for one Redis master to connect or to answer",
    )
    .with_rule("at most half of lock.ttl"),
    key(
        "lock.wait",
        "500ms",
        time(Duration::from_millis(10), Duration::from_secs(10)),
        "a batch waits this long for the keys of all its orders, then the worker handles those \
         orders whose keys are free; if that is at least half of the batch, it does not wait",
    ),
    key(
        "lock.fallback",
        "none",
        Allowed::Word(&LockFallback::WORDS),
        "while no majority of the Redis masters answers: none (wait) or row (use row locks)",
    ),
    key(
        "lock.prefix",
        "stocklock:lock:",
        Allowed::Form(NOT_EMPTY),
        "a product's lock key in Redis is this prefix and the product's id",
    ),
    key(
        "worker.batch_max",
        "4000",
        number(1, MAX_BATCH, "orders"),
        "most new orders of a transaction",
    ),
    key(
        "worker.linger",
        "5ms",
        time(Duration::ZERO, SECOND),
        "a batch that is not full closes at least this long after the batch before; longer after \
         one that took long, up to 50 ms",
    ),
    key(
        "worker.lanes",
        "1",
        number(1, 64, "lanes"),
        "batches that a worker decides at the same time",
    ),
    key(
        "compensator.group_id",
        "stocklock-compensator",
        Allowed::Form(NOT_EMPTY),
        "consumer group of the compensators",
    )
    .with_rule("not kafka.group_id"),
    key(
        "compensator.batch_max",
        "4000",
        number(1, MAX_BATCH, "statuses"),
        "most statuses of a transaction",
    ),
    key(
        "compensator.linger",
        "5ms",
        time(Duration::ZERO, SECOND),
        "a batch that is not full closes at least this long after the batch before; longer after \
         one that took long, up to 50 ms",
    ),
    key(
        "ingest.linger",
        "15ms",
        time(Duration::ZERO, SECOND),
        "a group that is not full is committed at least this long after the group before",
    ),
    key(
        "ingest.group_max",
        "500",
        number(1, MAX_BATCH, "orders"),
        "most orders that share a commit",
    ),
    key(
        "ingest.deadline",
        "5s",
        time(Duration::from_millis(100), MINUTE),
        "an order waits this long for its transaction to begin, then ingest answers 503",
    ),
    key(
        "ingest.outbox_max",
        "100000",
        number(1, 1_000_000_000, "orders"),
        "ingest answers 503 while more orders than this are unpublished",
    ),
    key(
        "ingest.pending_after",
        "5m",
        time(SECOND, DAY),
        "an order that is pending for this long is produced again",
    ),
    key(
        "orders.hold_max",
        "1d",
        time(SECOND, MAX_AGE),
        "the longest hold that a client may ask for",
    )
    .with_rule(
        "whole seconds; less than retention.outcomes minus its margin, which is a tenth of it and \
         at most a day",
    ),
    key(
        "retention.outcomes",
        "30d",
        time(MINUTE, MAX_AGE),
        "the horizon: an order may be decided, and its stock released, up to this age",
    )
    .with_rule(
        "above topics.retention by its margin (a tenth, at most a day); at most retention.orders",
    ),
    key(
        "retention.movements",
        "90d",
        time(MINUTE, MAX_AGE),
        "movements of stock are kept this long; after that, only their sums are",
    ),
    key(
        "retention.orders",
        "90d",
        time(MINUTE, MAX_AGE),
        "orders that are not pending are kept this long",
    )
    .with_rule("at least retention.outcomes and retention.idempotency_keys"),
    key(
        "retention.idempotency_keys",
        "7d",
        time(MINUTE, MAX_AGE),
        "an Idempotency-Key names its order for this long",
    )
    .with_rule("at most retention.orders"),
    key(
        "stop.deadline",
        "20s",
        time(SECOND, Duration::from_secs(3600)),
        "a stop ends within this time; at three quarters of it, work that hangs is cut off",
    ),
    key("http.listen", "127.0.0.1:8080", Allowed::Form(ADDRESS), "address of the HTTP API")
        .with_rule("not the port of admin.listen, where one process opens both"),
    key(
        "admin.listen",
        "127.0.0.1:9464",
        Allowed::Form(ADDRESS),
        "address of /livez, /readyz and /metrics",
    ),
    key(
        "client.url",
        "http://127.0.0.1:8080",
        Allowed::Form("an http:// or https:// URL"),
        "HTTP API that the order commands use",
    ),
    key("log.format", "text", Allowed::Word(&LogFormat::WORDS), "format of the log lines"),
    key(
        "log.level",
        "info",
        Allowed::Form("off, error, warn, info, debug, trace, or tracing directives"),
        "least severity that is logged; directives read like info,stocklock=debug",
    ),
];
