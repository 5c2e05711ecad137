//! `stocklock` deducts stock for orders that arrive on Kafka: all lines of an order or none, never
//! twice, never below zero.
//!
//! This page lists the rooms of the code and its invariants. `docs/architecture.md` has the way of
//! an order and of a batch, walkthroughs of failures, the reasons, and recipes for changes.
//!
//! # The rooms
//!
//! A room uses rooms of its own floor or of a lower one; `tests/it/architecture.rs` checks that.
//!
//! | floor | room | what it does | what only it may use |
//! | --- | --- | --- | --- |
//! | 5 | [`commands`] | the command line; wires the other rooms together | |
//! | 4 | `ingest` | the HTTP API: saves orders, answers clients | |
//! | 4 | [`relay`] | publishes the outbox, pending orders and owed releases | |
//! | 4 | [`deduct`] | the worker: decides batches of orders | |
//! | 4 | [`compensate`] | the compensator: applies batches of statuses to orders | |
//! | 4 | [`levels`] | publishes the levels of products | |
//! | 4 | [`retention`] | deletes old rows | |
//! | 4 | `letters` | reads dead letters, judges them and replays them | |
//! | 4 | `verify` | checks the invariants | |
//! | 3 | [`store`] | all SQL, and the one runner of transactions | sqlx |
//! | 3 | [`kafka`] | consumers, lanes, offsets, producers, dead letters | |
//! | 3 | [`lock`] | row locks, Redlock, leases | Redis, rslock |
//! | 3 | [`wire`] | Avro and JSON bytes to domain types, and back | |
//! | 3 | `registry` | asks the schema registry for schemas and their ids | |
//! | 3 | [`telemetry`] | metrics, logs, health, traces | OpenTelemetry |
//! | 2 | [`config`] | all settings, their defaults and bounds | the environment |
//! | 2 | `http` | the HTTP server of every role, with its limits | |
//! | 2 | [`lifecycle`], `backoff`, `crash_point` | stopping, waiting, crashes for tests | |
//! | 2 | `watched_files`, `log_limiter` | files that change; log lines at a limited rate | |
//! | 2 | [`error_text`], `new_ids` | errors with their causes; new order ids | |
//! | 2 | `finding` | what a look at a dependency finds, for `stocklock doctor` | |
//! | 2 | `tls_advice`, `pem` | what mends a failure of TLS; files of certificates and keys | |
//! | 1 | [`domain`] | orders, quantities, states, decisions: pure | |
//!
//! # Invariants of the data
//!
//! `stocklock verify` checks them; they hold whatever crashes, and however often a message arrives.
//!
//! 1. No product's stock is below zero.
//! 2. What was supplied is what is left and what orders hold, for each product, at any instant.
//! 3. An order that was acknowledged gets one outcome, and its state in the order store follows
//!    that outcome. An order whose message was dead-lettered waits for a person.
//! 4. An order is deducted at most once, and its units are released at most once.
//! 5. All lines of an order are deducted, or none.
//! 6. No lock and no transaction outlives its owner by more than `lock.ttl`. The limits of this
//!    promise are in `docs/databases.md`.
//! 7. A committed offset never passes an order that is neither decided nor dead-lettered.
//!
//! # Invariants of the code
//!
//! - An outcome is inserted plainly, in the transaction that writes the stock. Its primary key, the
//!   order id, prevents a second decision.
//! - Locks only save work. Each write of stock names the version that it read, or holds the row.
//! - No transaction spans a call to Kafka. An event is published after the commit, and may be
//!   published again: each receiver tolerates repetition.
//! - An offset is stored after the statuses and the dead letters of its messages are acknowledged.
//! - A dependency that is away never makes a dead letter: the work is repeated with a backoff.
//! - A transaction is retried as a whole, in one place, a bounded number of times.
//! - Queues, batches, bodies and waits are bounded. Work that hangs is cut off at a stop.
//! - A message that came from outside is parsed at once; the other rooms see domain types.
//! - `domain` reads no clock and no random source: both are arguments.
//! - No label of a metric is an order's or a product's id. Secrets are never logged.

mod backoff;
pub mod commands;
pub mod compensate;
pub mod config;
mod crash_point;
pub mod deduct;
pub mod domain;
pub mod error_text;
mod finding;
mod http;
mod ingest;
pub mod kafka;
mod letters;
pub mod levels;
pub mod lifecycle;
pub mod lock;
mod log_limiter;
mod new_ids;
mod pem;
#[cfg(test)]
mod reader_fuzz;
#[cfg(test)]
mod reference;
mod registry;
pub mod relay;
pub mod retention;
pub mod store;
pub mod telemetry;
mod tls_advice;
pub mod trust;
mod verify;
mod watched_files;
pub mod wire;
