use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use rdkafka::{consumer::Consumer as _, error::RDKafkaErrorCode, metadata::MetadataTopic};

use super::{Inlet, Poller};
use crate::{
    kafka::{
        callbacks::{ConsumerCallbacks, PartitionOffset},
        renewal::{MIN_TOPIC_PAUSE, Pauses, ReachabilityCheck},
        watchdog::Watchdog,
    },
    telemetry::Metrics,
};

/// Time between two passes of the supervision.
const SUPERVISE_EVERY: Duration = Duration::from_secs(1);
/// How often a member without a partition asks the brokers for its topic.
const ASK_TOPIC_EVERY: Duration = Duration::from_secs(5);
/// How long a broker may take to answer. Nothing is polled meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// A pass that has waited for brokers for so long asks about no further partition. Nothing is
/// polled meanwhile.
const MAX_ASKING_PER_PASS: Duration = Duration::from_millis(20);

/// What the poll thread remembers to decide whether the client is to be replaced.
pub(super) struct Supervision {
    watchdog: Watchdog,
    /// When the last pass ended.
    supervised_at: Instant,
    stall_timeout: Duration,
    /// When the client delivered the last message, of any partition.
    last_received_at: Option<Instant>,
    /// When the client was last replaced.
    replaced_at: Option<Instant>,
    pauses: Pauses,
    reachability: ReachabilityCheck,
    /// The partition whose broker did not answer the last question.
    unanswered: Option<i32>,
    topic_asked_at: Instant,
    recreations: IntCounter,
}

impl Supervision {
    pub(super) fn new(stall_timeout: Duration, topic: &str, metrics: &Metrics) -> Self {
        Self {
            watchdog: Watchdog::default(),
            supervised_at: Instant::now(),
            stall_timeout,
            last_received_at: None,
            replaced_at: None,
            pauses: Pauses::default(),
            reachability: ReachabilityCheck::default(),
            unanswered: None,
            topic_asked_at: Instant::now(),
            recreations: metrics.consumer_recreations.with_label_values(&[topic]),
        }
    }

    /// The client delivered a message of the partition.
    pub(super) fn received(&mut self, partition: i32, now: Instant) {
        self.last_received_at = Some(now);
        self.watchdog.received(partition);
    }

    /// Whether the client delivered a message of any partition within half of the stall timeout.
    fn has_anything_come(&self, now: Instant) -> bool {
        self.last_received_at.is_some_and(|received| {
            now.saturating_duration_since(received) < self.stall_timeout / 2
        })
    }

    /// Whether the client may be replaced as its topic was replaced.
    fn may_follow_topic(&self, now: Instant) -> bool {
        self.replaced_at.is_none_or(|at| now.saturating_duration_since(at) >= MIN_TOPIC_PAUSE)
    }

    /// Whether the client was replaced, and the new one is not healthy yet.
    pub(super) fn has_replaced(&self) -> bool {
        self.pauses.replacements() > 0
    }
}

impl Poller {
    /// Replaces the client if it does not recover by itself, that is, if
    /// - its topic was replaced,
    /// - it has a fatal error,
    /// - it reaches no broker, although a new client does, or
    /// - one of its partitions is stalled.
    ///
    /// The poll thread calls it before each poll. It acts once a second at most.
    pub(super) fn supervise(&mut self, now: Instant) {
        if now.duration_since(self.supervision.supervised_at) < SUPERVISE_EVERY {
            return;
        }
        self.health.alive();
        let callbacks = Arc::clone(self.client.context());
        if callbacks.condition.is_healthy() {
            self.supervision.pauses.reset();
        }
        self.check_topic(&callbacks, now);
        self.reset_committed(&callbacks);
        if callbacks.log.is_topic_replaced() && self.supervision.may_follow_topic(now) {
            self.recreate("the topic was replaced by another topic of its name", None);
        } else if self.supervision.pauses.is_over(now) {
            let unreachable_for = callbacks.condition.unreachable_for(now);
            if let Some((code, reason)) = self.client.client().fatal_error() {
                self.recreate(&format!("{code}: {reason}"), None);
            } else if self.supervision.reachability.reaches(
                self.member.query(),
                &callbacks.topic,
                unreachable_for,
            ) {
                self.recreate("it reaches no broker, but a new client does", None);
            } else if let Some(partition) = self.find_stalled(&callbacks, now) {
                self.recreate(&format!("partition {partition} stalled"), Some(partition));
            }
        }
        self.supervision.supervised_at = Instant::now();
    }

