//! Waiting between attempts: exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015).

use std::time::Duration;

/// The delays of one run of failures.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(5);

    /// How long to wait after one more failure: at random up to a bound that doubles from 50 ms to 5 s.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let bound = Self::FIRST.saturating_mul(1 << self.failures.min(10)).min(Self::LONGEST);
        self.failures += 1;
        bound.mul_f64(fastrand::f64())
    }

    /// How many failures there were.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}
