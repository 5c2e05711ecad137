use std::{
    collections::VecDeque,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use rdkafka::{
    Message as _,
    consumer::{CommitMode, Consumer as _},
    error::{KafkaError, KafkaResult},
    message::{Headers, OwnedMessage},
    topic_partition_list::TopicPartitionList,
};
use tokio::sync::{Semaphore, mpsc};

use super::{
    Lane,
    context::Context,
    lane::{Offsets, Received},
    member::{Client, Member},
    partitions::Partitions,
    watchdog::Watchdog,
};
use crate::{
    backoff::Backoff,
    config::Kafka,
    lifecycle::Shutdown,
    telemetry::{Component, Metrics},
};

/// Memory of the messages that wait in a lane, bytes.
const LANE_BYTES: usize = 8 << 20;
/// What a waiting message costs besides its payload, bytes.
const MESSAGE_OVERHEAD: usize = 256;
const POLL: Duration = Duration::from_millis(100);
/// How often the partitions are looked at.
const WATCH: Duration = Duration::from_secs(1);
/// How long the broker may take to say where a partition ends.
const ASK_END: Duration = Duration::from_millis(500);
/// How long the poll thread waits for a full lane before it pauses the lane's partitions, which makes the client fetch anew what it has
/// fetched of them, the first partition first. Where there are other lanes, they wait too.
const FULL_LANE_PATIENCE: Duration = Duration::from_millis(200);
const ONLY_LANE_PATIENCE: Duration = Duration::from_secs(2);
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
        let context = Context::new(subscription.topic, kafka.max_poll_interval, &partitions, metrics, &health);
        let member = Arc::new(Member::join(kafka, subscription, context)?);
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
                        offsets: Offsets { lane, member: Arc::clone(&member), partitions: Arc::clone(&partitions) },
                        shutdown: shutdown.clone(),
                        closed_at: tokio::time::Instant::now(),
                    },
                )
            })
            .unzip();
        let poller = Poller {
            client: member.client(),
            member,
            partitions,
            inlets,
            watchdog: Watchdog::default(),
            watched: Instant::now(),
            stall_timeout: kafka.stall_timeout,
            recreations: metrics.consumer_recreations.with_label_values(&[subscription.topic]),
            health,
            shutdown,
            runtime: tokio::runtime::Handle::current(),
        };
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
    member: Arc<Member>,
    client: Client,
    partitions: Arc<Partitions>,
    inlets: Vec<Inlet>,
    watchdog: Watchdog,
    /// When the partitions were last looked at.
    watched: Instant,
    stall_timeout: Duration,
    recreations: IntCounter,
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
            self.watch();
            let may_come = |partition| self.inlets[self.partitions.lane(partition)].waiting.is_empty();
            self.partitions.throttle.apply(&self.client, &self.client.context().topic, may_come);
            let any_waiting = self.inlets.iter().any(|inlet| !inlet.waiting.is_empty());
            match self.client.poll(if any_waiting { Duration::from_millis(5) } else { POLL }) {
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
        self.watchdog.heard(message.partition());
        self.partitions.throttle.add_message(message.partition());
        let patience = if self.inlets.len() == 1 { ONLY_LANE_PATIENCE } else { FULL_LANE_PATIENCE };
        let inlet = &mut self.inlets[lane];
        if inlet.waiting.is_empty() {
            let cost = cost(&message);
            let memory = Arc::clone(&inlet.memory).try_acquire_many_owned(cost).ok().or_else(|| {
                let memory = Arc::clone(&inlet.memory).acquire_many_owned(cost);
                let waited = self.runtime.block_on(async { tokio::time::timeout(patience, memory).await });
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
        let Ok(assigned) = self.client.assignment() else { return };
        let mut of_lane = TopicPartitionList::new();
        for element in assigned.elements() {
            let is_throttled = self.partitions.throttle.is_paused(element.partition());
            if self.partitions.lane(element.partition()) == lane && (paused || !is_throttled) {
                of_lane.add_partition(element.topic(), element.partition());
            }
        }
        let done = if paused { self.client.pause(&of_lane) } else { self.client.resume(&of_lane) };
        if let Err(error) = done {
            tracing::warn!(lane, paused, %error, "partitions not paused or resumed");
        }
    }

    /// Replaces a client of which nothing comes although there is something, and although its lane has room.
    fn watch(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.watched) < WATCH {
            return;
        }
        let has_room = |partition: &i32| {
            let inlet = &self.inlets[self.partitions.lane(*partition)];
            inlet.waiting.is_empty() && !self.partitions.throttle.is_paused(*partition)
        };
        let expected: Vec<_> = self.partitions.owned().into_iter().filter(has_room).collect();
        for partition in self.watchdog.silent(&expected, self.stall_timeout, now) {
            let context = self.client.context();
            // A broker that does not answer is away, and no other client would help; nothing is polled while it is asked.
            let Ok((_, end)) = self.client.fetch_watermarks(&context.topic, partition, ASK_END) else {
                self.watchdog.is_stalled(partition, false);
                break;
            };
            let is_behind = context.is_behind(partition, end);
            if self.watchdog.is_stalled(partition, is_behind) {
                tracing::warn!(
                    topic = context.topic,
                    partition,
                    "nothing comes although there is something: the consumer is replaced"
                );
                self.recreate();
                break;
            }
        }
        self.watched = Instant::now();
    }

    fn recreate(&mut self) {
        self.health.not_ready("the consumer is replaced, as a partition has stalled");
        self.recreations.inc();
        self.watchdog = Watchdog::default();
        match self.member.replace(&mut self.client, &self.partitions) {
            Ok(()) => self.inlets.iter_mut().for_each(|inlet| inlet.waiting.clear()),
            // The former client goes on, or another stall brings the next attempt.
            Err(error) => tracing::error!(%error, "the consumer cannot be replaced"),
        }
    }

    /// Lets the lanes finish what they hold, and leaves the group with their offsets committed.
    fn stop(self) {
        let Self { member, client, inlets, health, .. } = self;
        drop(inlets);
        while Arc::strong_count(&member) > 1 {
            health.alive();
            std::thread::sleep(Duration::from_millis(10));
        }
        match client.commit_consumer_state(CommitMode::Sync) {
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
