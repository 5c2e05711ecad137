mod supervision;

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
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{Headers, OwnedMessage},
    topic_partition_list::TopicPartitionList,
};
use supervision::Supervision;
use tokio::sync::{Semaphore, mpsc};

use super::{
    Lane,
    context::Context,
    lane::{Offsets, Received},
    member::{Client, Member},
    partitions::{Partitions, Polled},
};
use crate::{
    backoff::Backoff,
    config::KafkaConfig,
    lifecycle::Shutdown,
    telemetry::{Component, Metrics},
};

/// Memory of the messages that wait in a lane, bytes.
const LANE_BYTES: usize = 8 << 20;
/// What a waiting message costs besides its payload, bytes.
const MESSAGE_OVERHEAD: usize = 256;
const POLL: Duration = Duration::from_millis(100);
/// How long the poll thread waits for a full lane before it pauses the lane's partitions, which makes the client fetch anew what it has
/// fetched of them, the first partition first. Where there are other lanes, they wait too.
const FULL_LANE_PATIENCE: Duration = Duration::from_millis(200);
const ONLY_LANE_PATIENCE: Duration = Duration::from_secs(2);

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
        kafka: &KafkaConfig,
        subscription: &Subscription<'_>,
        metrics: &Metrics,
        health: Component,
        shutdown: Shutdown,
    ) -> KafkaResult<(Self, Vec<Lane>)> {
        let partitions = Arc::new(Partitions::new(subscription.lanes));
        let context = Context::new(subscription.topic, kafka, &partitions, metrics, &health);
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
                        offsets: Offsets {
                            lane,
                            member: Arc::clone(&member),
                            partitions: Arc::clone(&partitions),
                        },
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
            supervision: Supervision::new(kafka.stall_timeout, subscription.topic, metrics),
            poll_errors: metrics.poll_errors.with_label_values(&[subscription.topic]),
            health,
            shutdown,
            runtime: tokio::runtime::Handle::current(),
        };
        let thread =
            std::thread::Builder::new().name("kafka-poll".into()).spawn(move || poller.run());
        let thread = thread.map_err(|e| KafkaError::ClientCreation(e.to_string()))?;
        Ok((Self { thread }, lanes))
    }

    /// Waits until the consumer has left its group, `limit` at most; it cannot leave while the
    /// brokers are away. Call it when the lanes are dropped. Fails where the client could not go
    /// on, for instance because another process has its `kafka.group_instance_id`, and where the
    /// poll thread has panicked.
    pub async fn stopped(self, limit: Duration) -> std::io::Result<()> {
        let joining = tokio::task::spawn_blocking(move || self.thread.join());
        match tokio::time::timeout(limit, joining).await {
            Ok(Ok(Ok(polled))) => return polled.map_err(std::io::Error::other),
            Ok(_) => return Err(std::io::Error::other("the poll thread panicked")),
            Err(_) => {
                tracing::warn!(
                    "the group was not left in time; what was not committed comes again"
                );
            }
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
    supervision: Supervision,
    poll_errors: IntCounter,
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
            let now = Instant::now();
            self.retry_waiting();
            self.supervise(now);
            let may_come =
                |partition| self.inlets[self.partitions.lane(partition)].waiting.is_empty();
            self.partitions.throttle.apply(
                &self.client,
                &self.client.context().topic,
                now,
                may_come,
            );
            let any_waiting = self.inlets.iter().any(|inlet| !inlet.waiting.is_empty());
            match self.client.poll(if any_waiting { Duration::from_millis(5) } else { POLL }) {
                None => {}
                Some(Ok(message)) => {
                    failures = Backoff::default();
                    self.deliver(message.detach(), now);
                }
                Some(Err(error)) => {
                    self.poll_errors.inc();
                    if let Some((code, reason)) = self.fence() {
                        tracing::error!(%code, reason, "the group cannot be consumed");
                        self.health.not_ready(reason);
                        self.shutdown.request();
                        polled = Err(KafkaError::MessageConsumptionFatal(code));
                    }
                    // The context has written it.
                    self.client.context().condition.poll_failed(&error);
                    std::thread::sleep(failures.next_delay().min(POLL));
                }
            }
        }
        self.stop();
        polled
    }

    /// The error of a client that is shut out of its group, since another process has its
    /// `kafka.group_instance_id`.
    fn fence(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.client.client().fatal_error().filter(|(code, _)| match code {
            RDKafkaErrorCode::FencedInstanceId => true,
            // The name may still be that of the client that this one replaced.
            RDKafkaErrorCode::UnreleasedInstanceId => !self.supervision.has_replaced(),
            _ => false,
        })
    }

    /// Gives a message to its lane; `now` is when the poll began.
    fn deliver(&mut self, message: OwnedMessage, now: Instant) {
        let assignment = match self.partitions.polled(message.partition(), message.offset()) {
            Polled::InOrder(assignment) => assignment,
            Polled::Truncated => {
                if !self.rewind(&message) {
                    // It comes again.
                    return;
                }
                let Polled::InOrder(assignment) =
                    self.partitions.polled(message.partition(), message.offset())
                else {
                    return;
                };
                assignment
            }
            Polled::Unowned => return,
        };
        let lane = self.partitions.lane(message.partition());
        self.supervision.heard(message.partition(), now);
        self.partitions.throttle.add_message(message.partition(), now);
        if let Some(produced_at) = message.timestamp().to_millis() {
            self.client.context().ages.arrived(message.partition(), message.offset(), produced_at);
        }
        let patience = if self.inlets.len() == 1 { ONLY_LANE_PATIENCE } else { FULL_LANE_PATIENCE };
        let inlet = &mut self.inlets[lane];
        if inlet.waiting.is_empty() {
            let cost = cost(&message);
            let memory =
                Arc::clone(&inlet.memory).try_acquire_many_owned(cost).ok().or_else(|| {
                    let memory = Arc::clone(&inlet.memory).acquire_many_owned(cost);
                    let waited = self
                        .runtime
                        .block_on(async { tokio::time::timeout(patience, memory).await });
                    waited.ok()?.ok()
                });
            if let Some(memory) = memory {
                return inlet.accept(message, assignment, memory);
            }
        }
        inlet.waiting.push_back(Waiting { message, assignment });
        tracing::debug!(
            lane,
            waiting = inlet.waiting.len(),
            "the lane is full, its partitions are paused"
        );
        self.set_paused(lane, true);
    }

    /// Begins a truncated partition again, of which this message came. Returns whether the message
    /// is the first to be handled.
    fn rewind(&mut self, message: &OwnedMessage) -> bool {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        self.client.context().ages.forget(partition);
        match self.member.rewind(&self.partitions, topic, partition, offset) {
            Ok(from) => {
                tracing::warn!(
                    topic,
                    partition,
                    offset,
                    from,
                    "the partition was truncated, it is read again"
                );
                from == offset
            }
            Err(error) => {
                self.recreate(
                    &format!(
                        "partition {partition} was truncated, no seek to undone messages: {error}"
                    ),
                    None,
                );
                false
            }
        }
    }

    fn retry_waiting(&mut self) {
        for lane in 0..self.inlets.len() {
            let inlet = &mut self.inlets[lane];
            if inlet.waiting.is_empty() {
                continue;
            }
            while let Some(next) = inlet.waiting.front() {
                let Ok(memory) =
                    Arc::clone(&inlet.memory).try_acquire_many_owned(cost(&next.message))
                else {
                    break;
                };
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

    /// Lets the lanes finish what they hold, and leaves the group with their offsets committed.
    fn stop(self) {
        let Self { member, client, inlets, health, .. } = self;
        drop(inlets);
        while Arc::strong_count(&member) > 1 {
            health.alive();
            std::thread::sleep(Duration::from_millis(10));
        }
        match client.commit_consumer_state(CommitMode::Sync) {
            Ok(())
            | Err(KafkaError::ConsumerCommit(rdkafka::error::RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => {
                tracing::warn!(%error, "offsets not committed, their messages will come again");
            }
        }
    }
}

impl Inlet {
    fn accept(
        &self,
        message: OwnedMessage,
        assignment: u64,
        memory: tokio::sync::OwnedSemaphorePermit,
    ) {
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
    let bytes = MESSAGE_OVERHEAD
        + message.payload().map_or(0, <[u8]>::len)
        + message.key().map_or(0, <[u8]>::len)
        + headers;
    u32::try_from(bytes.min(LANE_BYTES)).unwrap_or(u32::MAX)
}
