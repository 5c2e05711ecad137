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

/// Dead letters that may pass of a partition in a second, and messages that come of it once it is
/// limited.
const MAX_LETTERS_PER_SECOND: u32 = 2000;
/// How far a partition may be ahead of that rate.
const MAX_AHEAD: Duration = Duration::from_millis(500);
/// A limit ends this long after the last batch with many letters.
const LIMITED_FOR: Duration = Duration::from_secs(10);

/// Bounds the rate of dead letters that no repetition mends. A partition whose letters are ahead of
/// the rate is limited: its messages come at that rate too, good or bad. The client pauses it
/// meanwhile; the others go on.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    rates: Mutex<HashMap<i32, PartitionRate>>,
    /// Whether there are any. Most of the time there are none, and the poll thread takes no lock.
    is_active: AtomicBool,
}

/// A partition with dead letters.
#[derive(Debug)]
struct PartitionRate {
    /// When the letters so far would have passed at the rate.
    letters_due_at: Instant,
    limit: Option<Limit>,
}

#[derive(Debug)]
struct Limit {
    until: Instant,
    /// When the messages so far would have come at the rate.
    messages_due_at: Instant,
    is_paused: bool,
}

/// What is to be done with partitions, by the poll thread.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    pause: Vec<i32>,
    resume: Vec<i32>,
}

impl Throttle {
    /// Counts dead letters of a partition, those of one batch.
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

    /// Counts a message that came.
    pub(super) fn add_message(&self, partition: i32, now: Instant) {
        if !self.is_active() {
            return;
        }
        if let Some(limit) = self.lock().get_mut(&partition).and_then(|rate| rate.limit.as_mut()) {
            limit.messages_due_at = limit.messages_due_at.max(now) + time_of(1);
        }
    }

    /// Whether nothing comes of the partition, as it is paused.
    pub(super) fn is_paused(&self, partition: i32) -> bool {
        self.is_active()
            && self
                .lock()
                .get(&partition)
                .and_then(|rate| rate.limit.as_ref())
                .is_some_and(|limit| limit.is_paused)
    }

    /// Forgets partitions that are assigned anew: the client has not paused them.
    pub(super) fn forget(&self, partitions: &[i32]) {
        self.retain(|partition, _| !partitions.contains(partition));
    }

    /// Whether any partition has had dead letters of late.
    pub(super) fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Acquire)
    }

    fn retain(&self, mut stays: impl FnMut(&i32, &mut PartitionRate) -> bool) {
        let mut rates = self.lock();
        rates.retain(|partition, rate| stays(partition, rate));
        self.is_active.store(!rates.is_empty(), Ordering::Release);
    }

    /// Pauses and resumes what is due, in the client. The poll thread calls it before each poll.
    /// Partitions that `may_come` denies are left to who has paused them.
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
            tracing::debug!(topic, partitions = ?pause, "partitions with dead letters paused");
            warn_of(topic, client.pause(&list(topic, &pause)));
        }
        if !resume.is_empty() {
            warn_of(topic, client.resume(&list(topic, &resume)));
        }
    }

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

/// How long so many messages take at the rate.
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

/// A partition may have been revoked a moment ago.
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
