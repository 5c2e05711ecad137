//! The topics as a test sees them: what is in them, what it puts there, and how far a group has
//! come.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    Message as _, Offset, Timestamp, TopicPartitionList,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::KafkaResult,
    message::{Headers as _, OwnedMessage},
};
use stocklock::{
    config::TopicsConfig,
    kafka::{Message, Producer, client_config},
    wire::{OrderEventCodec, OrderStatusCodec},
};

use super::{World, wait_for, world::PATIENCE};
use stocklock::domain::{OrderEvent, OrderId, OrderStatus, Reason, ReportedStatus};

const TIMEOUT: Duration = Duration::from_secs(10);

/// What the broker answers, asked until it does.
fn answer<T>(what: &str, ask: impl Fn() -> KafkaResult<T>) -> T {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{what}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl World {
    fn reader(&self, group_id: &str) -> BaseConsumer {
        let mut client = client_config(&self.config.kafka);
        client.set("group.id", group_id).set("enable.auto.commit", "false");
        client.create().expect("a consumer")
    }

    /// The names of all topics that carry a name of this world's.
    pub(crate) fn topics(&self) -> Vec<String> {
        let TopicsConfig { orders, order_status, .. } = &self.config.topics;
        let reader = self.reader("reader");
        let metadata = answer("metadata", || reader.fetch_metadata(None, TIMEOUT));
        let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
        names.filter(|name| [orders, order_status].iter().any(|own| name.contains(*own))).collect()
    }

    /// Each partition of a topic and the offset behind its last message.
    fn ends(&self, reader: &BaseConsumer, topic: &str) -> Vec<(i32, i64)> {
        // A partition that was created a moment ago may not have a leader yet.
        let end = |partition| {
            answer("watermarks", || reader.fetch_watermarks(topic, partition, TIMEOUT)).1
        };
        (0..self.config.topics.partitions).map(|partition| (partition, end(partition))).collect()
    }

    /// Where each of so many partitions of a topic ends.
    pub(crate) fn read_partitions(&self, topic: &str, partitions: i32) -> Vec<i64> {
        let reader = self.reader("reader");
        let end = |partition| {
            answer("watermarks", || reader.fetch_watermarks(topic, partition, TIMEOUT)).1
        };
        (0..partitions).map(end).collect()
    }

    /// Everything that is in a topic, each partition in its order.
    pub(crate) fn read_topic(&self, topic: &str) -> Vec<OwnedMessage> {
        let reader = self.reader("reader");
        let ends = self.ends(&reader, topic);
        let mut all = TopicPartitionList::new();
        for (partition, _) in &ends {
            all.add_partition_offset(topic, *partition, Offset::Beginning).expect("a partition");
        }
        reader.assign(&all).expect("assigned");
        // The last message of a partition is there also where the broker has removed others.
        let mut unread: BTreeMap<_, _> = ends.iter().copied().filter(|(_, end)| *end > 0).collect();
        let (mut messages, begun) = (Vec::new(), Instant::now());
        while !unread.is_empty() {
            assert!(begun.elapsed() < PATIENCE, "{topic} cannot be read up to {unread:?}");
            let Some(message) = reader.poll(Duration::from_millis(100)) else { continue };
            let message = message.expect("a message").detach();
            let (partition, next) = (message.partition(), message.offset() + 1);
            if unread.get(&partition).is_some_and(|end| *end <= next) {
                unread.remove(&partition);
            }
            // What came after the ends were asked for is not waited for.
            if ends.iter().any(|(partition, end)| {
                *partition == message.partition() && message.offset() < *end
            }) {
                messages.push(message);
            }
        }
        messages.sort_by_key(|message| (message.partition(), message.offset()));
        messages
    }

    /// How many messages a topic has got so far.
    pub(crate) fn count_messages(&self, topic: &str) -> usize {
        let ends = self.ends(&self.reader("reader"), topic);
        usize::try_from(ends.iter().map(|(_, end)| end).sum::<i64>()).expect("a count")
    }

    /// The messages of a topic which the group has not committed yet.
    pub(crate) fn uncommitted(&self, group_id: &str, topic: &str) -> i64 {
        let reader = self.reader(group_id);
        let ends = self.ends(&reader, topic);
        let mut asked = TopicPartitionList::new();
        for (partition, _) in &ends {
            asked.add_partition(topic, *partition);
        }
        let committed =
            answer("committed offsets", || reader.committed_offsets(asked.clone(), TIMEOUT));
        let behind = ends.iter().map(|(partition, end)| {
            let element = committed.find_partition(topic, *partition).expect("the partition");
            end - element.offset().to_raw().filter(|offset| *offset >= 0).unwrap_or(0)
        });
        behind.sum()
    }

    /// The messages of an order's partition from its own on.
    pub(crate) fn count_from(&self, order_id: OrderId, topic: &str) -> i64 {
        let (key, all) = (order_id.to_string(), self.read_topic(topic));
        let own =
            all.iter().find(|message| message.key() == Some(key.as_bytes())).expect("its message");
        let after = |message: &&OwnedMessage| {
            message.partition() == own.partition() && message.offset() >= own.offset()
        };
        i64::try_from(all.iter().filter(after).count()).expect("few")
    }

    /// How the members of a group agree on who has what; empty where the broker says it.
    pub(crate) fn assignor(&self, group_id: &str) -> String {
        let reader = self.reader("reader");
        let groups = answer("groups", || reader.fetch_group_list(Some(group_id), TIMEOUT));
        groups.groups().first().map_or_else(String::new, |group| group.protocol().to_owned())
    }

    /// Commits for a group, of which no member may be there, so many messages beyond the end of
    /// each partition of a topic.
    pub(crate) fn commit_beyond_the_end(&self, group_id: &str, topic: &str, messages: i64) {
        let reader = self.reader(group_id);
        let mut offsets = TopicPartitionList::new();
        for (partition, end) in self.ends(&reader, topic) {
            offsets
                .add_partition_offset(topic, partition, Offset::Offset(end + messages))
                .expect("a partition");
        }
        reader.commit(&offsets, CommitMode::Sync).expect("committed");
    }

    /// Has a group read a topic from its beginning again, once it has no member any more.
    pub(crate) async fn rewind(&self, group_id: &str, topic: &str) {
        let reader = self.reader(group_id);
        let mut offsets = TopicPartitionList::new();
        for (partition, _) in self.ends(&reader, topic) {
            offsets.add_partition_offset(topic, partition, Offset::Offset(0)).expect("a partition");
        }
        wait_for(async || reader.commit(&offsets, CommitMode::Sync)).await;
    }

    /// How many messages of a topic the broker still has.
    pub(crate) fn count_retained(&self, topic: &str) -> i64 {
        let reader = self.reader("reader");
        let retained = |partition| {
            let (low, high) =
                answer("watermarks", || reader.fetch_watermarks(topic, partition, TIMEOUT));
            high - low
        };
        (0..self.config.topics.partitions).map(retained).sum()
    }

    /// Has the broker forget all messages of a topic, as a retention does.
    pub(crate) async fn truncate_topic(&self, topic: &str) {
        let mut all = TopicPartitionList::new();
        for (partition, end) in self.ends(&self.reader("reader"), topic) {
            all.add_partition_offset(topic, partition, Offset::Offset(end)).expect("a partition");
        }
        let admin: AdminClient<_> =
            client_config(&self.config.kafka).create().expect("an admin client");
        let deleted = admin.delete_records(&all, &AdminOptions::new()).await.expect("the broker");
        assert!(deleted.elements().iter().all(|element| element.error().is_ok()), "{deleted:?}");
        assert_eq!(self.count_retained(topic), 0);
    }

    /// Deletes a topic.
    pub(crate) async fn delete_topic(&self, topic: &str) {
        let admin: AdminClient<_> =
            client_config(&self.config.kafka).create().expect("an admin client");
        let deleted =
            admin.delete_topics(&[topic], &AdminOptions::new()).await.expect("the broker");
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    }

    /// Deletes a topic and creates it again.
    pub(crate) async fn recreate_topic(&self, topic: &str) {
        self.delete_topic(topic).await;
        let begun = Instant::now();
        loop {
            self.cli(&["setup"]).succeeds();
            if self.count_messages(topic) == 0 {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{topic} is not deleted");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the group has committed all that is in the topic.
    pub(crate) async fn caught_up(&self, group_id: &str, topic: &str) {
        let begun = Instant::now();
        loop {
            let behind = self.uncommitted(group_id, topic);
            if behind == 0 {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{group_id} is {behind} messages behind in {topic}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Changes the size of the largest batch that a topic takes.
    pub(crate) async fn limit_message_bytes(&self, topic: &str, bytes: usize) {
        self.alter_topic(topic, "max.message.bytes", &bytes.to_string()).await;
    }

    /// Changes one setting of a topic; the others go back to their defaults.
    pub(crate) async fn alter_topic(&self, topic: &str, key: &str, value: &str) {
        self.configure_topic(topic, &[(key, value)]).await;
    }

    /// Gives a topic these settings; the others go back to their defaults.
    pub(crate) async fn configure_topic(&self, topic: &str, settings: &[(&str, &str)]) {
        let admin: AdminClient<_> =
            client_config(&self.config.kafka).create().expect("an admin client");
        let unchanged = AlterConfig::new(ResourceSpecifier::Topic(topic));
        let change = settings.iter().fold(unchanged, |change, (key, value)| change.set(key, value));
        let altered =
            admin.alter_configs(&[change], &AdminOptions::new()).await.expect("the broker");
        assert!(altered.iter().all(Result::is_ok), "{altered:?}");
    }

    /// Has the broker miss a KIP-848 member of the workers' group after six seconds of silence.
    pub(crate) async fn shorten_sessions(&self) {
        let admin: AdminClient<_> =
            client_config(&self.config.kafka).create().expect("an admin client");
        let group = ResourceSpecifier::Group(&self.config.kafka.group_id);
        let change = AlterConfig::new(group).set("consumer.session.timeout.ms", "6000");
        let change = change.set("consumer.heartbeat.interval.ms", "1000");
        let altered =
            admin.alter_configs(&[change], &AdminOptions::new()).await.expect("the broker");
        assert!(altered.iter().all(Result::is_ok), "{altered:?}");
    }

    /// Puts values into a topic as they are.
    pub(crate) async fn produce(&self, topic: &str, values: Vec<(OrderId, Vec<u8>)>) {
        let message = |(id, payload)| Message::of_order(id, payload);
        let producer = Producer::new(&self.config.kafka).expect("a producer");
        producer.produce(topic, values.into_iter().map(message).collect()).await.expect("produced");
    }

    pub(crate) async fn produce_events(&self, events: &[OrderEvent]) {
        let codec = OrderEventCodec::new().expect("the schema");
        let values = events.iter().map(|event| (event.order_id, codec.encode(event)));
        self.produce(&self.config.topics.orders, values.collect()).await;
    }

    /// Reports that an order failed, in somebody's words.
    pub(crate) async fn report_failed(&self, order_id: OrderId, words: &str) {
        self.report(order_id, ReportedStatus::Failed(Reason::parse(words)), "payments").await;
    }

    pub(crate) async fn report(&self, order_id: OrderId, status: ReportedStatus, source: &str) {
        let report = OrderStatus {
            order_id,
            status,
            source: source.to_owned(),
            occurred_at: chrono::Utc::now(),
            reference: None,
        };
        let value = OrderStatusCodec::new().expect("the schema").encode(&report);
        self.produce(&self.config.topics.order_status, vec![(order_id, value)]).await;
    }

    /// What the statuses topic says, in the order of each partition.
    pub(crate) fn read_statuses(&self) -> Vec<OrderStatus> {
        let codec = OrderStatusCodec::new().expect("the schema");
        let read = self.read_topic(&self.config.topics.order_status);
        let now = chrono::Utc::now();
        read.iter().filter_map(|message| codec.decode(message.payload()?, now).ok()).collect()
    }

    pub(crate) fn read_events(&self) -> Vec<OrderEvent> {
        let codec = OrderEventCodec::new().expect("the schema");
        let read = self.read_topic(&self.config.topics.orders);
        read.iter().filter_map(|message| codec.decode(message.payload()?).ok()).collect()
    }
}

/// A header's value, as text.
pub(crate) fn header(message: &OwnedMessage, key: &str) -> Option<String> {
    let found = message.headers()?.iter().find(|header| header.key == key)?;
    Some(String::from_utf8_lossy(found.value?).into_owned())
}

/// An event as the worker gets it from its lane.
pub(crate) fn delivered(event: &OrderEvent) -> OwnedMessage {
    let payload = OrderEventCodec::new().expect("the schema").encode(event);
    OwnedMessage::new(Some(payload), None, "orders".to_owned(), Timestamp::NotAvailable, 0, 0, None)
}
