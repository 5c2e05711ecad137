use std::{ops::Range, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};

use super::OrderId;

/// How far back the ledger of orders reaches. It says what may still be done to an order of a
/// certain age.
///
/// An order is decided and released only while its outcome is kept. A worker that has forgotten an
/// outcome would decide the order again. Clocks differ and messages take time, so there are margins
/// between these ages, youngest first:
///
/// | age of an order | what ends there |
/// | --- | --- |
/// | horizon − margin | a completed order may still fail: `Horizon::releasable_from` |
/// | horizon | its events are decided: `Horizon::decidable` |
/// | horizon + difference of clocks | its outcome is kept: `Horizon::forgotten_below` |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon(TimeDelta);

impl Horizon {
    /// An order id further ahead than this comes from a wrong clock.
    const MAX_AHEAD: TimeDelta = TimeDelta::days(1);
    const MAX_MARGIN: TimeDelta = TimeDelta::days(1);
    const MAX_CLOCK_DIFFERENCE: TimeDelta = TimeDelta::hours(1);

    /// `kept`: how long outcomes are kept, at least.
    pub fn new(kept: Duration) -> Self {
        Self(TimeDelta::from_std(kept).unwrap_or(TimeDelta::MAX))
    }

    /// The orders whose events are decided: not older than the horizon, and at most a day ahead.
    pub(crate) fn decidable(self, now: DateTime<Utc>) -> Range<OrderId> {
        OrderId::first_of(ago(now, self.0))..OrderId::first_of(now + Self::MAX_AHEAD)
    }

    /// The oldest order that may still fail after it was completed. The margin leaves its release
    /// the time to reach a worker that does not run at present.
    pub(crate) fn releasable_from(self, now: DateTime<Utc>) -> OrderId {
        OrderId::first_of(ago(now, self.0 - self.margin()))
    }

    /// When an order becomes too old for a release. No hold lasts longer.
    pub(crate) fn release_deadline(self, id: OrderId) -> DateTime<Utc> {
        let made_at = id.made_at();
        made_at.checked_add_signed(self.0 - self.margin()).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    /// The outcomes of orders below this id may be deleted: no worker's clock says that such an
    /// order is decidable.
    pub(crate) fn forgotten_below(self, now: DateTime<Utc>) -> OrderId {
        OrderId::first_of(ago(now, self.0 + (self.0 / 10).min(Self::MAX_CLOCK_DIFFERENCE)))
    }

    /// How long an event may wait on its topic and still be decided.
    pub(crate) fn longest_wait(self) -> Duration {
        (self.0 - self.margin()).to_std().unwrap_or_default()
    }

    /// A tenth of the horizon, a day at most.
    fn margin(self) -> TimeDelta {
        (self.0 / 10).min(Self::MAX_MARGIN)
    }
}

fn ago(now: DateTime<Utc>, age: TimeDelta) -> DateTime<Utc> {
    now.checked_sub_signed(age).unwrap_or(DateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_is_older_than_decidable_and_that_older_than_releasable() {
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
    fn an_order_from_the_future_is_decided_up_to_a_day_ahead() {
        let now = DateTime::from_timestamp_millis(1_800_000_000_000).unwrap();
        let decidable = Horizon::new(Duration::from_secs(3600)).decidable(now);
        assert!(decidable.contains(&OrderId::first_of(now + TimeDelta::hours(23))));
        assert!(!decidable.contains(&OrderId::first_of(now + TimeDelta::hours(25))));
    }
}
