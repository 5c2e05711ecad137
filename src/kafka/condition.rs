use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    Statistics,
    error::{KafkaError, RDKafkaErrorCode},
    statistics,
};

use crate::{config::GroupProtocol, telemetry::Component};

/// Statistics in a row that must agree: a single one may be of a connection that is being renewed.
const CONFIRMATIONS: u32 = 2;
/// How long questions stay unanswered before that is a complaint. One answer may be slow.
const UNANSWERED_AFTER: Duration = Duration::from_secs(5);
/// States of a broker in which it answers.
const STATES_UP: [&str; 2] = ["UP", "REAUTH"];
/// How long a member of the broker's protocol without a partition talks to its coordinator before
/// it counts as joined, milliseconds.
const IDLE_MEMBER_AFTER_MS: i64 = 3000;
/// The same of a client that replaced another one, whose partitions come to it when the broker has
/// missed the former one for long enough, milliseconds.
const IDLE_REPLACEMENT_AFTER_MS: i64 = 60_000;

/// Whether a member of a group can do its work, for `/readyz`: it has joined, its brokers answer,
/// its partitions are fetched.
#[derive(Debug)]
pub(super) struct Condition {
    topic: String,
    protocol: GroupProtocol,
    health: Component,
    state: Mutex<Observations>,
}

#[derive(Debug, Default)]
struct Observations {
    /// Why the member is out of its group, or `None` while it is in it.
    outside: Option<String>,
    has_joined: bool,
    is_replacement: bool,
    /// The last error of a poll, until the statistics show that every partition is fetched again.
    error: Option<String>,
    /// What the brokers say of the topic as a whole, where it is not there or may not be seen.
    topic_error: Option<String>,
    fault: Option<ObservedFault>,
    /// Since when a broker has left questions unanswered that is taken for connected.
    unanswered_since: Option<Instant>,
    statistics_in_order: u32,
    /// Partitions that stalled, until they make progress.
    stalled: Vec<i32>,
    /// Next offset to fetch of each partition, as of the last statistics.
    positions: HashMap<i32, i64>,
}

/// A fault that the statistics show.
#[derive(Debug)]
struct ObservedFault {
    fault: Fault,
    since: Instant,
    statistics: u32,
}

/// Why a partition cannot be consumed at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The client reaches no broker for it; a new client might.
    Unreachable(String),
    /// The broker answers and refuses.
    FetchRefused(String),
}

impl Fault {
    fn text(&self) -> &str {
        match self {
            Self::Unreachable(text) | Self::FetchRefused(text) => text,
        }
    }
}

impl Condition {
    pub(super) fn new(topic: &str, protocol: GroupProtocol, health: &Component) -> Self {
        Self { topic: topic.to_owned(), protocol, health: health.clone(), state: Mutex::default() }
    }

    /// The group has admitted the member, with or without partitions.
    pub(super) fn joined(&self) {
        let mut state = self.lock();
        (state.has_joined, state.outside) = (true, None);
        self.report(&state);
    }

    /// The member is out of its group, and joins again.
    pub(super) fn left(&self, why: &str) {
        let mut state = self.lock();
        (state.has_joined, state.outside) = (false, Some(why.to_owned()));
        self.report(&state);
    }

    /// Another client takes over. A partition that stalled stays a complaint until it makes
    /// progress.
    pub(super) fn replaced(&self, why: &str, stalled: Option<i32>) {
        let mut state = self.lock();
        (state.has_joined, state.outside) =
            (false, Some(format!("the consumer is replaced: {why}")));
        state.is_replacement = true;
        (state.fault, state.unanswered_since, state.statistics_in_order) = (None, None, 0);
        state.positions.clear();
        if let Some(partition) = stalled.filter(|partition| !state.stalled.contains(partition)) {
            state.stalled.push(partition);
        }
        self.report(&state);
    }

