mod inlet;
mod supervision;

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use inlet::Inlet;
use prometheus::IntCounter;
use rdkafka::{
    Message as _,
    consumer::{CommitMode, Consumer as _},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedMessage,
    topic_partition_list::TopicPartitionList,
};
use supervision::Supervision;

use super::{
    Lane,
    callbacks::ConsumerCallbacks,
    lane::Offsets,
    member::{ConsumerClient, Member},
    partitions::{Partitions, Polled},
};
use crate::{
    backoff::Backoff,
    config::KafkaConfig,
    lifecycle::Shutdown,
    telemetry::{Component, Metrics},
};

/// How long a poll waits for a message.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// The same while a lane is full: its messages are retried before each poll.
const FULL_LANE_POLL_TIMEOUT: Duration = Duration::from_millis(5);
/// How long the poll thread waits for a full lane before it pauses the lane's partitions. A pause
/// costs: the client drops the messages that it has fetched of these partitions, and fetches them
/// again one partition after the other. But other lanes wait too meanwhile.
const FULL_LANE_PATIENCE: Duration = Duration::from_millis(200);
/// The same for the only lane of a consumer.
const ONLY_LANE_PATIENCE: Duration = Duration::from_secs(2);

/// The topic to consume, the group to join, and the number of lanes.
#[derive(Debug, Clone)]
pub struct Subscription<'a> {
    pub group_id: &'a str,
    pub topic: &'a str,
    pub lanes: usize,
}

/// A member of a consumer group. Its poll thread polls all the time, even while its lanes are full,
/// so that the group keeps the member.
#[derive(Debug)]
pub struct Consumer {
    thread: JoinHandle<Result<(), ConsumerError>>,
}

/// Why a consumer did not end in order.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    #[error("another process has the kafka.group_instance_id of this consumer")]
    ShutOut(#[source] KafkaError),
    #[error("the poll thread panicked")]
    Panicked,
}

