use std::{
    sync::{Arc, PoisonError, RwLock, mpsc},
    time::Duration,
};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::KafkaResult,
};

use super::{
    Subscription,
    callbacks::ConsumerCallbacks,
    client::{client_config, report_topic_ids},
    partitions::Partitions,
    renewal::Query,
    token::Tokens,
};
use crate::config::{GroupProtocol, KafkaConfig};

/// How long a replaced client may take to leave its group before the next client joins.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// How often a client reports how far its partitions are fetched, milliseconds.
const STATISTICS_INTERVAL_MS: &str = "2000";

pub(super) type ConsumerClient = Arc<BaseConsumer<ConsumerCallbacks>>;

/// A member of a consumer group. Its client may be replaced by a new one.
pub(super) struct Member {
    config: ClientConfig,
    query: Query,
    current: RwLock<ConsumerClient>,
}

impl Member {
    /// Joins the group. Does not wait for a broker. Fails if librdkafka rejects the configuration.
    pub(super) fn join(
        kafka: &KafkaConfig,
        subscription: &Subscription<'_>,
        callbacks: ConsumerCallbacks,
    ) -> KafkaResult<Self> {
        let config = config(kafka, subscription);
        let client = Arc::new(BaseConsumer::from_config_and_context(&config, callbacks)?);
        client.subscribe(&[subscription.topic])?;
        let mut query = Query { config: client_config(kafka), tokens: Tokens::of(kafka) };
        query.config.set("group.id", subscription.group_id).set("enable.auto.commit", "false");
        Ok(Self { config, query, current: RwLock::new(client) })
    }

    /// The present client.
    pub(super) fn client(&self) -> ConsumerClient {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stores the offsets that `offsets` returns. The client is not replaced meanwhile, so
    /// `offsets` can check that its partitions are still owned: librdkafka rejects other offsets.
    ///
    /// Fails if the client rejects an offset.
    pub(super) fn store_offsets(
        &self,
        offsets: impl FnOnce() -> TopicPartitionList,
    ) -> KafkaResult<()> {
        let client = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let offsets = offsets();
        if offsets.count() == 0 { Ok(()) } else { client.store_offsets(&offsets) }
    }

    /// Begins a partition anew whose log was truncated, so that the client went back to `offset`.
    /// The messages whose offsets were stored or committed beyond it are gone.
    ///
    /// Returns the offset from which the client reads now: `offset`, or a lower one if earlier
    /// messages are not done. Fails if the client cannot seek to that lower offset.
    pub(super) fn rewind(
        &self,
        partitions: &Partitions,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> KafkaResult<i64> {
        // The write lock keeps the lanes from storing an offset in between.
        let client = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let from = partitions.restart(partition, offset);
        if from < offset {
            client.seek(topic, partition, Offset::Offset(from), Duration::ZERO)?;
        }
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(from))?;
        let stored = client.store_offsets(&offsets);
        if let Err(error) = stored.and_then(|()| client.commit(&offsets, CommitMode::Async)) {
            tracing::warn!(topic, partition, offset = from, %error, "committed offset not reset");
        }
        Ok(from)
    }

    /// Commits an offset even if it is lower than the committed one. The client does not do that by
    /// itself. Does not wait for the broker.
    pub(super) fn commit(&self, topic: &str, partition: i32, offset: i64) -> KafkaResult<()> {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        self.client().commit(&offsets, CommitMode::Async)
    }

    /// What a client needs that asks about this member's group without joining it.
    pub(super) fn query(&self) -> &Query {
        &self.query
    }

    /// Fences the partitions, leaves the group, and joins it with a new client.
    ///
    /// `client` is the present client, of which only the caller has a reference besides this
    /// member; it becomes the new client. The former client closes on a thread of its own. If that
    /// takes more than 5 s, the new client joins anyway.
    ///
    /// Fails if the new client cannot be made, and keeps the former one. Fails too if the new
    /// client cannot subscribe.
    pub(super) fn replace(
        &self,
        client: &mut ConsumerClient,
        partitions: &Partitions,
    ) -> KafkaResult<()> {
        let old = client.context();
        let callbacks = old.successor();
        let topic = callbacks.topic.clone();
        let next = Arc::new(BaseConsumer::from_config_and_context(&self.config, callbacks)?);
        let owned = partitions.owned();
        partitions.revoke(&owned, Duration::ZERO);
        old.forget_lag(&owned);
        old.retire();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        let former = std::mem::replace(client, next);
        let (closed, closing) = mpsc::channel();
        std::thread::spawn(move || {
            drop(former);
            let _receiver_gone = closed.send(());
        });
        if closing.recv_timeout(CLOSE_DEADLINE).is_err() {
            tracing::warn!(topic, "the replaced consumer did not close in time");
        }
        client.subscribe(&[&topic])
    }
}

/// The configuration of a client that joins the group.
fn config(kafka: &KafkaConfig, subscription: &Subscription<'_>) -> ClientConfig {
    let mut client = client_config(kafka);
    let millis = |duration: Duration| duration.as_millis().to_string();
    client
        .set("group.id", subscription.group_id)
        .set("max.poll.interval.ms", millis(kafka.max_poll_interval))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        .set("enable.auto.offset.store", "false")
        .set("queued.max.messages.kbytes", "8192")
        .set("queued.min.messages", "10000")
        .set("fetch.message.max.bytes", "262144")
        .set("fetch.max.bytes", "4194304")
        .set("fetch.wait.max.ms", "50")
        .set("fetch.queue.backoff.ms", "10")
        .set("statistics.interval.ms", STATISTICS_INTERVAL_MS);
    report_topic_ids(&mut client);
    if let Some(id) = &kafka.group_instance_id {
        client.set("group.instance.id", id);
    }
    match kafka.group_protocol {
        GroupProtocol::Classic => client
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", millis(kafka.session_timeout))
            .set("heartbeat.interval.ms", millis(kafka.session_timeout / 5)),
        // With this protocol the broker assigns partitions and sets the intervals of heartbeats.
        // librdkafka rejects settings of either.
        GroupProtocol::Consumer => client.set("group.protocol", "consumer"),
    };
    client
}
