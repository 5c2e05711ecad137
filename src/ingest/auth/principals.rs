//! What each principal uses at present, for a bounded number of principals.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::bucket::Bucket;
use crate::http::Share;

/// The most principals that are tracked.
const MAX_PRINCIPALS: usize = 10_000;
/// A principal that sends nothing for this time, and holds nothing, has used up no limit.
const IDLE_AFTER: Duration = Duration::from_secs(2);

/// What one principal uses.
#[derive(Debug)]
pub(super) struct Usage {
    pub(super) requests: Bucket,
    pub(super) share: Arc<Share>,
}

/// What the principals use.
#[derive(Debug)]
pub(super) struct Principals {
    max: usize,
    usages: Mutex<HashMap<Arc<str>, Arc<Usage>>>,
}

impl Default for Principals {
    fn default() -> Self {
        Self { max: MAX_PRINCIPALS, usages: Mutex::default() }
    }
}

impl Principals {
    /// What a principal uses. Forgets principals that use nothing if there are too many.
    ///
    /// Returns `None` if all that are tracked use something.
    pub(super) fn usage(&self, name: &Arc<str>, now: Instant) -> Option<Arc<Usage>> {
        let mut usages = self.usages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = usages.get(name) {
            return Some(Arc::clone(usage));
        }
        if usages.len() >= self.max {
            usages.retain(|_, usage| is_used(usage, now));
        }
        if usages.len() >= self.max {
            return None;
        }
        let usage = Arc::new(Usage { requests: Bucket::new(now), share: Arc::default() });
        usages.insert(Arc::clone(name), Arc::clone(&usage));
        Some(usage)
    }
}

fn is_used(usage: &Arc<Usage>, now: Instant) -> bool {
    Arc::strong_count(usage) > 1
        || Arc::strong_count(&usage.share) > 1
        || now.saturating_duration_since(usage.requests.last_used()) < IDLE_AFTER
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Holding;

    #[test]
    fn only_principals_that_use_nothing_are_forgotten() {
        let principals = Principals { max: 2, ..Principals::default() };
        let [one, two, three] = ["one", "two", "three"].map(Arc::from);
        let start = Instant::now();
        let later = start + IDLE_AFTER;
        let share = Arc::clone(&principals.usage(&one, start).unwrap().share);
        let held = share.take(Holding::Waiters, 1, 0).unwrap();
        drop(share);

        principals.usage(&two, start).unwrap();

        assert!(principals.usage(&three, start).is_none(), "both were used just now");
        assert!(principals.usage(&three, later).is_some());
        assert!(principals.usage(&two, later).is_none(), "one holds something");
        drop(held);
        assert!(principals.usage(&two, later + IDLE_AFTER).is_some());
    }
}
