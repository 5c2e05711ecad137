//! The integration tests: real Kafka, MySQL, MariaDB and Redis, named by the environment that `dev/stack env` prints.
//! Each test has databases, topics, groups and lock keys of its own, so that they run side by side.

mod admin;
mod api;
mod api_outages;
mod api_refusals;
mod architecture;
mod cli;
mod cli_order;
mod cli_stock;
mod flow;
mod harness;
mod verify;
