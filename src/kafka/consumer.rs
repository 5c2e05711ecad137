use std::{collections::VecDeque, sync::Arc, thread::JoinHandle, time::Duration};

use rdkafka::{
    ClientContext, Message as _, Statistics,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance},
    error::{KafkaError, KafkaResult},
    message::{Headers, OwnedMessage},
    statistics,
    topic_partition_list::TopicPartitionList,
};
use tokio::sync::{Semaphore, mpsc};

use super::{
    Lane, client_config,
    lane::{Offsets, Received},
    partitions::Partitions,
};
use crate::{
    backoff::Backoff,
    config::{GroupProtocol, Kafka},
    lifecycle::Shutdown,
    telemetry::{Component, Metrics},
};

/// Memory of the messages that wait in a lane, bytes.
const LANE_BYTES: usize = 16 << 20;
/// What a waiting message costs besides its payload, bytes.
const MESSAGE_OVERHEAD: usize = 256;
const POLL: Duration = Duration::from_millis(100);
/// How long the poll thread waits for a full lane before it pauses the lane's partitions.
const FULL_LANE_PATIENCE: Duration = Duration::from_millis(200);
/// How long a revocation waits for batches in hand. Of partitions that are lost nothing is waited for: another may have them already, and
/// their offsets are not taken any more.
const DRAIN_DEADLINE: Duration = Duration::from_secs(15);
/// How long a consumer may take to leave its group, which it cannot while the brokers are away.
const LEAVE_DEADLINE: Duration = Duration::from_secs(20);

/// What to consume, and as whom.
#[derive(Debug, Clone)]
pub struct Subscription<'a> {
    pub group_id: &'a str,
    pub topic: &'a str,
    pub lanes: usize,
}

/// A member of a consumer group: a thread that never stops polling, whatever its lanes are doing.
#[derive(Debug)]
pub struct Consumer {
    thread: JoinHandle<KafkaResult<()>>,
}

impl Consumer {
    /// Joins the group. The consumer leaves it once `shutdown` is requested and its lanes are dropped. Fails where the configuration is
    /// refused; brokers that cannot be reached are waited for.
    pub fn start(
        kafka: &Kafka,
        subscription: &Subscription<'_>,
        metrics: &Metrics,
        health: Component,
        shutdown: Shutdown,
    ) -> KafkaResult<(Self, Vec<Lane>)> {
        let partitions = Arc::new(Partitions::new(subscription.lanes));
        let context = Context {
            topic: subscription.topic.to_owned(),
            partitions: Arc::clone(&partitions),
            metrics: metrics.clone(),
            health: health.clone(),
        };
        let consumer = Arc::new(create(kafka, subscription, context)?);
        consumer.subscribe(&[subscription.topic])?;
        let (inlets, lanes) = (0..subscription.lanes)
            .map(|lane| {
                let (sender, messages) = mpsc::unbounded_channel();
                let memory = Arc::new(Semaphore::new(LANE_BYTES));
                let inlet = Inlet { sender, memory, waiting: VecDeque::new() };
                (
                    inlet,
                    Lane {
                        topic: subscription.topic.to_owned(),
                        messages,
                        partitions: Arc::clone(&partitions),
                        offsets: Offsets { lane, consumer: Arc::clone(&consumer), partitions: Arc::clone(&partitions) },
                        shutdown: shutdown.clone(),
                    },
                )
            })
            .unzip();
        let poller =
            Poller { consumer, partitions, inlets, health, shutdown, runtime: tokio::runtime::Handle::current() };
        let thread = std::thread::Builder::new().name("kafka-poll".into()).spawn(move || poller.run());
        let thread = thread.map_err(|e| KafkaError::ClientCreation(e.to_string()))?;
        Ok((Self { thread }, lanes))
    }

    /// Waits until the consumer has left its group, 20 s at most; call it when the lanes are dropped. Fails where the client could not go
    /// on, for instance because another process has its `kafka.group_instance_id`, and where the poll thread has panicked.
    pub async fn stopped(self) -> std::io::Result<()> {
        let joining = tokio::task::spawn_blocking(move || self.thread.join());
        match tokio::time::timeout(LEAVE_DEADLINE, joining).await {
            Ok(Ok(Ok(polled))) => return polled.map_err(std::io::Error::other),
            Ok(_) => return Err(std::io::Error::other("the poll thread panicked")),
            Err(_) => tracing::warn!("the group was not left in time; what was not committed comes again"),
        }
        Ok(())
    }
}

