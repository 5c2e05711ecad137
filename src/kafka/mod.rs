//! Kafka: consumers, producers, dead letters, and the topics themselves.
//!
//! # A message's way
//!
//! ```text
//! broker ─► poll thread ─► lane: collect ─► handle ─► publish ─► offset stored ─► committed
//!           a partition    a batch is        one       outcomes,   up to the first
//!           belongs to     closed on        trans-     then dead   message that is
//!           one lane       demand           action     letters     not done
//! ```
//!
//! | step | file | what it does |
//! | --- | --- | --- |
//! | poll | `consumer.rs` | the poll thread: fills lanes, pauses full ones |
//! | | `consumer/inlet.rs` | the poll thread's end of a lane, with its memory |
//! | | `member.rs` | the member of the group: its client, stored and committed offsets |
//! | | `callbacks.rs` | librdkafka's callbacks: rebalances, statistics, lag |
//! | own | `partitions.rs` | owned partitions: assignments, batches in flight, progress |
//! | collect | `lane.rs` | makes batches of a lane's messages, stores their offsets |
//! | handle | `pipeline.rs` | runs the steps of a lane; repeats and halves batches that fail |
//! | | `pace.rs` | lets batches grow while they take long |
//! | | `handler.rs` | the trait that a role implements |
//! | publish | `publishing.rs` | publishes outcomes, dead-letters, stores offsets, halts the lane |
//! | | `dead_letters.rs` | makes dead letters and publishes them |
//! | | `breaker.rs` | halts a lane with too many bad messages |
//! | | `throttle.rs` | bounds the rate of dead letters that are their writers' fault |
//!
//! What keeps the clients at work:
//!
//! | file | what it does |
//! | --- | --- |
//! | `consumer/supervision.rs` | decides when a consumer's client is replaced |
//! | `watchdog.rs` | finds stalled partitions |
//! | `renewal.rs` | when a failing client is replaced, and how often |
//! | `condition.rs` | what `/readyz` says about a consumer |
//! | `client.rs` | settings that all clients have; their log, at a limited rate |
//! | `plain.rs` | clients that ask brokers |
//! | `token.rs`, `token_endpoint.rs` | tokens for OAUTHBEARER |
//! | `advice.rs`, `certificate.rs` | what to do about a connection that fails |
//! | `identity.rs` | checks the certificates and the key of the settings |
//!
//! The other files:
//!
//! | file | what it does |
//! | --- | --- |
//! | `producer.rs` | produces with acknowledgement; replaces its client |
//! | `cloud_events.rs` | the headers of `CloudEvents` |
//! | `trace_headers.rs` | the headers of traces |
//! | `replayer.rs` | produces dead letters to the topics that they came from |
//! | `batch_size.rs` | fits the producer's batches to the topics |
//! | `topics.rs` | the list of topics; creates them |
//! | `topic_settings.rs` | finds settings of a topic that stop or lose messages |
//! | `message_ages.rs`, `backlog.rs` | the age and the number of messages that are not handled |
//! | `probe.rs`, `group.rs`, `reader.rs` | ask about topics and groups, read topics; do not join |
//! | `look` | `stocklock doctor`: topics, settings, rights, groups |
//!
//! # Invariants
//!
//! - The poll thread waits for a full lane for 2 s at most, and for a drain for 15 s at most. So
//!   the group keeps the member.
//! - A partition belongs to one lane. A lane handles one batch at a time, and publishes batches in
//!   the order in which it handled them.
//! - The offset of a message is stored only after the message was handled, and its outcome or its
//!   dead letter acknowledged. No stored offset passes a message of its partition that is not done.
//! - A message that depends on a deferred message before it is deferred too. The handler defers
//!   those of its part of the batch; the lane defers all later parts.
//! - Drain before fence: a revoked partition first gives its batches in flight time to store their
//!   offsets. Then every message and offset of the former assignment is dropped.
//! - Of a revoked partition no offset is stored: librdkafka rejects that, and the next owner has
//!   begun.
//! - A failure of a dependency never dead-letters a message. The batch is repeated as long as it
//!   takes.
//! - A message may be handled and published more than once. Handlers make that harmless.

mod advice;
mod backlog;
mod batch_size;
mod breaker;
mod callbacks;
mod certificate;
mod client;
mod cloud_events;
mod condition;
mod consumer;
mod dead_letters;
mod group;
mod handler;
mod identity;
mod lane;
mod look;
mod member;
mod message_ages;
mod pace;
mod partitions;
mod pipeline;
mod plain;
mod probe;
mod producer;
mod publishing;
mod reader;
mod renewal;
mod replayer;
mod throttle;
mod token;
mod token_endpoint;
mod topic_settings;
mod topics;
mod trace_headers;
mod watchdog;

pub(crate) use backlog::BacklogWatch;
pub use client::client_config;
pub use consumer::Consumer;
pub use consumer::Subscription;
pub use dead_letters::DeadLetters;
pub(crate) use dead_letters::headers as letter_headers;
pub(crate) use group::has_members;
pub use handler::DeadLetterReason;
pub use handler::Done;
pub use handler::Fate;
pub use handler::Handler;
pub(crate) use handler::{Blame, Unpublished};
pub(crate) use identity::check_identity;
pub use lane::Batch;
pub use lane::Lane;
pub(crate) use look::{GroupNeed, KafkaLook, TopicNeed};
pub(crate) use probe::{KafkaProbe, why_unreachable};
pub use producer::Message;
pub use producer::ProduceError;
pub use producer::Producer;
pub(crate) use reader::{EndOffsets, StartOffsets, TopicReader};
pub(crate) use replayer::{ReplayedMessage, Replayer};
pub(crate) use token::count_token_retries;
pub use topic_settings::MIN_MESSAGE_BYTES;
pub(crate) use topic_settings::kept_too_long;
pub use topics::delete_topics;
pub use topics::{TOPICS, TopicDefinition};
pub(crate) use topics::{TopicReport, ensure_topics, topic_names};
pub(crate) use trace_headers::trace_parent;
