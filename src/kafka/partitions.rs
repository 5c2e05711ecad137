use std::{
    collections::{HashMap, HashSet},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::throttle::Throttle;

/// Which partitions this consumer owns, since which assignment, and what is in hand of each.
///
/// A partition that is revoked is first drained: no new batch takes from it, and the batches in hand may still finish and
/// store their offsets. Then it is fenced: whatever comes later of it is dropped.
#[derive(Debug)]
pub(super) struct Partitions {
    lanes: usize,
    state: Mutex<OwnedPartitions>,
    settled: Condvar,
    /// Bounds the rate of their dead letters.
    pub(super) throttle: Throttle,
}

#[derive(Debug, Default)]
struct OwnedPartitions {
    owned: HashMap<i32, OwnedPartition>,
    assignments: u64,
    /// Lanes that would keep a revocation waiting in vain.
    halted_lanes: HashSet<usize>,
}

#[derive(Debug)]
struct OwnedPartition {
    assignment: u64,
    draining: bool,
    batches_in_flight: usize,
    /// The offset at which the assignment began; 0 before the first message.
    begun_at: i64,
    /// Next offset after the last message that was polled; 0 before the first.
    polled_up_to: i64,
    /// Behind the last message that is done. Some before it may have been left behind.
    done_up_to: i64,
    /// The last offset that was stored; every message before it is done.
    stored_up_to: i64,
}

/// What a polled message is to its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Polled {
    /// The partition is another consumer's.
    Unowned,
    /// It belongs to this assignment.
    InOrder(u64),
    /// A later message was polled before: the log was truncated in between.
    Truncated,
}

impl OwnedPartition {
    fn since(assignment: u64) -> Self {
        Self {
            assignment,
            draining: false,
            batches_in_flight: 0,
            begun_at: 0,
            polled_up_to: 0,
            done_up_to: 0,
            stored_up_to: 0,
        }
    }

    /// Every message before this offset is done.
    fn first_undone(&self) -> i64 {
        if self.stored_up_to > 0 { self.stored_up_to } else { self.begun_at }
    }
}

