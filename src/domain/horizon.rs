use std::{ops::Range, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};

use super::OrderId;

/// How far back the ledger of orders reaches, and what may still be done about an order of a certain age.
///
/// An order is decided, and its stock given back, only while its outcome is kept: whoever forgot that it was decided would
/// decide it again. Clocks differ, and a message takes its time, so there are margins between what is begun, what is done
/// and what is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon(TimeDelta);

impl Horizon {
    /// Ids that are further ahead than this are nobody's present.
    const LONGEST_AHEAD: TimeDelta = TimeDelta::days(1);
    const LONGEST_MARGIN: TimeDelta = TimeDelta::days(1);
    const LONGEST_CLOCK_DIFFERENCE: TimeDelta = TimeDelta::hours(1);

    /// Outcomes are kept for at least so long.
    pub fn new(kept: Duration) -> Self {
        Self(TimeDelta::from_std(kept).unwrap_or(TimeDelta::MAX))
    }

    /// The orders whose events are decided: not older than the horizon, not from the future.
    pub(crate) fn decidable(self, now: DateTime<Utc>) -> Range<OrderId> {
        OrderId::first_of(ago(now, self.0))..OrderId::first_of(now + Self::LONGEST_AHEAD)
    }

    /// The oldest order that may still fail after it was completed: its release has time to come to a worker that is not at
    /// work at present.
    pub(crate) fn releasable_from(self, now: DateTime<Utc>) -> OrderId {
        OrderId::first_of(ago(now, self.0 - self.margin()))
    }

    /// Orders below are forgotten: nobody's clock takes them for decidable.
    pub(crate) fn forgotten_below(self, now: DateTime<Utc>) -> OrderId {
        OrderId::first_of(ago(now, self.0 + (self.0 / 10).min(Self::LONGEST_CLOCK_DIFFERENCE)))
    }

    /// How long an event may wait on its topic, and be decided all the same.
    pub(crate) fn longest_wait(self) -> Duration {
        (self.0 - self.margin()).to_std().unwrap_or_default()
    }

    /// A tenth, a day at most.
    fn margin(self) -> TimeDelta {
        (self.0 / 10).min(Self::LONGEST_MARGIN)
    }
}

fn ago(now: DateTime<Utc>, age: TimeDelta) -> DateTime<Utc> {
    now.checked_sub_signed(age).unwrap_or(DateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_is_older_than_what_is_decided_and_that_than_what_may_be_released() {
        let now = DateTime::from_timestamp_millis(1_800_000_000_000).unwrap();
        for kept in [Duration::from_secs(60), Duration::from_secs(30 * 86_400)] {
            let horizon = Horizon::new(kept);
            let decidable = horizon.decidable(now);
            assert!(
                horizon.forgotten_below(now) < decidable.start
                    && decidable.start < horizon.releasable_from(now)
            );
            assert_eq!(decidable.start, OrderId::first_of(now - kept));
            assert!(horizon.longest_wait() < kept);
        }
    }

    #[test]
    fn an_order_from_the_future_is_decided_where_clocks_may_differ_so_much_and_not_beyond() {
        let now = DateTime::from_timestamp_millis(1_800_000_000_000).unwrap();
        let decidable = Horizon::new(Duration::from_secs(3600)).decidable(now);
        assert!(decidable.contains(&OrderId::first_of(now + TimeDelta::hours(23))));
        assert!(!decidable.contains(&OrderId::first_of(now + TimeDelta::hours(25))));
    }
}
