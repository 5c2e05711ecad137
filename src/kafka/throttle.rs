use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    consumer::Consumer as _, error::KafkaResult, topic_partition_list::TopicPartitionList,
};

use super::member::ConsumerClient;

/// Dead letters of a partition that may pass in a second. Also the messages that a limited
/// partition may deliver in a second.
const MAX_LETTERS_PER_SECOND: u32 = 2000;
/// How far a partition may be ahead of that rate before it is limited.
const MAX_AHEAD: Duration = Duration::from_millis(500);
/// How long after the last batch with many dead letters a limit ends.
const LIMITED_FOR: Duration = Duration::from_secs(10);

/// Bounds the rate of the dead letters that are blamed on their writers.
///
/// If a partition's letters are ahead of the rate, the partition is limited: all its messages, good
/// and bad, come at that rate. To that end the client pauses the partition again and again. The
/// other partitions are not affected.
///
/// The rate is kept by due times, as in the generic cell rate algorithm (ITU-T I.371). Each letter
/// moves the due time of its partition on by its share of a second. A partition is ahead while its
/// due time is in the future.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    rates: Mutex<HashMap<i32, PartitionRate>>,
    /// Whether `rates` has entries. Most of the time it has none, and the poll thread takes no
    /// lock.
    is_active: AtomicBool,
}

/// The rate of a partition that had dead letters of late.
#[derive(Debug)]
struct PartitionRate {
    /// When all its letters so far would have passed at the allowed rate.
    letters_due_at: Instant,
    limit: Option<Limit>,
}

/// The limit of a partition whose letters were ahead of the rate.
#[derive(Debug)]
struct Limit {
    until: Instant,
    /// When all its messages so far would have come at the allowed rate.
    messages_due_at: Instant,
    is_paused: bool,
}

/// The partitions that the client is to pause and to resume.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    pause: Vec<i32>,
    resume: Vec<i32>,
}

impl Throttle {
    /// Counts the dead letters of a partition in one batch.
    pub(super) fn add_letters(&self, partition: i32, letters: u32, now: Instant) {
        let mut rates = self.lock();
        self.is_active.store(true, Ordering::Release);
        let rate =
            rates.entry(partition).or_insert(PartitionRate { letters_due_at: now, limit: None });
        rate.letters_due_at = rate.letters_due_at.max(now) + time_of(letters);
        let ahead = rate.letters_due_at.saturating_duration_since(now);
        match &mut rate.limit {
            Some(limit) if ahead > MAX_AHEAD / 4 => limit.until = now + LIMITED_FOR,
            None if ahead > MAX_AHEAD => {
                let (until, messages_due_at) = (now + LIMITED_FOR, rate.letters_due_at);
                rate.limit = Some(Limit { until, messages_due_at, is_paused: false });
            }
            _ => {}
        }
    }

    /// Counts a polled message.
    pub(super) fn add_message(&self, partition: i32, now: Instant) {
        if !self.is_active() {
            return;
        }
        if let Some(limit) = self.lock().get_mut(&partition).and_then(|rate| rate.limit.as_mut()) {
            limit.messages_due_at = limit.messages_due_at.max(now) + time_of(1);
        }
    }

    /// Whether the throttle has paused the partition.
    pub(super) fn is_paused(&self, partition: i32) -> bool {
        self.is_active()
            && self
                .lock()
                .get(&partition)
                .and_then(|rate| rate.limit.as_ref())
                .is_some_and(|limit| limit.is_paused)
    }

    /// Forgets partitions that are assigned anew. The client has not paused them.
    pub(super) fn forget(&self, partitions: &[i32]) {
        self.retain(|partition, _| !partitions.contains(partition));
    }

