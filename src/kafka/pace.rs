//! The pace of a lane's batches: the busier the lane, the larger its batches.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// After a batch that took so long, the next one waits as long.
const LONG_BATCH: Duration = Duration::from_millis(10);
/// A lane waits for more messages so long at most, unless its `linger` is longer.
const MAX_PACED_LINGER: Duration = Duration::from_millis(50);

/// How long batches take. A batch costs the servers a fixed amount, and its messages share it. So
/// batches that take long grow, and the servers have less to do for each message. Batches that are
/// done soon stay small: their messages have the shorter way.
#[derive(Debug, Default)]
pub(super) struct BatchPace {
    last_took_micros: AtomicU64,
}

impl BatchPace {
    /// Notes how long the last batch took.
    pub(super) fn took(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.last_took_micros.store(micros, Ordering::Relaxed);
    }

    /// The least time between the closing of two batches that are not full: `linger`, or a time
    /// that grows with the square of what the last batch took. After 10 ms it is 10 ms, after 20 ms
    /// it is 40 ms, and it is 50 ms at most.
    pub(super) fn linger(&self, linger: Duration) -> Duration {
        let took = Duration::from_micros(self.last_took_micros.load(Ordering::Relaxed));
        // A longer time would not change the result.
        let took = took.min(MAX_PACED_LINGER);
        let paced = took.mul_f64(took.as_secs_f64() / LONG_BATCH.as_secs_f64());
        linger.max(paced.min(MAX_PACED_LINGER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_that_take_long_are_closed_more_rarely() {
        let millis = Duration::from_millis;
        let pace = BatchPace::default();
        assert_eq!(pace.linger(millis(5)), millis(5), "no batch was handled yet");
        for (took, linger, expected) in
            [(5, 5, 5), (10, 5, 10), (20, 5, 40), (60_000, 5, 50), (60_000, 80, 80), (0, 0, 0)]
        {
            pace.took(millis(took));
            assert_eq!(pace.linger(millis(linger)), millis(expected), "{took} ms");
        }
    }
}
