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
    client::{client_config, report_topic_ids},
    context::Context,
    partitions::Partitions,
};
use crate::config::{GroupProtocol, KafkaConfig};

/// How long a client that is replaced may take to leave its group before the next one joins.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// How often a client says how far its partitions are fetched, milliseconds.
const STATISTICS_INTERVAL_MS: &str = "2000";

pub(super) type Client = Arc<BaseConsumer<Context>>;

/// A member of a group: the client that is it at present.
pub(super) struct Member {
    config: ClientConfig,
    probe_config: ClientConfig,
    current: RwLock<Client>,
}

impl Member {
    /// Joins the group.
    pub(super) fn join(
        kafka: &KafkaConfig,
        subscription: &Subscription<'_>,
        context: Context,
    ) -> KafkaResult<Self> {
        let config = config(kafka, subscription);
        let client = Arc::new(BaseConsumer::from_config_and_context(&config, context)?);
        client.subscribe(&[subscription.topic])?;
        let mut probe_config = client_config(kafka);
        probe_config.set("group.id", subscription.group_id).set("enable.auto.commit", "false");
        Ok(Self { config, probe_config, current: RwLock::new(client) })
    }

    pub(super) fn client(&self) -> Client {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stores the offsets that `offsets` answers, none of which may be of a partition that is not owned any more: the client is not
    /// replaced meanwhile.
    pub(super) fn store_offsets(
        &self,
        offsets: impl FnOnce() -> TopicPartitionList,
    ) -> KafkaResult<()> {
        let client = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let offsets = offsets();
        if offsets.count() == 0 { Ok(()) } else { client.store_offsets(&offsets) }
    }

    /// Begins a partition again whose log was truncated, so that the client went back to `offset`.
    /// What was stored and committed beyond it is of messages that are gone. Returns the offset
    /// from which the client reads now, which is lower where earlier messages are not done. Fails
    /// where the client cannot go back that far.
    pub(super) fn rewind(
        &self,
        partitions: &Partitions,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> KafkaResult<i64> {
        // No lane may store an offset in between.
        let client = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let from = partitions.restart(partition, offset);
        if from < offset {
            client.seek(topic, partition, Offset::Offset(from), Duration::ZERO)?;
        }
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(from))?;
        let stored = client.store_offsets(&offsets);
        if let Err(error) = stored.and_then(|()| client.commit(&offsets, CommitMode::Async)) {
            tracing::warn!(topic, partition, offset = from, %error, "the committed offset did not go back");
        }
        Ok(from)
    }

    /// Commits an offset also where it is lower than the committed one, which the client does not
    /// do by itself.
    pub(super) fn commit(&self, topic: &str, partition: i32, offset: i64) -> KafkaResult<()> {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        self.client().commit(&offsets, CommitMode::Async)
    }

    /// What a client is made with that asks about this member's group and does not join it.
    pub(super) fn probe_config(&self) -> &ClientConfig {
        &self.probe_config
    }

    /// Leaves the group and joins it with a new client; fences the partitions first. Only the caller holds `client`, the one at
    /// present. One that does not close in time, which it does on a thread of its own, is left to itself.
    pub(super) fn replace(&self, client: &mut Client, partitions: &Partitions) -> KafkaResult<()> {
        let old = client.context();
        let context = old.successor();
        let topic = context.topic.clone();
        let next = Arc::new(BaseConsumer::from_config_and_context(&self.config, context)?);
        let owned = partitions.owned();
        partitions.revoke(&owned, Duration::ZERO);
        old.forget_lag(&owned);
        old.retire();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        let former = std::mem::replace(client, next);
        let (closed, closing) = mpsc::channel();
        std::thread::spawn(move || {
            drop(former);
            let _nobody_waits = closed.send(());
        });
        if closing.recv_timeout(CLOSE_DEADLINE).is_err() {
            tracing::warn!(topic, "the former consumer does not close, and is left to itself");
        }
        client.subscribe(&[&topic])
    }
}

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
        // The broker assigns, and says how often it wants to hear of its members: librdkafka refuses to be told.
        GroupProtocol::Consumer => client.set("group.protocol", "consumer"),
    };
    client
}
