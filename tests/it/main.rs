//! The integration tests: real Kafka, MySQL, MariaDB and Redis, named by the environment that
//! `dev/stack env` prints.
//! Each test has databases, topics, groups and lock keys of its own, so that they run side by side.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "the metrics that tests compare are counts")]

mod admin;
mod api;
mod api_clients;
mod api_connections;
mod api_limits;
mod api_outages;
mod api_refusals;
mod architecture;
mod backlog;
mod bad_writer;
mod batch_intake;
mod bench;
mod breaker;
mod cli;
mod cli_life;
mod cli_order;
mod cli_order_holds;
mod cli_pipes;
mod cli_probe;
mod cli_stock;
mod contention;
mod contract;
mod crash;
mod defaults;
mod failover;
mod flow;
mod harness;
mod holds;
mod holds_api;
mod horizon;
mod hostile;
mod idempotency;
mod idempotency_storm;
mod kafka_life;
mod lanes;
mod levels;
mod lifecycle;
mod masters;
mod metrics;
mod other_languages;
mod outage;
mod pending;
mod place;
mod poison;
mod put;
mod readiness;
mod rebalance;
mod redis_tls;
mod redis_users;
mod redlock;
mod refused;
mod releases;
mod releases_lost;
mod retention;
mod row_locks;
mod sessions;
mod stall;
mod stop;
mod tables;
mod too_large;
mod transactions;
mod upgrade;
mod verify;
mod verify_holds;
mod verify_scale;
mod verify_topics;
mod watch;