impl Partitions {
    /// None are owned yet; those that will be belong to so many lanes.
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            lanes,
            state: Mutex::default(),
            settled: Condvar::default(),
            throttle: Throttle::default(),
        }
    }

    pub(super) fn lane(&self, partition: i32) -> usize {
        usize::try_from(partition).unwrap_or(0) % self.lanes
    }

    pub(super) fn assign(&self, partitions: &[i32]) {
        self.throttle.forget(partitions);
        let mut state = self.lock();
        state.assignments += 1;
        let assignment = state.assignments;
        for partition in partitions {
            state.owned.insert(*partition, OwnedPartition::since(assignment));
        }
    }

    /// Begins a new assignment of a partition whose log was truncated: offsets come again that are
    /// of other messages now. Messages of the former assignment are dropped. Returns the offset
    /// from which the partition is to be read: `offset`, to which the client went back, or that of
    /// the first message that is not done, where that is lower.
    pub(super) fn restart(&self, partition: i32, offset: i64) -> i64 {
        let mut state = self.lock();
        state.assignments += 1;
        let assignment = state.assignments;
        let mut from = offset;
        if let Some(owned) = state.owned.get_mut(&partition) {
            from = offset.min(owned.first_undone());
            *owned = OwnedPartition {
                draining: owned.draining,
                begun_at: from,
                polled_up_to: from,
                ..OwnedPartition::since(assignment)
            };
        }
        drop(state);
        self.settled.notify_all();
        from
    }

    /// Notes that a message was polled.
    pub(super) fn polled(&self, partition: i32, offset: i64) -> Polled {
        let mut state = self.lock();
        let Some(owned) = state.owned.get_mut(&partition) else { return Polled::Unowned };
        if offset < owned.polled_up_to {
            return Polled::Truncated;
        }
        if owned.polled_up_to == 0 {
            owned.begun_at = offset;
        }
        owned.polled_up_to = offset + 1;
        Polled::InOrder(owned.assignment)
    }

    /// The offset to commit where the `committed` one is beyond all that was polled: the log was
    /// truncated before this assignment.
    pub(super) fn committed_too_far(&self, partition: i32, committed: i64) -> Option<i64> {
        let state = self.lock();
        let owned = state.owned.get(&partition)?;
        (owned.stored_up_to > 0 && committed > owned.polled_up_to).then_some(owned.stored_up_to)
    }

    /// Whether every message that was polled of the partition is done.
    pub(super) fn is_all_done(&self, partition: i32) -> bool {
        self.lock()
            .owned
            .get(&partition)
            .is_some_and(|owned| owned.stored_up_to >= owned.polled_up_to)
    }

    /// Waits until no batch in hand has messages of these partitions, `deadline` at most, and then fences them. Answers whether
    /// all was settled in time. Batches of a lane that stands still are not waited for: their offsets would not advance.
    pub(super) fn revoke(&self, partitions: &[i32], deadline: Duration) -> bool {
        let mut state = self.lock();
        for partition in partitions {
            if let Some(owned) = state.owned.get_mut(partition) {
                owned.draining = true;
            }
        }
        let in_flight = |state: &mut OwnedPartitions| {
            let moves = |partition: &i32| !state.halted_lanes.contains(&self.lane(*partition));
            let is_in_flight = |partition| {
                state.owned.get(partition).is_some_and(|owned| owned.batches_in_flight > 0)
            };
            partitions.iter().any(|partition| is_in_flight(partition) && moves(partition))
        };
        let waited = self.settled.wait_timeout_while(state, deadline, in_flight);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        for partition in partitions {
            state.owned.remove(partition);
        }
        // The batches in flight may have added letters meanwhile.
        self.throttle.forget(partitions);
        !timeout.timed_out()
    }

    /// Says of a lane that its batches do not end, or that they do again.
    pub(super) fn set_halted(&self, lane: usize, is_halted: bool) {
        let mut state = self.lock();
        if is_halted {
            state.halted_lanes.insert(lane);
        } else {
            state.halted_lanes.remove(&lane);
        }
        drop(state);
        self.settled.notify_all();
    }

    pub(super) fn owned(&self) -> Vec<i32> {
        self.lock().owned.keys().copied().collect()
    }

    /// The present assignment of a partition, by which its messages are marked.
    #[cfg(test)]
    pub(super) fn assignment(&self, partition: i32) -> Option<u64> {
        self.lock().owned.get(&partition).map(|owned| owned.assignment)
    }

    /// Counts a batch in hand for each of its partitions. Answers which of them it may take.
    pub(super) fn begin_batch(&self, partitions: &HashMap<i32, u64>) -> Vec<i32> {
        let mut state = self.lock();
        let mut taken = Vec::with_capacity(partitions.len());
        for (partition, assignment) in partitions {
            match state.owned.get_mut(partition) {
                Some(owned) if owned.assignment == *assignment && !owned.draining => {
                    owned.batches_in_flight += 1;
                    taken.push(*partition);
                }
                _ => {}
            }
        }
        taken
    }

    /// Whether the partition is still owned since that assignment, so that an offset of it may be stored.
    pub(super) fn is_owned(&self, partition: i32, assignment: u64) -> bool {
        self.lock().owned.get(&partition).is_some_and(|owned| owned.assignment == assignment)
    }

    /// Counts dead letters of a partition for the throttle, unless the partition is not owned since
    /// that assignment any more: the throttle would pause a partition of another consumer.
    pub(super) fn add_letters(&self, partition: i32, assignment: u64, letters: u32, now: Instant) {
        // No revocation may come in between.
        let state = self.lock();
        if state.owned.get(&partition).is_some_and(|owned| owned.assignment == assignment) {
            self.throttle.add_letters(partition, letters, now);
        }
    }

    /// Messages up to this offset, exclusive, are done, from `first_undone` on some are not.
    /// Returns the offset to store, or `None` where the partition is not owned since that
    /// assignment any more, so that no offset of it may be stored.
    pub(super) fn done(
        &self,
        partition: i32,
        assignment: u64,
        up_to: i64,
        first_undone: Option<i64>,
    ) -> Option<i64> {
        let mut state = self.lock();
        let owned =
            state.owned.get_mut(&partition).filter(|owned| owned.assignment == assignment)?;
        owned.done_up_to = owned.done_up_to.max(up_to);
        owned.stored_up_to = first_undone.unwrap_or(owned.done_up_to);
        Some(owned.stored_up_to)
    }

    /// Undoes [`Partitions::begin_batch`].
    pub(super) fn end_batch(&self, partitions: &HashMap<i32, u64>) {
        let mut state = self.lock();
        for (partition, assignment) in partitions {
            match state.owned.get_mut(partition) {
                Some(owned) if owned.assignment == *assignment => owned.batches_in_flight -= 1,
                _ => {}
            }
        }
        drop(state);
        self.settled.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, OwnedPartitions> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_revoked_partition_is_drained_and_then_fenced() {
        let partitions = Partitions::new(1);
        partitions.assign(&[0, 1]);
        let assignment = partitions.assignment(0).unwrap();
        let batch = HashMap::from([(0, assignment)]);
        assert_eq!(partitions.begin_batch(&batch), [0]);
        thread::scope(|scope| {
            let revoked = scope.spawn(|| partitions.revoke(&[0], Duration::from_secs(10)));
            while !partitions.lock().owned[&0].draining {
                thread::yield_now();
            }
            assert!(
                partitions.begin_batch(&batch).is_empty(),
                "a draining partition gives no new batch"
            );
            assert!(
                partitions.is_owned(0, assignment),
                "the batch in hand may still store its offset"
            );
            partitions.end_batch(&batch);
            assert!(revoked.join().unwrap());
        });
        assert!(!partitions.is_owned(0, assignment));
        assert!(partitions.assignment(1).is_some());
    }

    #[test]
    fn a_batch_of_a_lane_that_stands_still_is_not_waited_for() {
        let partitions = Partitions::new(2);
        partitions.assign(&[0, 1]);
        for partition in [0, 1] {
            partitions.begin_batch(&HashMap::from([(
                partition,
                partitions.assignment(partition).unwrap(),
            )]));
        }
        thread::scope(|scope| {
            let revoked = scope.spawn(|| partitions.revoke(&[1], Duration::from_secs(60)));
            partitions.set_halted(1, true);
            assert!(revoked.join().unwrap());
        });
        assert!(!partitions.revoke(&[0], Duration::from_millis(1)), "the other lane goes on");
    }

    #[test]
    fn a_truncated_partition_stores_offsets_from_where_it_begins_again() {
        let partitions = Partitions::new(1);
        partitions.assign(&[0]);
        let before = partitions.assignment(0).unwrap();
        assert_eq!(partitions.polled(0, 99), Polled::InOrder(before));
        assert_eq!(partitions.done(0, before, 100, None), Some(100));
        assert!(partitions.is_all_done(0));

        assert_eq!(partitions.polled(0, 10), Polled::Truncated);
        assert_eq!(partitions.restart(0, 10), 10, "all before it is done");
        let after = partitions.assignment(0).unwrap();
        assert_eq!(partitions.polled(0, 10), Polled::InOrder(after));

        assert!(!partitions.is_all_done(0));
        assert_eq!(partitions.committed_too_far(0, 100), None, "nothing is done yet");
        assert_eq!(partitions.done(0, before, 100, None), None, "its messages are gone");
        assert_eq!(partitions.done(0, after, 11, None), Some(11));
        assert!(partitions.is_all_done(0));
        assert_eq!(partitions.committed_too_far(0, 100), Some(11));
        assert_eq!(partitions.committed_too_far(0, 11), None);
    }

    #[test]
    fn a_truncated_partition_is_read_from_its_first_undone_message() {
        let partitions = Partitions::new(1);
        partitions.assign(&[0, 1]);
        let before = partitions.assignment(0).unwrap();
        for partition in [0, 1] {
            for offset in 40..150 {
                partitions.polled(partition, offset);
            }
        }
        partitions.done(0, before, 50, None);
        for (partition, undone) in [(0, 50), (1, 40)] {
            assert_eq!(partitions.polled(partition, 120), Polled::Truncated);

            assert_eq!(partitions.restart(partition, 120), undone);

            assert!(
                !partitions.is_owned(partition, before),
                "messages of the former assignment are dropped"
            );
            let after = partitions.assignment(partition).unwrap();
            assert_eq!(partitions.polled(partition, undone), Polled::InOrder(after));
            assert_eq!(partitions.polled(partition, undone - 9), Polled::Truncated);
            assert_eq!(
                partitions.restart(partition, undone - 9),
                undone - 9,
                "the log is truncated once more"
            );
        }
    }

    #[test]
    fn dead_letters_of_a_partition_that_is_revoked_do_not_limit_it() {
        let (partitions, now) = (Partitions::new(1), Instant::now());
        partitions.assign(&[0]);
        let assignment = partitions.assignment(0).unwrap();
        let batch = HashMap::from([(0, assignment)]);
        partitions.begin_batch(&batch);
        thread::scope(|scope| {
            let revoked = scope.spawn(|| partitions.revoke(&[0], Duration::from_secs(60)));
            while !partitions.lock().owned[&0].draining {
                thread::yield_now();
            }
            partitions.add_letters(0, assignment, 10_000, now);
            partitions.end_batch(&batch);
            assert!(revoked.join().unwrap());
        });

        partitions.add_letters(0, assignment, 10_000, now);

        assert!(!partitions.throttle.is_active());
        partitions.assign(&[0]);
        partitions.add_letters(0, partitions.assignment(0).unwrap(), 10_000, now);
        assert!(partitions.throttle.is_active());
    }

    #[test]
    fn a_partition_with_a_deferred_message_is_not_all_done() {
        let partitions = Partitions::new(1);
        partitions.assign(&[0]);
        let assignment = partitions.assignment(0).unwrap();
        for offset in [0, 1] {
            assert_eq!(partitions.polled(0, offset), Polled::InOrder(assignment));
        }
        assert_eq!(partitions.done(0, assignment, 2, Some(0)), Some(0));
        assert!(!partitions.is_all_done(0));
        assert_eq!(partitions.done(0, assignment, 1, None), Some(2));
        assert!(partitions.is_all_done(0));
    }

    #[test]
    fn a_batch_that_outlasts_the_deadline_is_fenced_all_the_same() {
        let partitions = Partitions::new(1);
        partitions.assign(&[0]);
        let batch = HashMap::from([(0, partitions.assignment(0).unwrap())]);
        partitions.begin_batch(&batch);
        assert!(!partitions.revoke(&[0], Duration::from_millis(1)));
        partitions.assign(&[0]);
        assert!(
            !partitions.is_owned(0, batch[&0]),
            "an offset of the former assignment is dropped"
        );
        partitions.end_batch(&batch);
    }
}
