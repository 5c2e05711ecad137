//! A limit of requests a second.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A token bucket (Turner, "New Directions in Communications", 1986). It holds the requests of one
/// second: so many may come at once.
#[derive(Debug)]
pub(super) struct Bucket(Mutex<Level>);

#[derive(Debug)]
struct Level {
    /// Requests that may still come now. `None` before the first: it is full.
    left: Option<f64>,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Level { left: None, at: now }))
    }

    /// Takes one request at a rate of `per_second`. A rate of 0 is no limit.
    ///
    /// Fails with the time until the next request may come.
    pub(super) fn take(&self, per_second: u32, now: Instant) -> Result<(), Duration> {
        self.take_leaving(0, per_second, now)
    }

    /// Does the same if `reserve` requests are left then, less than `per_second`.
    pub(super) fn take_leaving(
        &self,
        reserve: u32,
        per_second: u32,
        now: Instant,
    ) -> Result<(), Duration> {
        let mut level = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(level.at);
        level.at = level.at.max(now);
        if per_second == 0 {
            level.left = None;
            return Ok(());
        }
        let rate = f64::from(per_second);
        let left = level.left.map_or(rate, |left| (left + passed.as_secs_f64() * rate).min(rate));
        let needed = 1.0 + f64::from(reserve);
        let is_allowed = left >= needed;
        level.left = Some(if is_allowed { left - 1.0 } else { left });
        if is_allowed { Ok(()) } else { Err(Duration::from_secs_f64((needed - left) / rate)) }
    }

    /// When the last request came.
    pub(super) fn last_used(&self) -> Instant {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_of_a_second_may_come_at_once_and_then_at_the_rate() {
        let start = Instant::now();
        let bucket = Bucket::new(start);
        let take = |millis| bucket.take(4, start + Duration::from_millis(millis));

        for _ in 0..4 {
            assert_eq!(take(0), Ok(()));
        }

        assert_eq!(take(0), Err(Duration::from_millis(250)));
        assert_eq!(take(125), Err(Duration::from_millis(125)));
        assert_eq!(take(250), Ok(()));
        assert!(take(250).is_err());
        for _ in 0..4 {
            assert_eq!(take(60_000), Ok(()));
        }
        assert!(take(60_000).is_err(), "no more than a second is saved up");
    }

    #[test]
    fn a_stream_leaves_its_reserve_to_single_requests() {
        let now = Instant::now();
        let bucket = Bucket::new(now);

        for _ in 0..6 {
            assert_eq!(bucket.take_leaving(2, 8, now), Ok(()));
        }

        assert_eq!(bucket.take_leaving(2, 8, now), Err(Duration::from_millis(125)));
        assert_eq!((bucket.take(8, now), bucket.take(8, now)), (Ok(()), Ok(())));
        assert!(bucket.take(8, now).is_err());
    }

    #[test]
    fn a_rate_of_0_is_no_limit() {
        let now = Instant::now();
        let bucket = Bucket::new(now);

        assert!((0..10_000).all(|_| bucket.take(0, now) == Ok(())));
    }
}
