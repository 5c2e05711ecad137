use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Messages that were produced within this time of each other are one sample, milliseconds.
const SAMPLE_EVERY_MS: i64 = 100;
/// Samples of a partition. Further messages count as the last sample.
const MAX_SAMPLES: usize = 10_000;

/// Knows when the messages were produced that are not handled yet, for each partition.
#[derive(Debug, Default)]
pub(super) struct MessageAges(Mutex<HashMap<i32, PartitionAges>>);

#[derive(Debug, Default)]
struct PartitionAges {
    /// Samples of the messages: offset, and when it was produced, Unix time in milliseconds.
    produced_at_ms: BTreeMap<i64, i64>,
    /// The next message to handle, by the last call of [`MessageAges::of`].
    next: Option<NextMessage>,
}

/// The first message of a partition that is not handled.
#[derive(Debug, Clone, Copy)]
struct NextMessage {
    offset: i64,
    /// Since when it is the next one.
    since: Instant,
}

impl MessageAges {
    /// Notes a polled message.
    pub(super) fn arrived(&self, partition: i32, offset: i64, produced_at_ms: i64) {
        let mut partitions = self.lock();
        let samples = &mut partitions.entry(partition).or_default().produced_at_ms;
        let is_sample = samples.last_key_value().is_none_or(|(last, at)| {
            offset > *last && produced_at_ms >= at + SAMPLE_EVERY_MS && samples.len() < MAX_SAMPLES
        });
        if is_sample {
            samples.insert(offset, produced_at_ms);
        }
    }

    /// The age of the message at offset `next`, the first that is not handled. The age is exact to
    /// a tenth of a second if the message was polled. Else it is the time since the message became
    /// the next one, which is less than its age.
    pub(super) fn of(&self, partition: i32, next: i64, now_ms: i64, now: Instant) -> Duration {
        let mut partitions = self.lock();
        let partition = partitions.entry(partition).or_default();
        // The last sample at or before the message is as old, or a little older. Earlier samples
        // are not needed any more.
        if let Some((sample, _)) =
            partition.produced_at_ms.range(..=next).next_back().map(|(a, b)| (*a, *b))
        {
            partition.produced_at_ms = partition.produced_at_ms.split_off(&sample);
        }
        let since = match partition.next {
            Some(NextMessage { offset, since }) if offset == next => since,
            _ => now,
        };
        partition.next = Some(NextMessage { offset: next, since });
        let produced_at_ms = partition.produced_at_ms.first_key_value().map(|(_, at)| *at);
        let age =
            produced_at_ms.map(|at| Duration::from_millis(u64::try_from(now_ms - at).unwrap_or(0)));
        age.unwrap_or_default().max(now.duration_since(since))
    }

    /// Forgets a partition that is handled up to its end, or no longer owned.
    pub(super) fn forget(&self, partition: i32) {
        self.lock().remove(&partition);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, PartitionAges>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_first_message_that_is_not_handled() {
        let (ages, now) = (MessageAges::default(), Instant::now());
        for (offset, produced_at_ms) in [(5, 1_000), (6, 1_010), (7, 4_000)] {
            ages.arrived(0, offset, produced_at_ms);
        }

        let age = |next| ages.of(0, next, 10_000, now).as_millis();

        assert_eq!((age(5), age(6), age(7)), (9_000, 9_000, 6_000));
    }

    #[test]
    fn a_message_that_is_not_polled_is_as_old_as_the_wait_for_it() {
        let (ages, begun) = (MessageAges::default(), Instant::now());
        assert_eq!(ages.of(0, 5, 10_000, begun), Duration::ZERO);

        let later = begun + Duration::from_secs(30);

        assert_eq!(ages.of(0, 5, 40_000, later), Duration::from_secs(30));
        assert_eq!(ages.of(0, 6, 40_000, later), Duration::ZERO);
    }
}
