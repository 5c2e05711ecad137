use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{consumer::Consumer as _, error::KafkaResult, topic_partition_list::TopicPartitionList};

use super::member::Client;

/// Messages of a suspect partition that may come in a second.
const MESSAGES_PER_SECOND: u32 = 2000;
/// How far a partition may be ahead of that rate before it is paused.
const AHEAD: Duration = Duration::from_millis(500);
/// How long after its last dead letter a partition is suspect.
const SUSPECT_FOR: Duration = Duration::from_secs(10);

/// Bounds the rate of dead letters that no repetition mends: while a partition has any, its
/// messages come at a bounded rate. The client pauses it meanwhile; the others go on.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<HashMap<i32, Suspect>>);

#[derive(Debug)]
struct Suspect {
    until: Instant,
    /// When the messages so far would have come at the rate.
    due_at: Instant,
    is_paused: bool,
}

/// What is to be done with partitions, by the poll thread.
#[derive(Debug, PartialEq, Eq)]
struct Changes {
    pause: Vec<i32>,
    resume: Vec<i32>,
}

impl Throttle {
    /// Notes that a partition had dead letters. The first ones count as messages that came now;
    /// later ones were counted when they came.
    pub fn suspect(&self, partition: i32, letters: u32, now: Instant) {
        let mut suspects = self.lock();
        let new = || Suspect { until: now, due_at: now + time_of(letters), is_paused: false };
        suspects.entry(partition).or_insert_with(new).until = now + SUSPECT_FOR;
    }

    /// Counts a message that came.
    pub fn count(&self, partition: i32) {
        if let Some(suspect) = self.lock().get_mut(&partition) {
            suspect.due_at = suspect.due_at.max(Instant::now()) + time_of(1);
        }
    }

    /// Whether nothing comes of the partition, as it is paused.
    pub fn is_paused(&self, partition: i32) -> bool {
        self.lock().get(&partition).is_some_and(|suspect| suspect.is_paused)
    }

    /// Forgets partitions that are assigned anew: the client has not paused them.
    pub fn forget(&self, partitions: &[i32]) {
        self.lock().retain(|partition, _| !partitions.contains(partition));
    }

    /// Pauses and resumes what is due, in the client. The poll thread calls it before each poll.
    /// Partitions that `may_come` denies are left to who has paused them.
    pub fn apply(&self, client: &Client, topic: &str, may_come: impl Fn(i32) -> bool) {
        let Changes { pause, resume } = self.changes(Instant::now(), may_come);
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
        self.lock().retain(|partition, suspect| {
            let ahead = suspect.due_at.saturating_duration_since(now);
            if !suspect.is_paused && ahead > AHEAD {
                suspect.is_paused = true;
                changes.pause.push(*partition);
            } else if suspect.is_paused && ahead.is_zero() && may_come(*partition) {
                suspect.is_paused = false;
                changes.resume.push(*partition);
            }
            suspect.is_paused || now < suspect.until
        });
        changes
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Suspect>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long so many messages take at the rate.
fn time_of(messages: u32) -> Duration {
    Duration::from_secs(1) * messages / MESSAGES_PER_SECOND
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
    fn a_partition_with_letters_is_paused_until_its_messages_are_due() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        throttle.suspect(0, 4 * MESSAGES_PER_SECOND, start);
        throttle.suspect(1, MESSAGES_PER_SECOND / 4, start);
        assert_eq!(throttle.changes(start, |_| true), changes(&[0], &[]), "a few of one partition may pass at once");
        assert!(throttle.is_paused(0) && !throttle.is_paused(1));
        assert_eq!(throttle.changes(after(3999), |_| true), changes(&[], &[]));
        assert_eq!(throttle.changes(after(4000), |_| false), changes(&[], &[]), "its lane is full");
        assert_eq!(throttle.changes(after(4001), |_| true), changes(&[], &[0]));
    }

    #[test]
    fn messages_of_suspect_partitions_alone_are_counted() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        throttle.suspect(0, 1, start);
        for _ in 0..2 * MESSAGES_PER_SECOND {
            throttle.count(0);
            throttle.count(1);
        }
        assert_eq!(throttle.changes(start, |_| true), changes(&[0], &[]));
        throttle.suspect(0, 100 * MESSAGES_PER_SECOND, start);
        let resumed = throttle.changes(start + Duration::from_secs(9), |_| true);
        assert_eq!(resumed, changes(&[], &[0]), "letters count as they come, and not again");
    }

    #[test]
    fn a_partition_is_no_longer_suspect_ten_seconds_after_its_last_letter() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        throttle.suspect(0, 1, start);
        throttle.changes(start + Duration::from_millis(9999), |_| true);
        assert_eq!(throttle.lock().len(), 1);
        throttle.changes(start + SUSPECT_FOR, |_| true);
        assert!(throttle.lock().is_empty());
    }

    #[test]
    fn a_partition_that_is_assigned_anew_is_not_paused() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        throttle.suspect(0, 4 * MESSAGES_PER_SECOND, start);
        assert_eq!(throttle.changes(start, |_| true), changes(&[0], &[]));
        throttle.forget(&[0]);
        assert_eq!(throttle.changes(start + Duration::from_secs(9), |_| true), changes(&[], &[]));
    }
}