fn create(kafka: &Kafka, subscription: &Subscription<'_>, context: Context) -> KafkaResult<BaseConsumer<Context>> {
    let mut client = client_config(kafka);
    let millis = |duration: Duration| duration.as_millis().to_string();
    client
        .set("group.id", subscription.group_id)
        .set("max.poll.interval.ms", millis(kafka.max_poll_interval))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        .set("enable.auto.offset.store", "false")
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.wait.max.ms", "50")
        .set("statistics.interval.ms", "5000");
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
    BaseConsumer::from_config_and_context(&client, context)
}

/// Messages not yet handled. While a group has committed nothing, which librdkafka calls a lag of -1, that is all there are:
/// it begins at the earliest.
fn lag(partition: &statistics::Partition) -> Option<i64> {
    let (low, high) = (partition.lo_offset, partition.hi_offset);
    let all = (low >= 0 && high >= low).then(|| high - low);
    if partition.consumer_lag >= 0 { Some(partition.consumer_lag) } else { all }
}

/// What librdkafka calls back on the poll thread.
pub struct Context {
    topic: String,
    partitions: Arc<Partitions>,
    metrics: Metrics,
    health: Component,
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        for (partition, state) in &topic.partitions {
            if let Some(lag) = lag(state).filter(|_| self.partitions.assignment(*partition).is_some()) {
                let gauge = &self.metrics.consumer_lag;
                gauge.with_label_values(&[&self.topic, &partition.to_string()]).set(lag);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.metrics.retries.with_label_values(&["kafka"]).inc();
        tracing::warn!(%error, reason, "kafka");
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                let partitions = ids(list);
                tracing::info!(topic = self.topic, ?partitions, "partitions assigned");
                self.metrics.rebalances.with_label_values(&["assign"]).inc();
                self.partitions.assign(&partitions);
                self.health.ready();
            }
            Rebalance::Revoke(list) => {
                let is_lost = consumer.assignment_lost();
                let (kind, deadline) = if is_lost { ("lost", Duration::ZERO) } else { ("revoke", DRAIN_DEADLINE) };
                let partitions = ids(list);
                let drained = self.partitions.revoke(&partitions, deadline);
                // librdkafka would remember that a partition is paused until it comes back.
                if let Err(error) = consumer.resume(list) {
                    tracing::warn!(topic = self.topic, ?partitions, %error, "partitions not resumed");
                }
                if is_lost {
                    self.health.not_ready("partitions lost");
                }
                tracing::info!(topic = self.topic, ?partitions, kind, drained, "partitions taken away");
                self.metrics.rebalances.with_label_values(&[kind]).inc();
                for partition in &partitions {
                    let _absent = self.metrics.consumer_lag.remove_label_values(&[&self.topic, &partition.to_string()]);
                }
            }
            Rebalance::Error(error) => tracing::warn!(topic = self.topic, %error, "rebalance failed"),
        }
    }
}

fn ids(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(rdkafka::topic_partition_list::TopicPartitionListElem::partition).collect()
}

/// The poll thread's end of a lane.
struct Inlet {
    sender: mpsc::UnboundedSender<Received>,
    memory: Arc<Semaphore>,
    /// Messages that found the lane full; while there are any, the lane's partitions are paused. (More than one: partitions that
    /// are assigned meanwhile are not paused yet.)
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    message: OwnedMessage,
    assignment: u64,
}

struct Poller {
    consumer: Arc<BaseConsumer<Context>>,
    partitions: Arc<Partitions>,
    inlets: Vec<Inlet>,
    health: Component,
    shutdown: Shutdown,
    runtime: tokio::runtime::Handle,
}

