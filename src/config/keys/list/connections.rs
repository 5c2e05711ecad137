//! Keys of Kafka, its topics, the schema registry, the databases and Redis.

use std::time::Duration;

use super::{
    ANY_TEXT, BOTH_FILES, BROKERS, DAY, FILE, FILE_OR_TEXT, MAX_AGE, MINUTE, MYSQL_URL, NOT_EMPTY,
    NOT_FOR_OAUTH, OAUTH, OWN_TOPIC, PEM_TEXT, PROTECTED_URL, REDIS_URLS, TOPIC, USER_AND_PASSWORD,
    key, number, time,
};
use crate::config::{
    GroupProtocol, StatusFormat,
    keys::{Allowed, BOOLEANS, Key, SASL_MECHANISMS, SECURITY_PROTOCOLS},
};

pub(super) const KEYS: &[Key] = &[
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
    .with_rule("the keys sasl_… need sasl_plaintext or sasl_ssl, the keys ssl_… ssl or sasl_ssl"),
    key("kafka.sasl_mechanism", "", Allowed::Word(&SASL_MECHANISMS), "SASL mechanism")
        .with_rule("set if kafka.security_protocol is sasl_…"),
    key("kafka.sasl_username", "", Allowed::Form(ANY_TEXT), "SASL user").with_rule(NOT_FOR_OAUTH),
    key("kafka.sasl_password", "", Allowed::Form(ANY_TEXT), "SASL password")
        .with_rule(NOT_FOR_OAUTH),
    key(
        "kafka.oauth_token_url",
        "",
        Allowed::Form(PROTECTED_URL),
        "token endpoint, which gives a token for the client's id and secret",
    )
    .with_rule(OAUTH),
    key("kafka.oauth_client_id", "", Allowed::Form(ANY_TEXT), "client id at the token endpoint")
        .with_rule(OAUTH),
    key("kafka.oauth_client_secret", "", Allowed::Form(ANY_TEXT), "secret of that client")
        .with_rule(OAUTH),
    key(
        "kafka.oauth_scope",
        "",
        Allowed::Form("scopes, separated by spaces"),
        "scopes that the token is asked for; not set: the token endpoint's default",
    )
    .with_rule(OAUTH),
    key(
        "kafka.oauth_ca_location",
        "",
        Allowed::Form(FILE),
        "certificate authorities of the token endpoint; not set: those of the system",
    )
    .with_rule(OAUTH),
    key(
        "kafka.ssl_ca_location",
        "",
        Allowed::Form(FILE),
        "certificate authorities that sign the brokers' certificates; not set: the system's",
    )
    .with_rule("not together with kafka.ssl_ca_pem"),
    key(
        "kafka.ssl_ca_pem",
        "",
        Allowed::Form(PEM_TEXT),
        "the same certificate authorities as a text",
    )
    .with_rule("not together with kafka.ssl_ca_location"),
    key("kafka.ssl_certificate_location", "", Allowed::Form(FILE), "certificate of this client")
        .with_rule(FILE_OR_TEXT),
    key("kafka.ssl_certificate_pem", "", Allowed::Form(PEM_TEXT), "the same as a text")
        .with_rule(FILE_OR_TEXT),
    key("kafka.ssl_key_location", "", Allowed::Form(FILE), "private key of this client")
        .with_rule(FILE_OR_TEXT),
    key("kafka.ssl_key_pem", "", Allowed::Form(PEM_TEXT), "the same as a text")
        .with_rule(FILE_OR_TEXT),
    key("kafka.ssl_key_password", "", Allowed::Form(ANY_TEXT), "password of the private key")
        .with_rule("only with a private key"),
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
        "topics.order_requests",
        "order-requests",
        Allowed::Form(TOPIC),
        "topic from which ingest takes orders, if ingest.intake is true",
    )
    .with_rule(OWN_TOPIC),
    key(
        "topics.order_requests_dlq",
        "order-requests.dlq",
        Allowed::Form(TOPIC),
        "topic of the dead letters of topics.order_requests",
    )
    .with_rule(OWN_TOPIC),
    key(
        "topics.stock_adjustments",
        "",
        Allowed::Form(TOPIC),
        "topic from which the workers take adjustments of stock, in the group kafka.group_id with \
         -adjustments behind it; not set: off",
    )
    .with_rule(OWN_TOPIC),
    key(
        "topics.stock_adjustments_dlq",
        "stock-adjustments.dlq",
        Allowed::Form(TOPIC),
        "topic of the dead letters of topics.stock_adjustments",
    )
    .with_rule(OWN_TOPIC),
    key(
        "topics.stock_levels",
        "",
        Allowed::Form(TOPIC),
        "compacted topic of each product's available units and version; not set: off",
    )
    .with_rule(OWN_TOPIC),
    key(
        "topics.status_format",
        "avro",
        Allowed::Word(&StatusFormat::WORDS),
        "how values are written to topics.order_status: avro or json",
    ),
    key(
        "topics.cloudevents",
        "false",
        Allowed::Word(&BOOLEANS),
        "whether statuses and stock levels carry the headers of CloudEvents",
    ),
    key(
        "topics.writer_schemas",
        "",
        Allowed::Form("FILE, FOLDER or ID=FILE, comma separated; ID is the id in a registry"),
        "Avro schemas of other systems: .avsc files, or folders of them",
    ),
    key(
        "topics.readable_by",
        "0.1",
        Allowed::Form("a version, MAJOR.MINOR"),
        "the oldest version of stocklock that runs: no process writes values that it cannot read",
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
        "schema_registry.url",
        "",
        Allowed::Form("an http:// or https:// URL"),
        "schema registry with the Confluent API; not set: single-object encoding",
    ),
    key("schema_registry.username", "", Allowed::Form(ANY_TEXT), "user of the schema registry")
        .with_rule(USER_AND_PASSWORD),
    key("schema_registry.password", "", Allowed::Form(ANY_TEXT), "password of that user")
        .with_rule(USER_AND_PASSWORD),
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
        "order_store.insecure_tls",
        "false",
        Allowed::Word(&BOOLEANS),
        "whether a URL beyond the loopback is meant not to verify the server; silences the warning",
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
        "stock_store.insecure_tls",
        "false",
        Allowed::Word(&BOOLEANS),
        "whether a URL beyond the loopback is meant not to verify the server; silences the warning",
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
        "redis.insecure_tls",
        "false",
        Allowed::Word(&BOOLEANS),
        "whether a password is meant to go beyond the loopback without TLS; silences the warning",
    ),
];
