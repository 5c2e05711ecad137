//! Random delays. The only place that makes them.

use std::{ops::Range, time::Duration};

/// A delay times a random factor out of `factors`. It keeps processes that began together from
/// staying in step.
pub(crate) fn jittered(delay: Duration, factors: Range<f64>) -> Duration {
    delay.mul_f64(factors.start + (factors.end - factors.start) * fastrand::f64())
}

/// The delays of one run of failures: exponential backoff with full jitter (Brooker, "Exponential
/// Backoff And Jitter", AWS 2015).
///
/// A success ends the run; the next one begins with a new value.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST_BOUND: Duration = Duration::from_millis(50);
    const MAX_BOUND: Duration = Duration::from_secs(5);

    /// Counts one more failure. Answers how long to wait before the next attempt: at random from 0
    /// to a bound that doubles with each failure, from 50 ms to 5 s.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let bound = self.bound();
        self.failures += 1;
        jittered(bound, 0.0..1.0)
    }

    /// The number of failures so far.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    fn bound(&self) -> Duration {
        Self::FIRST_BOUND.saturating_mul(1 << self.failures.min(10)).min(Self::MAX_BOUND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_of_a_delay_doubles_from_50_ms_to_5_s() {
        let mut backoff = Backoff::default();

        let bounds: Vec<_> = (0..9)
            .map(|_| {
                let bound = backoff.bound();
                assert!(backoff.next_delay() <= bound);
                bound.as_millis()
            })
            .collect();

        assert_eq!(bounds, [50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(backoff.failures(), 9);
    }

    #[test]
    fn a_jittered_delay_stays_within_its_factors() {
        let second = Duration::from_secs(1);
        for _ in 0..1_000 {
            let delay = jittered(second, 0.5..1.5);
            assert!((second / 2..second * 3 / 2).contains(&delay), "{delay:?}");
        }
    }
}
