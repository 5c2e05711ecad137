use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::Utc;
use rdkafka::{
    ClientContext, Statistics,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance},
    error::KafkaError,
    statistics,
    topic_partition_list::{TopicPartitionList, TopicPartitionListElem},
};

use super::{ages::Ages, partitions::Partitions};
use crate::telemetry::{Component, Metrics, STARTING};

/// Why a member is not ready whose session was over.
const LOST: &str = "partitions lost";
/// How the reasons begin for which a client is replaced.
const REPLACED: &str = "the consumer is replaced";
/// How the statistics call the broker that coordinates the group.
const COORDINATOR: &str = "GroupCoordinator";

/// How long a revocation waits for batches in hand, at most; nothing is polled meanwhile, which the group allows for
/// `kafka.max_poll_interval`. Of partitions that are lost nothing is waited for: another may have them already, and
/// their offsets are not taken any more.
const LONGEST_DRAIN: Duration = Duration::from_secs(15);

/// Messages not yet handled. While a group has committed nothing, which librdkafka calls a lag of -1, that is all there are:
/// it begins at the earliest.
fn lag(partition: &statistics::Partition) -> Option<i64> {
    let (low, high) = (partition.lo_offset, partition.hi_offset);
    let all = (low >= 0 && high >= low).then(|| high - low);
    if partition.consumer_lag >= 0 { Some(partition.consumer_lag) } else { all }
}

/// What librdkafka calls back on the poll thread.
pub struct Context {
    pub topic: String,
    pub partitions: Arc<Partitions>,
    pub metrics: Metrics,
    pub health: Component,
    max_poll_interval: Duration,
    fetched: Mutex<HashMap<i32, Fetched>>,
    pub ages: Ages,
    heartbeats: Heartbeats,
    /// Another client has taken over: what becomes of this one's partitions means nothing.
    retired: AtomicBool,
}

/// How many heartbeats the coordinator has answered, as of the last statistics, and as of the loss
/// of the partitions.
#[derive(Debug, Default)]
struct Heartbeats {
    answered: AtomicI64,
    before_loss: AtomicI64,
}

impl Heartbeats {
    fn lose(&self) {
        // One or two may have been answered since the last statistics: the next ones have to be
        // beyond.
        self.before_loss.store(self.answered.load(Ordering::SeqCst) + 2, Ordering::SeqCst);
    }
}

/// Answers of the coordinator to a member under KIP-848. The statistics count all requests, and
/// apart those of each kind but this one.
fn heartbeats_answered(coordinator: &statistics::Broker) -> i64 {
    let of_other_kinds: i64 = coordinator.req.values().sum();
    i64::try_from(coordinator.rx).unwrap_or(i64::MAX) - of_other_kinds
}

/// How far a partition is fetched, as of the last statistics.
#[derive(Debug, Clone, Copy)]
struct Fetched {
    next_offset: i64,
    /// Messages that are fetched and were not polled yet.
    queued: i64,
}

impl Context {
    pub fn new(
        topic: &str,
        max_poll_interval: Duration,
        partitions: &Arc<Partitions>,
        metrics: &Metrics,
        health: &Component,
    ) -> Self {
        Self {
            topic: topic.to_owned(),
            max_poll_interval,
            partitions: Arc::clone(partitions),
            metrics: metrics.clone(),
            health: health.clone(),
            fetched: Mutex::default(),
            ages: Ages::default(),
            heartbeats: Heartbeats::default(),
            retired: AtomicBool::new(false),
        }
    }

    /// The context of a client that takes over.
    pub fn successor(&self) -> Self {
        Self::new(&self.topic, self.max_poll_interval, &self.partitions, &self.metrics, &self.health)
    }

    /// Shows no lag of partitions that are another's now.
    pub fn forget_lag(&self, partitions: &[i32]) {
        for partition in partitions {
            self.metrics.forget_lag(&self.topic, *partition);
            self.ages.forget(*partition);
        }
    }

    /// Shows the age of the first message that is not handled.
    fn show_age(&self, partition: i32, state: &statistics::Partition, lag: i64) {
        let known = [state.stored_offset, state.committed_offset, state.lo_offset];
        let age = match known.into_iter().find(|offset| *offset >= 0) {
            Some(next) if lag > 0 => self.ages.of(partition, next, Utc::now().timestamp_millis(), Instant::now()),
            _ => {
                self.ages.forget(partition);
                Duration::ZERO
            }
        };
        let gauge = &self.metrics.consumer_lag_seconds;
        gauge.with_label_values(&[&self.topic, &partition.to_string()]).set(age.as_secs_f64());
    }

    /// A member that gets no partition is not called back where the broker assigns (KIP-848). It is
    /// ready once the coordinator has answered a heartbeat.
    fn note_membership(&self, statistics: &Statistics) {
        let answered = statistics.brokers.get(COORDINATOR).map_or(0, heartbeats_answered);
        self.heartbeats.answered.store(answered, Ordering::SeqCst);
        let is_joined = statistics.cgrp.as_ref().is_some_and(|group| group.state == "up");
        if is_joined && answered >= self.heartbeats.before_loss.load(Ordering::SeqCst) + 2 {
            self.health.clear(&[STARTING, LOST, REPLACED]);
        }
    }

    pub fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }

    /// Whether a partition that ends at this offset has messages that were not polled.
    pub fn is_behind(&self, partition: i32, end: i64) -> bool {
        let fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.get(&partition).is_some_and(|fetched| fetched.next_offset < end || fetched.queued > 0)
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        if self.retired.load(Ordering::SeqCst) {
            return;
        }
        self.note_membership(&statistics);
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        for (partition, state) in &topic.partitions {
            fetched.insert(*partition, Fetched { next_offset: state.next_offset, queued: state.fetchq_cnt });
            if let Some(lag) = lag(state).filter(|_| self.partitions.assignment(*partition).is_some()) {
                let gauge = &self.metrics.consumer_lag;
                gauge.with_label_values(&[&self.topic, &partition.to_string()]).set(lag);
                self.show_age(*partition, state, lag);
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
        if self.retired.load(Ordering::SeqCst) {
            return;
        }
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
                let (kind, deadline) = if is_lost {
                    ("lost", Duration::ZERO)
                } else {
                    ("revoke", LONGEST_DRAIN.min(self.max_poll_interval / 2))
                };
                let partitions = ids(list);
                let drained = self.partitions.revoke(&partitions, deadline);
                // librdkafka would remember that a partition is paused until it comes back.
                if let Err(error) = consumer.resume(list) {
                    tracing::warn!(topic = self.topic, ?partitions, %error, "partitions not resumed");
                }
                if is_lost {
                    self.heartbeats.lose();
                    self.health.not_ready(LOST);
                }
                tracing::info!(topic = self.topic, ?partitions, kind, drained, "partitions taken away");
                self.metrics.rebalances.with_label_values(&[kind]).inc();
                self.forget_lag(&partitions);
            }
            Rebalance::Error(error) => tracing::warn!(topic = self.topic, %error, "rebalance failed"),
        }
    }
}

fn ids(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(TopicPartitionListElem::partition).collect()
}
