//! Keys of locks, roles, retention, listeners and logs.

use std::time::Duration;

use super::{ADDRESS, DAY, MAX_AGE, MAX_BATCH, MINUTE, NOT_EMPTY, SECOND, key, number, time};
use crate::config::{
    LockFallback, LockStrategy, LogFormat,
    keys::{Allowed, BOOLEANS, Key},
};

pub(super) const KEYS: &[Key] = &[
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
        "1000",
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
        "ingest.intake",
        "false",
        Allowed::Word(&BOOLEANS),
        "whether ingest also takes orders from topics.order_requests",
    ),
    key(
        "ingest.group_id",
        "stocklock-ingest",
        Allowed::Form(NOT_EMPTY),
        "consumer group of the intake",
    )
    .with_rule("not the group of another role"),
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
        "movements of stock and the ids of adjustment requests are kept this long; then only \
         the sums of movements are",
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