impl Consumer {
    /// Starts the poll thread, which joins the group. The consumer leaves the group once `shutdown`
    /// is requested and its lanes are dropped.
    ///
    /// Fails if librdkafka rejects the configuration or no thread can be started. Does not fail if
    /// the brokers are away: the client waits for them.
    pub fn start(
        kafka: &KafkaConfig,
        subscription: &Subscription<'_>,
        metrics: &Metrics,
        health: Component,
        shutdown: Shutdown,
    ) -> KafkaResult<(Self, Vec<Lane>)> {
        let partitions = Arc::new(Partitions::new(subscription.lanes));
        let callbacks =
            ConsumerCallbacks::new(subscription.topic, kafka, &partitions, metrics, &health);
        let member = Arc::new(Member::join(kafka, subscription, callbacks)?);
        let (inlets, lanes) = (0..subscription.lanes)
            .map(|lane| {
                let (inlet, messages) = Inlet::open();
                (
                    inlet,
                    Lane {
                        topic: subscription.topic.to_owned(),
                        group_id: subscription.group_id.into(),
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

    /// Waits until the consumer has left its group, for `limit` at most: it cannot leave while the
    /// brokers are away. Call it when the lanes are dropped.
    ///
    /// Fails with
    /// - [`ConsumerError::ShutOut`] if the consumer was shut out of its group before, and
    /// - [`ConsumerError::Panicked`] if the poll thread panicked.
    pub async fn stopped(self, limit: Duration) -> Result<(), ConsumerError> {
        let joining = tokio::task::spawn_blocking(move || self.thread.join());
        match tokio::time::timeout(limit, joining).await {
            Ok(Ok(Ok(polled))) => polled,
            Ok(_) => Err(ConsumerError::Panicked),
            Err(_) => {
                tracing::warn!(
                    "the group was not left in time, messages that are not committed come again"
                );
                Ok(())
            }
        }
    }
}

/// The poll thread.
struct Poller {
    member: Arc<Member>,
    client: ConsumerClient,
    partitions: Arc<Partitions>,
    inlets: Vec<Inlet>,
    supervision: Supervision,
    poll_errors: IntCounter,
    health: Component,
    shutdown: Shutdown,
    runtime: tokio::runtime::Handle,
}

impl Poller {
    /// Polls until the process is to stop, and then leaves the group.
    ///
    /// Fails with [`ConsumerError::ShutOut`] if another process has the `kafka.group_instance_id`,
    /// and then requests the stop of this process.
    fn run(mut self) -> Result<(), ConsumerError> {
        let mut failures = Backoff::default();
        let mut polled = Ok(());
        while !self.shutdown.is_requested() {
            let now = Instant::now();
            self.retry_undelivered();
            self.supervise(now);
            let may_come = |partition| !self.inlets[self.partitions.lane(partition)].is_full();
            let topic = &self.client.context().topic;
            self.partitions.throttle.apply(&self.client, topic, now, may_come);
            let is_any_full = self.inlets.iter().any(Inlet::is_full);
            match self.client.poll(if is_any_full { FULL_LANE_POLL_TIMEOUT } else { POLL_TIMEOUT })
            {
                None => {}
                Some(Ok(message)) => {
                    failures = Backoff::default();
                    self.deliver(message.detach(), now);
                }
                Some(Err(error)) => {
                    if let Err(shut_out) = self.poll_failed(&error) {
                        polled = Err(shut_out);
                    }
                    std::thread::sleep(failures.next_delay().min(POLL_TIMEOUT));
                }
            }
        }
        self.stop();
        polled
    }

    /// Notes a failed poll. The client's error callback has logged it.
    ///
    /// Fails with [`ConsumerError::ShutOut`] if another process has the `kafka.group_instance_id`,
    /// and then requests the stop of this process.
    fn poll_failed(&self, error: &KafkaError) -> Result<(), ConsumerError> {
        self.poll_errors.inc();
        let condition = &self.client.context().condition;
        let fatal = self.client.client().fatal_error();
        let Some((code, reason)) = fatal.filter(|(code, _)| self.is_shut_out(*code)) else {
            condition.poll_failed(error);
            return Ok(());
        };
        tracing::error!(%code, reason, "consumer shut out of its group, stopping");
        self.health.not_ready(reason);
        condition.poll_failed(error);
        self.shutdown.request();
        Err(ConsumerError::ShutOut(KafkaError::MessageConsumptionFatal(code)))
    }

    /// Whether a fatal error says that another process has the `kafka.group_instance_id`.
    fn is_shut_out(&self, code: RDKafkaErrorCode) -> bool {
        match code {
            RDKafkaErrorCode::FencedInstanceId => true,
            // The id may still belong to the client that this one replaced.
            RDKafkaErrorCode::UnreleasedInstanceId => !self.supervision.has_replaced(),
            _ => false,
        }
    }

    /// Gives a message to its lane. If the lane is full, waits a little, then keeps the message and
    /// pauses the lane's partitions. `now` is when the poll began.
    fn deliver(&mut self, message: OwnedMessage, now: Instant) {
        let Some(assignment) = self.admit(&message) else { return };
        let (partition, offset) = (message.partition(), message.offset());
        self.supervision.received(partition, now);
        self.partitions.throttle.add_message(partition, now);
        if let Some(produced_at_ms) = message.timestamp().to_millis() {
            self.client.context().ages.arrived(partition, offset, produced_at_ms);
        }
        let patience = if self.inlets.len() == 1 { ONLY_LANE_PATIENCE } else { FULL_LANE_PATIENCE };
        let lane = self.partitions.lane(partition);
        if self.inlets[lane].deliver(message, assignment, patience, &self.runtime) {
            tracing::debug!(lane, "lane full, pausing its partitions");
            self.set_paused(lane, true);
        }
    }

    /// Returns the assignment to which a polled message belongs, or `None` if the message is to be
    /// dropped: its partition is not owned, or was truncated and is read from an earlier message.
    fn admit(&mut self, message: &OwnedMessage) -> Option<u64> {
        let polled = |partitions: &Partitions| match partitions
            .polled(message.partition(), message.offset())
        {
            Polled::InOrder(assignment) => Ok(assignment),
            other => Err(other),
        };
        match polled(&self.partitions) {
            Ok(assignment) => Some(assignment),
            Err(Polled::Truncated) if self.rewind(message) => polled(&self.partitions).ok(),
            Err(_) => None,
        }
    }

    /// Begins the truncated partition of this message anew. Returns whether this message is the
    /// first one to be handled.
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
                    "partition was truncated, reading it again"
                );
                from == offset
            }
            Err(error) => {
                self.recreate(
                    &format!(
                        "partition {partition} was truncated, and the client did not seek to \
                         {offset} or before: {error}"
                    ),
                    None,
                );
                false
            }
        }
    }

    /// Gives kept messages to their lanes, as far as there is room, and resumes the partitions of
    /// lanes that have room again.
    fn retry_undelivered(&mut self) {
        for lane in 0..self.inlets.len() {
            let inlet = &mut self.inlets[lane];
            if !inlet.is_full() {
                continue;
            }
            inlet.retry();
            if !inlet.is_full() {
                self.set_paused(lane, false);
            }
        }
    }

    /// Pauses or resumes all partitions of a lane. Does not resume partitions that the throttle has
    /// paused.
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

    /// Waits until the lanes have finished and are dropped, commits their offsets, and leaves the
    /// group.
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