impl Poller {
    /// Polls until the process is to stop. An error that the client does not recover from stops the process, and is the answer.
    fn run(mut self) -> KafkaResult<()> {
        let mut failures = Backoff::default();
        let mut polled = Ok(());
        while !self.shutdown.is_requested() {
            self.health.alive();
            self.retry_waiting();
            let any_waiting = self.inlets.iter().any(|inlet| !inlet.waiting.is_empty());
            match self.consumer.poll(if any_waiting { Duration::from_millis(5) } else { POLL }) {
                None => {}
                Some(Ok(message)) => {
                    failures = Backoff::default();
                    self.deliver(message.detach());
                }
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                    tracing::error!(%error, "the group cannot be consumed");
                    self.health.not_ready(error.to_string());
                    self.shutdown.request();
                    polled = Err(error);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "poll failed");
                    std::thread::sleep(failures.next_delay().min(POLL));
                }
            }
        }
        self.stop();
        polled
    }

    fn deliver(&mut self, message: OwnedMessage) {
        let Some(assignment) = self.partitions.assignment(message.partition()) else { return };
        let lane = self.partitions.lane(message.partition());
        let inlet = &mut self.inlets[lane];
        if inlet.waiting.is_empty() {
            let cost = cost(&message);
            let memory = Arc::clone(&inlet.memory).try_acquire_many_owned(cost).ok().or_else(|| {
                let memory = Arc::clone(&inlet.memory).acquire_many_owned(cost);
                let waited = self.runtime.block_on(async { tokio::time::timeout(FULL_LANE_PATIENCE, memory).await });
                waited.ok()?.ok()
            });
            if let Some(memory) = memory {
                return inlet.accept(message, assignment, memory);
            }
        }
        inlet.waiting.push_back(Waiting { message, assignment });
        tracing::debug!(lane, waiting = inlet.waiting.len(), "the lane is full, its partitions are paused");
        self.set_paused(lane, true);
    }

    fn retry_waiting(&mut self) {
        for lane in 0..self.inlets.len() {
            let inlet = &mut self.inlets[lane];
            if inlet.waiting.is_empty() {
                continue;
            }
            while let Some(next) = inlet.waiting.front() {
                let Ok(memory) = Arc::clone(&inlet.memory).try_acquire_many_owned(cost(&next.message)) else { break };
                if let Some(Waiting { message, assignment }) = inlet.waiting.pop_front() {
                    inlet.accept(message, assignment, memory);
                }
            }
            if inlet.waiting.is_empty() {
                self.set_paused(lane, false);
            }
        }
    }

    /// Pauses or resumes all partitions of a lane.
    fn set_paused(&self, lane: usize, paused: bool) {
        let Ok(assigned) = self.consumer.assignment() else { return };
        let mut of_lane = TopicPartitionList::new();
        for element in assigned.elements() {
            if self.partitions.lane(element.partition()) == lane {
                of_lane.add_partition(element.topic(), element.partition());
            }
        }
        let done = if paused { self.consumer.pause(&of_lane) } else { self.consumer.resume(&of_lane) };
        if let Err(error) = done {
            tracing::warn!(lane, paused, %error, "partitions not paused or resumed");
        }
    }

    /// Lets the lanes finish what they hold, and leaves the group with their offsets committed.
    fn stop(self) {
        let Self { consumer, inlets, health, .. } = self;
        drop(inlets);
        while Arc::strong_count(&consumer) > 1 {
            health.alive();
            std::thread::sleep(Duration::from_millis(10));
        }
        match consumer.commit_consumer_state(CommitMode::Sync) {
            Ok(()) | Err(KafkaError::ConsumerCommit(rdkafka::error::RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => tracing::warn!(%error, "offsets not committed, their messages will come again"),
        }
    }
}

impl Inlet {
    fn accept(&self, message: OwnedMessage, assignment: u64, memory: tokio::sync::OwnedSemaphorePermit) {
        let received = Received { message, assignment, _memory: memory };
        if self.sender.send(received).is_err() {
            tracing::debug!("the lane is gone");
        }
    }
}

/// A message's share of its lane's memory; one larger than the lane may have all of it.
fn cost(message: &OwnedMessage) -> u32 {
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    let headers: usize = headers.map(|h| h.key.len() + h.value.map_or(0, <[u8]>::len)).sum();
    let bytes =
        MESSAGE_OVERHEAD + message.payload().map_or(0, <[u8]>::len) + message.key().map_or(0, <[u8]>::len) + headers;
    u32::try_from(bytes.min(LANE_BYTES)).unwrap_or(u32::MAX)
}
