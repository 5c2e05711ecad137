use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// How long after a question without an answer the broker is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(3);

/// Finds partitions of which the client delivers nothing. The caller asks the broker whether such a
/// partition has messages, and the watchdog decides whether it is stalled.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    /// Partitions of which a message came since the last pass.
    received: HashSet<i32>,
    /// Since when nothing came of a partition and nobody asked about it.
    silent_since: HashMap<i32, Instant>,
    /// Partitions that were behind at the last question about them.
    behind: HashSet<i32>,
}

impl Watchdog {
    /// The client delivered a message of the partition.
    pub(super) fn received(&mut self, partition: i32) {
        self.received.insert(partition);
    }

    /// Whether a message of the partition came since the last pass.
    pub(super) fn has_received(&self, partition: i32) -> bool {
        self.received.contains(&partition)
    }

    /// Ends a pass. Returns the silent partitions, the longest silent first: those of `expected` of
    /// which nothing came, and about which nobody asked, for half of `limit`.
    ///
    /// `expected` are the partitions that the client should fetch. Others begin anew when they are
    /// expected again.
    pub(super) fn silent(&mut self, expected: &[i32], limit: Duration, now: Instant) -> Vec<i32> {
        let received = std::mem::take(&mut self.received);
        let still_silent =
            |partition: &i32| expected.contains(partition) && !received.contains(partition);
        self.silent_since.retain(|partition, _| still_silent(partition));
        self.behind.retain(still_silent);
        let mut silent = Vec::new();
        for partition in expected {
            let since = *self.silent_since.entry(*partition).or_insert(now);
            if now.duration_since(since) >= limit / 2 {
                silent.push((since, *partition));
            }
        }
        silent.sort_unstable();
        silent.into_iter().map(|(_, partition)| partition).collect()
    }

    /// Notes that the caller asked about a silent partition. It counts as silent again after half
    /// of the limit.
    pub(super) fn asked(&mut self, partition: i32, now: Instant) {
        self.silent_since.insert(partition, now);
    }

    /// Notes that the broker did not answer. The partition counts as silent again after 3 s, or
    /// after half of `limit` if that is less. Whether the partition is behind is not known any
    /// more.
    pub(super) fn ask_again(&mut self, partition: i32, limit: Duration, now: Instant) {
        let saved = (limit / 2).saturating_sub(ASK_AGAIN_AFTER);
        self.silent_since.insert(partition, now.checked_sub(saved).unwrap_or(now));
        self.behind.remove(&partition);
    }

    /// Notes whether a silent partition is behind, that is, has messages that the client does not
    /// deliver. Returns whether it is stalled: it was behind at the question before too. (Once is
    /// not enough, since a message may be on its way.)
    pub(super) fn is_stalled(&mut self, partition: i32, is_behind: bool) -> bool {
        if is_behind {
            return !self.behind.insert(partition);
        }
        self.behind.remove(&partition);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_partition_that_stays_behind_in_silence_is_stalled() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(watchdog.silent(&[0, 1], LIMIT, start).is_empty());
        watchdog.received(1);
        assert_eq!(watchdog.silent(&[0, 1], LIMIT, after(30)), [0]);
        watchdog.asked(0, after(30));
        assert!(!watchdog.is_stalled(0, true), "it may be on its way");
        assert_eq!(watchdog.silent(&[0, 1], LIMIT, after(60)), [0, 1]);
        assert!(watchdog.is_stalled(0, true));
        assert!(!watchdog.is_stalled(1, false), "it has no messages to deliver");
    }

    #[test]
    fn a_partition_that_delivers_or_is_paused_begins_anew() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        for (seconds, received, expected) in
            [(0, false, &[0][..]), (30, true, &[0]), (60, false, &[]), (90, false, &[0])]
        {
            if received {
                watchdog.received(0);
            }
            assert!(
                watchdog.silent(expected, LIMIT, after(seconds)).is_empty(),
                "after {seconds} s"
            );
        }
        assert_eq!(watchdog.silent(&[0], LIMIT, after(120)), [0]);
        watchdog.asked(0, after(120));
        assert!(!watchdog.is_stalled(0, true));
        watchdog.received(0);
        watchdog.silent(&[0], LIMIT, after(121));
        assert_eq!(watchdog.silent(&[0], LIMIT, after(151)), [0]);
        assert!(!watchdog.is_stalled(0, true), "a message came in between");
    }

    #[test]
    fn a_partition_that_nobody_asked_about_stays_silent_and_comes_first() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        watchdog.silent(&[0], LIMIT, start);
        watchdog.silent(&[0, 1, 2], LIMIT, after(1));
        assert_eq!(watchdog.silent(&[0, 1, 2], LIMIT, after(40)), [0, 1, 2]);
        watchdog.asked(0, after(40));
        assert_eq!(watchdog.silent(&[0, 1, 2], LIMIT, after(41)), [1, 2]);
        watchdog.asked(1, after(41));
        assert_eq!(watchdog.silent(&[0, 1, 2], LIMIT, after(71)), [2, 0, 1]);
    }

    #[test]
    fn a_broker_that_did_not_answer_is_asked_again_within_seconds() {
        let start = Instant::now() + LIMIT;
        for (limit, due_after) in
            [(LIMIT, ASK_AGAIN_AFTER), (Duration::from_secs(4), Duration::from_secs(2))]
        {
            let mut watchdog = Watchdog::default();
            assert!(!watchdog.is_stalled(0, true));

            watchdog.ask_again(0, limit, start);

            let too_early = start + due_after.mul_f64(0.9);
            assert!(watchdog.silent(&[0], limit, too_early).is_empty());
            assert_eq!(watchdog.silent(&[0], limit, start + due_after), [0]);
            assert!(!watchdog.is_stalled(0, true), "no two answers in a row");
        }
    }
}
