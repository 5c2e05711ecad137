use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// How soon a broker is asked again that did not answer.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(3);

/// Since when nothing came of each partition of which something might.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    received: HashSet<i32>,
    silent_since: HashMap<i32, Instant>,
    /// Those that were found to be behind when they were last asked about.
    behind: HashSet<i32>,
}

impl Watchdog {
    /// A message came.
    pub(super) fn received(&mut self, partition: i32) {
        self.received.insert(partition);
    }

    /// Whether a message came since the last look.
    pub(super) fn has_received(&self, partition: i32) -> bool {
        self.received.contains(&partition)
    }

    /// Those of the partitions `expected` to be fetched of which nothing came, and about which
    /// nobody asked, for half of `limit`; the longest first.
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

    /// Somebody asked about a silent partition: it is silent again after half of the limit.
    pub(super) fn asked(&mut self, partition: i32, now: Instant) {
        self.silent_since.insert(partition, now);
    }

    /// The same where the broker did not answer: the partition is silent again after 3 s, or after
    /// half of `limit` where that is less. Whether it is behind is not known.
    pub(super) fn ask_again(&mut self, partition: i32, limit: Duration, now: Instant) {
        let saved = (limit / 2).saturating_sub(ASK_AGAIN_AFTER);
        self.silent_since.insert(partition, now.checked_sub(saved).unwrap_or(now));
        self.behind.remove(&partition);
    }

    /// Says of a silent partition whether there are messages that it does not bring. Answers whether it is stalled: there were the
    /// time before too. (Once may be a message on its way.)
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
        assert!(!watchdog.is_stalled(1, false), "nothing is there to come");
    }

    #[test]
    fn a_partition_that_brings_something_or_is_paused_begins_anew() {
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
        assert!(!watchdog.is_stalled(0, true), "something came in between");
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
