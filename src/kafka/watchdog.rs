use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// Since when nothing came of each partition of which something might.
#[derive(Debug, Default)]
pub struct Watchdog {
    heard: HashSet<i32>,
    silent_since: HashMap<i32, Instant>,
    /// Those that were found to be behind when they were last asked about.
    behind: HashSet<i32>,
}

impl Watchdog {
    /// A message came.
    pub fn heard(&mut self, partition: i32) {
        self.heard.insert(partition);
    }

    /// Whether a message came since the last look.
    pub fn has_heard(&self, partition: i32) -> bool {
        self.heard.contains(&partition)
    }

    /// Those of the partitions `expected` to be fetched of which nothing came for half of `limit`; again after the other half.
    pub fn silent(&mut self, expected: &[i32], limit: Duration, now: Instant) -> Vec<i32> {
        let heard = std::mem::take(&mut self.heard);
        let still_silent = |partition: &i32| expected.contains(partition) && !heard.contains(partition);
        self.silent_since.retain(|partition, _| still_silent(partition));
        self.behind.retain(still_silent);
        let mut silent = Vec::new();
        for partition in expected {
            let since = self.silent_since.entry(*partition).or_insert(now);
            if now.duration_since(*since) >= limit / 2 {
                *since = now;
                silent.push(*partition);
            }
        }
        silent
    }

    /// Says of a silent partition whether there are messages that it does not bring. Answers whether it is stalled: there were the
    /// time before too. (Once may be a message on its way.)
    pub fn is_stalled(&mut self, partition: i32, is_behind: bool) -> bool {
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
        watchdog.heard(1);
        assert_eq!(watchdog.silent(&[0, 1], LIMIT, after(30)), [0]);
        assert!(!watchdog.is_stalled(0, true), "it may be on its way");
        assert_eq!(watchdog.silent(&[0, 1], LIMIT, after(60)), [0, 1]);
        assert!(watchdog.is_stalled(0, true));
        assert!(!watchdog.is_stalled(1, false), "nothing is there to come");
    }

    #[test]
    fn a_partition_that_brings_something_or_is_paused_begins_anew() {
        let (mut watchdog, start) = (Watchdog::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        for (seconds, heard, expected) in [(0, false, &[0][..]), (30, true, &[0]), (60, false, &[]), (90, false, &[0])]
        {
            if heard {
                watchdog.heard(0);
            }
            assert!(watchdog.silent(expected, LIMIT, after(seconds)).is_empty(), "after {seconds} s");
        }
        assert_eq!(watchdog.silent(&[0], LIMIT, after(120)), [0]);
        assert!(!watchdog.is_stalled(0, true));
        watchdog.heard(0);
        watchdog.silent(&[0], LIMIT, after(121));
        assert_eq!(watchdog.silent(&[0], LIMIT, after(151)), [0]);
        assert!(!watchdog.is_stalled(0, true), "something came in between");
    }
}
