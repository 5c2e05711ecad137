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

/// How many statistics in a row must agree. A single one may show a connection that is being
/// renewed.
const CONFIRMATIONS: u32 = 2;
/// How long a broker may leave questions unanswered before the member complains. One answer may be
/// slow.
const UNANSWERED_AFTER: Duration = Duration::from_secs(5);
/// States of a broker in which it answers.
const STATES_UP: [&str; 2] = ["UP", "REAUTH"];
/// How long a member without a partition must have been connected to its coordinator before it
/// counts as joined, milliseconds. Under the group protocol `consumer` alone.
const IDLE_MEMBER_AFTER_MS: i64 = 3000;
/// The same for a client that replaced another one, milliseconds. Its partitions come to it only
/// when the broker has missed the former client for long enough.
const IDLE_REPLACEMENT_AFTER_MS: i64 = 60_000;

/// Whether a member of a consumer group can work, for `/readyz`: it has joined the group, its
/// brokers answer, and its partitions are fetched.
#[derive(Debug)]
pub(super) struct Condition {
    topic: String,
    protocol: GroupProtocol,
    health: Component,
    state: Mutex<Observations>,
}

/// What is known about the member.
#[derive(Debug, Default)]
struct Observations {
    /// Why the member is out of its group. `None` before the first join, and while it is a member.
    outside: Option<String>,
    has_joined: bool,
    /// Whether the client replaced another one.
    is_replacement: bool,
    /// The last error of a poll, until the statistics show that every partition is fetched again.
    error: Option<String>,
    /// The brokers' error about the topic, if it is absent or may not be described.
    topic_error: Option<String>,
    /// The fault that the last statistics showed.
    fault: Option<ObservedFault>,
    /// Since when a broker that seems connected leaves questions unanswered.
    unanswered_since: Option<Instant>,
    /// How many statistics in a row showed the member at work.
    statistics_in_order: u32,
    /// Partitions that stalled and made no progress since.
    stalled: Vec<i32>,
    /// The next offset to fetch of each partition, by the last statistics.
    positions: HashMap<i32, i64>,
}

/// A fault that the statistics show.
#[derive(Debug)]
struct ObservedFault {
    fault: Fault,
    since: Instant,
    /// How many statistics in a row showed it.
    statistics: u32,
}

/// Why a partition cannot be consumed at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The client reaches no broker for it. A new client might.
    Unreachable(String),
    /// The broker answers, and rejects fetches.
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

    /// Notes that the group has admitted the member, with or without partitions.
    pub(super) fn joined(&self) {
        let mut state = self.lock();
        (state.has_joined, state.outside) = (true, None);
        self.report(&state);
    }

    /// Notes that the member is out of its group. It joins again by itself.
    pub(super) fn left(&self, why: &str) {
        let mut state = self.lock();
        (state.has_joined, state.outside) = (false, Some(why.to_owned()));
        self.report(&state);
    }

    /// Notes that another client takes over. The member complains about a partition that `stalled`
    /// until that partition makes progress.
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

    /// Notes that partitions were revoked.
    pub(super) fn revoked(&self, partitions: &[i32]) {
        let mut state = self.lock();
        state.stalled.retain(|stalled| !partitions.contains(stalled));
        self.report(&state);
    }

    /// Notes that a poll failed. Ignores errors of single connections: the statistics show whether
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

    /// Notes the brokers' error about the topic, or `None` if it exists.
    pub(super) fn set_topic_error(&self, error: Option<String>) {
        let mut state = self.lock();
        state.topic_error = error;
        self.report(&state);
    }

    /// Notes since when a broker leaves questions unanswered, or `None` if it answers again. Of
    /// several times in a row, the first counts.
    pub(super) fn set_unanswered(&self, since: Option<Instant>) {
        let mut state = self.lock();
        if state.unanswered_since.is_some() != since.is_some() {
            state.unanswered_since = since;
            self.report(&state);
        }
    }

    /// Takes the client's statistics. Returns those of the `owned` partitions that are fetched at
    /// present.
    pub(super) fn observe(&self, statistics: &Statistics, owned: &[i32], now: Instant) -> Vec<i32> {
        let mut state = self.lock();
        let fetched = owned.iter().filter(|p| find_fault(statistics, &self.topic, **p).is_none());
        let fetched: Vec<_> = fetched.copied().collect();
        let is_member = is_member(statistics, self.protocol, state.is_replacement);
        if is_member {
            (state.has_joined, state.outside) = (true, None);
            // Another member may own a partition now, without a revocation at this one.
            state.stalled.retain(|partition| owned.contains(partition));
        }
        let mut is_in_order = is_member;
        if let Some(topic) = statistics.topics.get(&self.topic) {
            for partition in &fetched {
                let Some(seen) = topic.partitions.get(partition) else { continue };
                let before = state.positions.insert(*partition, seen.next_offset);
                // `fetchq_cnt` counts the messages of all partitions: they share the consumer's
                // queue.
                let is_at_end = seen.next_offset >= seen.ls_offset;
                let progresses =
                    is_at_end || before.is_some_and(|before| before < seen.next_offset);
                is_in_order &= progresses || seen.fetchq_cnt > 0;
                if progresses {
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

    /// Whether the member is in its group and at work, as two statistics in a row have shown.
    pub(super) fn is_healthy(&self) -> bool {
        let state = self.lock();
        let is_confirmed =
            state.statistics_in_order >= CONFIRMATIONS && state.unanswered_since.is_none();
        state.has_joined && is_confirmed && state.fault.is_none() && state.complaint().is_none()
    }

    /// Sets the readiness of the component.
    fn report(&self, state: &Observations) {
        match state.complaint() {
            Some(why) => self.health.not_ready(why),
            // Before the first join, the component reports by itself that it is starting.
            None if state.has_joined => self.health.ready(),
            None => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Observations> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observations {
    /// Notes the fault that statistics showed, or that they showed none.
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

    /// Why the member cannot work, or `None` if it can.
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

/// Whether the client is in its group.
///
/// Under the group protocol `consumer`, librdkafka does not report whether a member without a
/// partition has joined. (The member may also be waiting until members of the classic protocol have
/// left the group.) So it counts as joined after some time. If something is wrong with such a
/// member, it has a fatal error or an error of its topic, and both are found elsewhere.
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

/// Why the client does not reach its group, if so.
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

/// Why a partition is not fetched, if so.
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
    // A broker that rejects a fetch reports -1 as the partition's end.
    (seen.hi_offset == -1).then(|| {
        Fault::FetchRefused(format!(
            "the broker refuses fetches of partition {partition} of {topic}"
        ))
    })
}

#[cfg(test)]
mod tests;
