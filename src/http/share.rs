//! What one client holds of a listener: connections, places to wait, and bytes of bodies.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What one client holds at present. All its connections share it.
#[derive(Debug, Default)]
pub(crate) struct Share {
    connections: AtomicUsize,
    waiters: AtomicUsize,
    body_bytes: AtomicUsize,
}

/// One kind of what a client holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holding {
    Connections,
    Waiters,
    BodyBytes,
}

/// A part of a [`Share`]. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct HeldShare {
    share: Arc<Share>,
    holding: Holding,
    amount: usize,
}

impl Share {
    /// Returns `None` if the client would hold more than `max`. A `max` of 0 is no limit.
    pub(crate) fn take(
        self: &Arc<Self>,
        holding: Holding,
        amount: usize,
        max: usize,
    ) -> Option<HeldShare> {
        let add = |held: usize| held.checked_add(amount).filter(|sum| max == 0 || *sum <= max);
        let counter = self.counter(holding);
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(HeldShare { share: Arc::clone(self), holding, amount })
    }

    fn counter(&self, holding: Holding) -> &AtomicUsize {
        match holding {
            Holding::Connections => &self.connections,
            Holding::Waiters => &self.waiters,
            Holding::BodyBytes => &self.body_bytes,
        }
    }
}

impl HeldShare {
    /// Whether this is a part of that share.
    pub(super) fn is_of(&self, share: &Arc<Share>) -> bool {
        Arc::ptr_eq(&self.share, share)
    }

    /// Whether both are parts of one share, of one kind.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.is_of(&other.share) && self.holding == other.holding
    }

    /// Adds a part of the same share and kind.
    pub(super) fn merge(&mut self, mut other: Self) {
        self.amount += std::mem::take(&mut other.amount);
    }
}

impl Drop for HeldShare {
    fn drop(&mut self) {
        self.share.counter(self.holding).fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_holds_no_more_than_its_limit_of_each_kind() {
        let share = Arc::new(Share::default());
        let take = |amount, max| share.take(Holding::BodyBytes, amount, max);

        let mut held = take(6, 10).unwrap();
        held.merge(take(3, 10).unwrap());

        assert!(take(2, 10).is_none());
        assert!(take(2, 0).is_some(), "0 is no limit");
        assert!(share.take(Holding::Waiters, 10, 10).is_some(), "each kind has its own limit");
        drop(held);
        assert!(take(10, 10).is_some());
    }
}
