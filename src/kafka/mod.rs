//! Kafka: a poll thread that turns messages into batches, offsets that follow what was done, producers, dead letters.

mod ages;
mod backlog;
mod batch_size;
mod breaker;
mod client;
mod consumer;
mod context;
mod dead_letters;
mod group;
mod handler;
mod lane;
mod member;
mod partitions;
mod pipeline;
mod probe;
mod producer;
mod publishing;
mod reader;
mod throttle;
mod topic_settings;
mod topics;
mod watchdog;

pub use backlog::BacklogWatch;
pub use client::client_config;
pub use consumer::{Consumer, Subscription};
pub use dead_letters::DeadLetters;
pub use group::has_workers;
pub use handler::{Blame, Done, Fate, Handler, Refusal, Unpublished};
pub use lane::{Batch, Lane};
pub use probe::KafkaProbe;
pub use producer::{Message, ProduceError, Producer};
pub use reader::{Ends, TopicReader};
pub use topic_settings::MIN_MESSAGE_BYTES;
pub use topics::{TopicReport, delete_topics, ensure_topics};