    /// Whether any partition had dead letters of late.
    pub(super) fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Acquire)
    }

    /// Keeps the rates for which `stays` returns `true`.
    fn retain(&self, mut stays: impl FnMut(&i32, &mut PartitionRate) -> bool) {
        let mut rates = self.lock();
        rates.retain(|partition, rate| stays(partition, rate));
        self.is_active.store(!rates.is_empty(), Ordering::Release);
    }

    /// Pauses and resumes partitions in the client, as they are due. The poll thread calls it
    /// before each poll.
    ///
    /// Does not resume a partition for which `may_come` returns `false`: its lane is full, and the
    /// poll thread resumes it later.
    pub(super) fn apply(
        &self,
        client: &ConsumerClient,
        topic: &str,
        now: Instant,
        may_come: impl Fn(i32) -> bool,
    ) {
        if !self.is_active() {
            return;
        }
        let Changes { pause, resume } = self.changes(now, may_come);
        if !pause.is_empty() {
            let partitions = &pause;
            tracing::debug!(topic, ?partitions, "pausing partitions with many dead letters");
            warn_of(topic, client.pause(&list(topic, &pause)));
        }
        if !resume.is_empty() {
            warn_of(topic, client.resume(&list(topic, &resume)));
        }
    }

    /// Decides which partitions are to be paused and resumed, and forgets rates that are over.
    fn changes(&self, now: Instant, may_come: impl Fn(i32) -> bool) -> Changes {
        let mut changes = Changes { pause: Vec::new(), resume: Vec::new() };
        self.retain(|partition, rate| {
            let Some(limit) = &mut rate.limit else { return rate.letters_due_at > now };
            let ahead = limit.messages_due_at.saturating_duration_since(now);
            if !limit.is_paused && ahead > MAX_AHEAD {
                limit.is_paused = true;
                changes.pause.push(*partition);
            } else if limit.is_paused && ahead.is_zero() && may_come(*partition) {
                limit.is_paused = false;
                changes.resume.push(*partition);
            }
            limit.is_paused || now < limit.until
        });
        changes
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, PartitionRate>> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long so many messages take at the allowed rate.
fn time_of(messages: u32) -> Duration {
    Duration::from_secs(1) * messages / MAX_LETTERS_PER_SECOND
}

fn list(topic: &str, partitions: &[i32]) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(topic, *partition);
    }
    list
}

/// Logs a failure. It may be harmless: a partition may have been revoked a moment ago.
fn warn_of(topic: &str, done: KafkaResult<()>) {
    if let Err(error) = done {
        tracing::warn!(topic, %error, "partitions not paused or resumed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(pause: &[i32], resume: &[i32]) -> Changes {
        Changes { pause: pause.to_vec(), resume: resume.to_vec() }
    }

    #[test]
    fn a_partition_ahead_of_the_rate_is_paused_until_its_letters_are_due() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        throttle.add_letters(0, 4 * MAX_LETTERS_PER_SECOND, start);
        throttle.add_letters(1, MAX_LETTERS_PER_SECOND / 4, start);
        assert_eq!(
            throttle.changes(start, |_| true),
            changes(&[0], &[]),
            "a few of one partition may pass at once"
        );
        assert!(throttle.is_paused(0) && !throttle.is_paused(1));
        assert_eq!(throttle.changes(after(3999), |_| true), changes(&[], &[]));
        assert_eq!(throttle.changes(after(4000), |_| false), changes(&[], &[]), "its lane is full");
        assert_eq!(throttle.changes(after(4001), |_| true), changes(&[], &[0]));
    }

    #[test]
    fn messages_of_limited_partitions_alone_are_counted() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        throttle.add_letters(0, MAX_LETTERS_PER_SECOND, start);
        throttle.add_letters(1, 1, start);
        assert_eq!(throttle.changes(start, |_| true), changes(&[0], &[]));
        assert_eq!(throttle.changes(start + Duration::from_secs(2), |_| true), changes(&[], &[0]));
        for _ in 0..9 * MAX_LETTERS_PER_SECOND {
            throttle.add_message(0, start + Duration::from_secs(2));
            throttle.add_message(1, start + Duration::from_secs(2));
        }
        throttle.add_letters(1, 1, start + Duration::from_secs(2));
        assert_eq!(throttle.changes(start + Duration::from_secs(2), |_| true), changes(&[0], &[]));
        throttle.add_letters(0, 100 * MAX_LETTERS_PER_SECOND, start + Duration::from_secs(2));
        let resumed = throttle.changes(start + Duration::from_secs(12), |_| true);
        assert_eq!(
            resumed,
            changes(&[], &[0]),
            "letters of a limited partition do not count again"
        );
    }

    #[test]
    fn a_trickle_of_letters_limits_nothing_and_prolongs_no_limit() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        throttle.add_letters(0, MAX_LETTERS_PER_SECOND, start);
        for second in 0..20 {
            for partition in [0, 1] {
                throttle.add_letters(
                    partition,
                    MAX_LETTERS_PER_SECOND / 100,
                    start + Duration::from_secs(second),
                );
            }
            throttle.changes(start + Duration::from_secs(second), |_| true);
        }
        assert!(throttle.lock().values().all(|rate| rate.limit.is_none()));
        throttle.changes(start + Duration::from_secs(60), |_| true);
        assert!(throttle.lock().is_empty());
        assert!(!throttle.is_active());
    }

    #[test]
    fn a_partition_that_is_assigned_anew_is_not_paused() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        throttle.add_letters(0, 4 * MAX_LETTERS_PER_SECOND, start);
        assert_eq!(throttle.changes(start, |_| true), changes(&[0], &[]));
        throttle.forget(&[0]);
        assert_eq!(throttle.changes(start + Duration::from_secs(9), |_| true), changes(&[], &[]));
    }
}
