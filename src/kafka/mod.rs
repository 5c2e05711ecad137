//! Kafka: a poll thread that turns messages into batches, offsets that follow what was done, producers, dead letters.

mod breaker;
mod client;
mod condition;
mod consumer;
mod context;
mod dead_letters;
mod handler;
mod lane;
mod member;
mod partitions;
mod pipeline;
mod producer;
mod publishing;
mod renewal;
mod seldom;
mod topics;
mod watchdog;

pub use client::client_config;
pub use consumer::{Consumer, Subscription};
pub use dead_letters::DeadLetters;
pub use handler::{Done, Fate, Handler, Refusal};
pub use lane::{Batch, Lane};
pub use producer::{Message, Producer};
pub use topics::{TopicReport, delete_topics, ensure_topics};
