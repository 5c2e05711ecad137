//! The integration tests: real Kafka, MySQL, MariaDB and Redis, named by the environment that `dev/stack env` prints.
//! Each test has databases, topics, groups and lock keys of its own, so that they run side by side.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::float_cmp, reason = "the metrics that tests compare are counts")]

mod admin;
mod api;
mod api_outages;
mod api_refusals;
mod architecture;
mod bench;
mod breaker;
mod cli;
mod cli_order;
mod cli_stock;
mod contention;
mod contract;
mod crash;
mod flow;
mod harness;
mod horizon;
mod kafka_life;
mod lanes;
mod masters;
mod outage;
mod pending;
mod poison;
mod rebalance;
mod redlock;
mod refused;
mod retention;
mod row_locks;
mod stall;
mod transactions;
mod verify;