    /// Partitions went to other members, in order.
    pub(super) fn revoked(&self, partitions: &[i32]) {
        let mut state = self.lock();
        state.stalled.retain(|stalled| !partitions.contains(stalled));
        self.report(&state);
    }

    /// A poll failed. What a single connection says means nothing: the statistics show whether
    /// brokers are away.
    pub(super) fn poll_failed(&self, error: &KafkaError) {
        let is_of_connection = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::Resolve
                    | RDKafkaErrorCode::OperationTimedOut
                    | RDKafkaErrorCode::PollExceeded
            )
        );
        if !is_of_connection {
            let mut state = self.lock();
            (state.error, state.statistics_in_order) = (Some(error.to_string()), 0);
            self.report(&state);
        }
    }

    /// The brokers say this of the topic, or that it is there where it is `None`.
    pub(super) fn topic_is(&self, error: Option<String>) {
        let mut state = self.lock();
        state.topic_error = error;
        self.report(&state);
    }

    /// A broker leaves questions unanswered since then, or answers where it is `None`. A later time
    /// than the first counts for nothing.
    pub(super) fn unanswered(&self, since: Option<Instant>) {
        let mut state = self.lock();
        if state.unanswered_since.is_some() != since.is_some() {
            state.unanswered_since = since;
            self.report(&state);
        }
    }

    /// Takes what the client's statistics say of the partitions `owned`. Returns those that are
    /// fetched at present.
    pub(super) fn observe(&self, statistics: &Statistics, owned: &[i32], now: Instant) -> Vec<i32> {
        let mut state = self.lock();
        let fetched = owned.iter().filter(|p| find_fault(statistics, &self.topic, **p).is_none());
        let fetched: Vec<_> = fetched.copied().collect();
        let is_member = is_member(statistics, self.protocol, state.is_replacement);
        if is_member {
            (state.has_joined, state.outside) = (true, None);
            // Another member may have them now, without a revocation that this one saw.
            state.stalled.retain(|partition| owned.contains(partition));
        }
        let mut is_in_order = is_member;
        if let Some(topic) = statistics.topics.get(&self.topic) {
            for partition in &fetched {
                let Some(seen) = topic.partitions.get(partition) else { continue };
                let before = state.positions.insert(*partition, seen.next_offset);
                // `fetchq_cnt` is of all partitions together: they share the consumer's queue.
                let is_at_end = seen.next_offset >= seen.ls_offset;
                let moves = is_at_end || before.is_some_and(|before| before < seen.next_offset);
                is_in_order &= moves || seen.fetchq_cnt > 0;
                if moves {
                    state.stalled.retain(|stalled| stalled != partition);
                }
            }
        }
        let fault = owned.iter().find_map(|p| find_fault(statistics, &self.topic, *p));
        state.note_fault(fault.or_else(|| find_fault_of_group(statistics)), now);
        is_in_order &= state.fault.is_none();
        state.statistics_in_order = if is_in_order { state.statistics_in_order + 1 } else { 0 };
        if state.statistics_in_order >= CONFIRMATIONS {
            state.error = None;
        }
        self.report(&state);
        fetched
    }

    /// For how long the client has reached no broker that it needs.
    pub(super) fn unreachable_for(&self, now: Instant) -> Option<Duration> {
        let state = self.lock();
        let standing =
            state.fault.as_ref().filter(|standing| matches!(standing.fault, Fault::Unreachable(_)));
        let since =
            standing.map(|standing| standing.since).into_iter().chain(state.unanswered_since).min();
        since.map(|since| now.saturating_duration_since(since))
    }

    /// Whether the member is in its group, nothing is wrong, and statistics have shown it.
    pub(super) fn is_well(&self) -> bool {
        let state = self.lock();
        let is_confirmed =
            state.statistics_in_order >= CONFIRMATIONS && state.unanswered_since.is_none();
        state.has_joined && is_confirmed && state.fault.is_none() && state.complaint().is_none()
    }

    fn report(&self, state: &Observations) {
        match state.complaint() {
            Some(why) => self.health.not_ready(why),
            // Until the first join it is starting, which the component says by itself.
            None if state.has_joined => self.health.ready(),
            None => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Observations> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observations {
    fn note_fault(&mut self, found: Option<Fault>, now: Instant) {
        self.fault = match (found, self.fault.take()) {
            (None, _) => None,
            (Some(fault), Some(before)) if is_same_kind(&fault, &before.fault) => {
                Some(ObservedFault {
                    fault,
                    since: before.since,
                    statistics: before.statistics + 1,
                })
            }
            (Some(fault), _) => Some(ObservedFault { fault, since: now, statistics: 1 }),
        };
    }

    fn complaint(&self) -> Option<String> {
        let fault = self.fault.as_ref().filter(|standing| standing.statistics >= CONFIRMATIONS);
        let unanswered = self.unanswered_since.filter(|since| since.elapsed() >= UNANSWERED_AFTER);
        let parts = [
            self.outside.clone(),
            fault.map(|standing| standing.fault.text().to_owned()),
            unanswered.map(|_| "a broker does not answer".to_owned()),
            self.topic_error.clone(),
            self.error.clone(),
            self.stalled
                .first()
                .map(|partition| format!("partition {partition} makes no progress")),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

fn is_same_kind(one: &Fault, other: &Fault) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// Whether the client is in its group. Under the broker's protocol librdkafka says nothing of a
/// member without a partition. It may also wait until members of the classic protocol have left the
/// group. An error of such a member is fatal, or one of its topic, which others look for.
fn is_member(statistics: &Statistics, protocol: GroupProtocol, is_replacement: bool) -> bool {
    let idle_after_ms =
        if is_replacement { IDLE_REPLACEMENT_AFTER_MS } else { IDLE_MEMBER_AFTER_MS };
    let group = statistics.cgrp.as_ref().filter(|group| group.state == "up");
    group.is_some_and(|group| match (&*group.join_state, protocol) {
        ("steady", _) => true,
        ("init", GroupProtocol::Consumer) => group.stateage >= idle_after_ms,
        _ => false,
    })
}

fn is_up(broker: &statistics::Broker) -> bool {
    STATES_UP.contains(&&*broker.state)
}

fn find_fault_of_group(statistics: &Statistics) -> Option<Fault> {
    let group = statistics.cgrp.as_ref()?;
    let is_any_up = statistics.brokers.values().any(is_up);
    match (is_any_up, &*group.state) {
        (false, _) => Some(Fault::Unreachable("no broker is reachable".to_owned())),
        (true, "up") => None,
        (true, state) => {
            Some(Fault::Unreachable(format!("the group's coordinator is not reachable: {state}")))
        }
    }
}

/// Why a partition is not fetched, where it is not.
fn find_fault(statistics: &Statistics, topic: &str, partition: i32) -> Option<Fault> {
    let seen = statistics.topics.get(topic).and_then(|topic| topic.partitions.get(&partition));
    let Some(seen) = seen.filter(|seen| !seen.unknown) else {
        return Some(Fault::Unreachable(format!(
            "partition {partition} of {topic} is unknown to the brokers"
        )));
    };
    if seen.leader < 0 {
        return Some(Fault::Unreachable(format!("partition {partition} of {topic} has no leader")));
    }
    let leader = statistics
        .brokers
        .values()
        .find(|broker| broker.nodeid == seen.leader && broker.source != "logical");
    if !leader.is_some_and(is_up) {
        return Some(Fault::Unreachable(format!(
            "the leader of partition {partition} of {topic} is not reachable"
        )));
    }
    // A broker that refuses a fetch says -1 instead of where the partition ends.
    (seen.hi_offset == -1).then(|| {
        Fault::FetchRefused(format!(
            "the broker refuses fetches of partition {partition} of {topic}"
        ))
    })
}

#[cfg(test)]
mod tests;