    /// Commits the offsets of partitions whose committed offset is beyond their end.
    fn reset_committed(&self, callbacks: &ConsumerCallbacks) {
        for PartitionOffset { partition, offset } in callbacks.find_committed_too_far() {
            tracing::warn!(
                topic = callbacks.topic,
                partition,
                offset,
                "partition was truncated, resetting the committed offset"
            );
            if let Err(error) = self.member.commit(&callbacks.topic, partition, offset) {
                tracing::warn!(partition, offset, %error, "committed offset not reset");
            }
        }
    }

    /// Asks a broker for the topic if the member has no partition of it. Nothing else shows such a
    /// member that its topic was deleted.
    fn check_topic(&mut self, callbacks: &ConsumerCallbacks, now: Instant) {
        if now.duration_since(self.supervision.topic_asked_at) < ASK_TOPIC_EVERY {
            return;
        }
        self.supervision.topic_asked_at = now;
        if !self.partitions.owned().is_empty() {
            return callbacks.condition.set_topic_error(None);
        }
        let Ok(metadata) = self.client.fetch_metadata(Some(&callbacks.topic), ANSWER_TIMEOUT)
        else {
            return;
        };
        let error =
            metadata.topics().first().and_then(MetadataTopic::error).map(RDKafkaErrorCode::from);
        callbacks
            .condition
            .set_topic_error(error.map(|error| format!("topic {}: {error}", callbacks.topic)));
    }

    /// Finds a stalled partition: the broker has messages of it, it is not paused, its lane has
    /// room, and the client delivers nothing of it for `kafka.stall_timeout`.
    fn find_stalled(&mut self, callbacks: &ConsumerCallbacks, now: Instant) -> Option<i32> {
        let has_room = |partition: &i32| {
            let is_full = self.inlets[self.partitions.lane(*partition)].is_full();
            !is_full && !self.partitions.throttle.is_paused(*partition)
        };
        let expected: Vec<_> = self.partitions.owned().into_iter().filter(has_room).collect();
        if self.supervision.unanswered.is_some_and(|partition| {
            self.supervision.watchdog.has_received(partition) || !expected.contains(&partition)
        }) {
            self.supervision.unanswered = None;
            callbacks.condition.set_unanswered(None);
        }
        let silent =
            self.supervision.watchdog.silent(&expected, self.supervision.stall_timeout, now);
        let began = Instant::now();
        for partition in silent {
            if self.is_stalled(callbacks, partition, now) {
                return Some(partition);
            }
            // The next pass asks about the other partitions.
            if began.elapsed() > MAX_ASKING_PER_PASS {
                break;
            }
        }
        None
    }

    /// Asks the broker where a silent partition ends, and returns whether the partition is stalled.
    /// If the broker does not answer, it is away: that is no stall.
    fn is_stalled(&mut self, callbacks: &ConsumerCallbacks, partition: i32, now: Instant) -> bool {
        let asked = self.client.fetch_watermarks(&callbacks.topic, partition, ANSWER_TIMEOUT);
        let supervision = &mut self.supervision;
        let is_first = supervision.unanswered.is_none_or(|unanswered| unanswered == partition);
        supervision.watchdog.asked(partition, now);
        let Ok((_, end)) = asked else {
            supervision.watchdog.is_stalled(partition, false);
            // One partition is asked about more often, to notice soon that the broker is back.
            if is_first {
                supervision.unanswered = Some(partition);
                supervision.watchdog.ask_again(partition, supervision.stall_timeout, now);
                callbacks.condition.set_unanswered(Some(now));
            }
            return false;
        };
        if is_first {
            supervision.unanswered = None;
            callbacks.condition.set_unanswered(None);
        }
        let is_behind = callbacks.is_behind(partition, end, supervision.has_anything_come(now));
        supervision.watchdog.is_stalled(partition, is_behind)
    }

    /// Replaces the client. `stalled` is the partition because of which it is replaced, if any.
    pub(super) fn recreate(&mut self, why: &str, stalled: Option<i32>) {
        let callbacks = Arc::clone(self.client.context());
        tracing::warn!(
            topic = callbacks.topic,
            why,
            replacements = self.supervision.pauses.replacements(),
            "replacing the consumer"
        );
        callbacks.condition.replaced(why, stalled);
        self.supervision.recreations.inc();
        let now = Instant::now();
        self.supervision.pauses.replaced(now);
        (self.supervision.replaced_at, self.supervision.last_received_at) = (Some(now), None);
        (self.supervision.watchdog, self.supervision.reachability, self.supervision.unanswered) =
            (Watchdog::default(), ReachabilityCheck::default(), None);
        drop(callbacks);
        match self.member.replace(&mut self.client, &self.partitions) {
            Ok(()) => self.inlets.iter_mut().for_each(Inlet::clear),
            // The former client continues, or the next pass tries again.
            Err(error) => tracing::error!(%error, "consumer not replaced"),
        }
    }
}
