use std::{
    collections::{HashMap, HashSet},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::throttle::Throttle;

/// The partitions that this consumer owns, with the assignment of each, its progress, and the
/// number of its batches in flight.
///
/// A partition that is revoked is first drained and then fenced:
/// - While it drains, no new batch may have messages of it. Batches in flight may still finish and
///   store their offsets.
/// - Once it is fenced, messages and offsets of it are dropped.
///
/// An *assignment* is a number that rises with each rebalance. Messages and batches carry the
/// assignment of their partition, so that a late one of a former assignment is recognised.
#[derive(Debug)]
pub(super) struct Partitions {
    lanes: usize,
    state: Mutex<OwnedPartitions>,
    settled: Condvar,
    /// Bounds the rate of the partitions' dead letters.
    pub(super) throttle: Throttle,
}

#[derive(Debug, Default)]
struct OwnedPartitions {
    owned: HashMap<i32, OwnedPartition>,
    /// The last assignment that was given.
    assignments: u64,
    /// Lanes whose batches do not end. A revocation would wait for them in vain.
    halted_lanes: HashSet<usize>,
}

#[derive(Debug)]
struct OwnedPartition {
    assignment: u64,
    draining: bool,
    batches_in_flight: usize,
    /// The offset at which the assignment began; 0 before the first message.
    begun_at: i64,
    /// Offset after the last message that was polled; 0 before the first.
    polled_up_to: i64,
    /// Offset after the last message that is done. Messages before it may be deferred.
    done_up_to: i64,
    /// The last offset that was stored; 0 before the first. Every message before it is done.
    stored_up_to: i64,
}

/// How a polled message follows on the messages of its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Polled {
    /// This consumer does not own the partition.
    Unowned,
    /// It follows the message before, in this assignment.
    InOrder(u64),
    /// A later message was polled before it: the log was truncated in between.
    Truncated,
}

impl OwnedPartition {
    fn new(assignment: u64) -> Self {
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

    /// The offset of the first message that is not done.
    fn first_undone(&self) -> i64 {
        if self.stored_up_to > 0 { self.stored_up_to } else { self.begun_at }
    }
}

impl Partitions {
    /// No partition is owned yet. The partitions are spread over `lanes` lanes.
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            lanes,
            state: Mutex::default(),
            settled: Condvar::default(),
            throttle: Throttle::default(),
        }
    }

    /// The number of a partition's lane.
    pub(super) fn lane(&self, partition: i32) -> usize {
        usize::try_from(partition).unwrap_or(0) % self.lanes
    }

    /// Notes partitions that the group has assigned to this consumer.
    pub(super) fn assign(&self, partitions: &[i32]) {
        self.throttle.forget(partitions);
        let mut state = self.lock();
        state.assignments += 1;
        let assignment = state.assignments;
        for partition in partitions {
            state.owned.insert(*partition, OwnedPartition::new(assignment));
        }
    }

    /// Begins a new assignment of a partition whose log was truncated. Its offsets come again, with
    /// other messages, so the messages of the former assignment are dropped.
    ///
    /// The client went back to `offset`. Returns the offset from which the partition is to be read:
    /// `offset`, or the first message that is not done if that is lower.
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
                ..OwnedPartition::new(assignment)
            };
        }
        drop(state);
        self.settled.notify_all();
        from
    }

    /// Notes that the client delivered a message.
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

    /// The offset to commit if the `committed` offset is beyond the partition's end. Then the log
    /// was truncated.
    ///
    /// Messages that were polled after the truncation show it. Where none has come, `reached_end`
    /// shows it: the end of the partition, if the client has delivered every message before it.
    pub(super) fn committed_too_far(
        &self,
        partition: i32,
        committed: i64,
        reached_end: Option<i64>,
    ) -> Option<i64> {
        let state = self.lock();
        let owned = state.owned.get(&partition)?;
        if owned.stored_up_to > 0 && committed > owned.polled_up_to {
            return Some(owned.stored_up_to);
        }
        let end = reached_end.filter(|end| committed > *end)?;
        if owned.polled_up_to == 0 {
            return Some(end);
        }
        (owned.polled_up_to > end).then(|| end.min(owned.first_undone()))
    }

    /// Whether every message that was polled of the partition is done.
    pub(super) fn is_all_done(&self, partition: i32) -> bool {
        self.lock()
            .owned
            .get(&partition)
            .is_some_and(|owned| owned.stored_up_to >= owned.polled_up_to)
    }

    /// Drains partitions, for `deadline` at most, and then fences them. Returns whether all their
    /// batches ended in time. Does not wait for batches of a halted lane: their offsets would not
    /// advance.
    pub(super) fn revoke(&self, partitions: &[i32], deadline: Duration) -> bool {
        let mut state = self.lock();
        for partition in partitions {
            if let Some(owned) = state.owned.get_mut(partition) {
                owned.draining = true;
            }
        }
        let in_flight = |state: &mut OwnedPartitions| {
            let is_moving = |partition: &i32| !state.halted_lanes.contains(&self.lane(*partition));
            let is_in_flight = |partition| {
                state.owned.get(partition).is_some_and(|owned| owned.batches_in_flight > 0)
            };
            partitions.iter().any(|partition| is_in_flight(partition) && is_moving(partition))
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

    /// Notes whether a lane is halted, so that its batches do not end.
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

    /// The numbers of the owned partitions, in no order.
    pub(super) fn owned(&self) -> Vec<i32> {
        self.lock().owned.keys().copied().collect()
    }

    /// The present assignment of a partition.
    #[cfg(test)]
    pub(super) fn assignment(&self, partition: i32) -> Option<u64> {
        self.lock().owned.get(&partition).map(|owned| owned.assignment)
    }

    /// Counts a batch in flight for each of these partitions, given with their assignments, and
    /// returns the partitions. Leaves out partitions that are draining or have another assignment.
    pub(super) fn begin_batch(&self, partitions: &HashMap<i32, u64>) -> Vec<i32> {
        let mut state = self.lock();
        let mut begun = Vec::with_capacity(partitions.len());
        for (partition, assignment) in partitions {
            match state.owned.get_mut(partition) {
                Some(owned) if owned.assignment == *assignment && !owned.draining => {
                    owned.batches_in_flight += 1;
                    begun.push(*partition);
                }
                _ => {}
            }
        }
        begun
    }

    /// Whether the partition is still owned by that assignment. Else no offset of it may be stored.
    pub(super) fn is_owned(&self, partition: i32, assignment: u64) -> bool {
        self.lock().owned.get(&partition).is_some_and(|owned| owned.assignment == assignment)
    }

    /// Counts dead letters of a partition for the throttle, if the partition is still owned by that
    /// assignment. Else the throttle would pause a partition of another consumer.
    pub(super) fn add_letters(&self, partition: i32, assignment: u64, letters: u32, now: Instant) {
        // The lock is held while the letters are counted, so that no revocation comes in between.
        let state = self.lock();
        if state.owned.get(&partition).is_some_and(|owned| owned.assignment == assignment) {
            self.throttle.add_letters(partition, letters, now);
        }
    }

    /// Notes that a partition's messages before `up_to` are done, but for some from `first_undone`
    /// on. Returns the offset to store, or `None` if the partition is no longer owned by that
    /// assignment. Then no offset of it may be stored.
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
mod tests;
