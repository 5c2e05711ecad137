//! The memory that the requests of one listener may hold together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::share::HeldShare;

/// The first bytes of each body, which count as its small part.
const SMALL_PART_BYTES: usize = 16 << 10;
/// The bound for the small parts of all bodies together.
const MAX_SMALL_PARTS_BYTES: usize = 32 << 20;
/// The bound for the rest of all bodies together. It is apart, so that large bodies do not displace
/// small ones.
const MAX_LARGE_PARTS_BYTES: usize = 16 << 20;
/// The bound for large heads together.
const MAX_HEADS_BYTES: usize = 16 << 20;

/// The memory that the requests of one listener may hold together: 64 MiB in three parts. Cheap to
/// clone; all clones are the same memory.
#[derive(Debug, Clone)]
pub(crate) struct MemoryBudget {
    small_parts: Arc<Semaphore>,
    large_parts: Arc<Semaphore>,
    heads: Arc<Semaphore>,
}

impl Default for MemoryBudget {
    fn default() -> Self {
        let [small_parts, large_parts, heads] =
            [MAX_SMALL_PARTS_BYTES, MAX_LARGE_PARTS_BYTES, MAX_HEADS_BYTES]
                .map(|bytes| Arc::new(Semaphore::new(bytes)));
        Self { small_parts, large_parts, heads }
    }
}

/// The memory that one body or one head holds of a [`MemoryBudget`]. It is free again when this is
/// dropped.
#[derive(Debug, Default)]
pub(crate) struct HeldMemory {
    bytes: usize,
    permits: [Option<OwnedSemaphorePermit>; 2],
    /// What it holds of its client's share.
    share: Option<HeldShare>,
}

impl MemoryBudget {
    /// Raises what `held` holds for a body to `bytes` in all. Returns false if the budget has not
    /// enough left; `held` is unchanged then.
    pub(crate) fn hold_body(&self, held: &mut HeldMemory, bytes: usize) -> bool {
        let (now, then) = (held.bytes.min(SMALL_PART_BYTES), bytes.min(SMALL_PART_BYTES));
        let Some(small) = take(&self.small_parts, then.saturating_sub(now)) else { return false };
        let (now, then) =
            (held.bytes.saturating_sub(SMALL_PART_BYTES), bytes.saturating_sub(SMALL_PART_BYTES));
        let Some(large) = take(&self.large_parts, then.saturating_sub(now)) else { return false };
        held.add([Some(small), Some(large)], bytes);
        true
    }

    /// Raises what `held` holds for a head to `bytes` in all. Returns false if the budget has not
    /// enough left; `held` is unchanged then.
    pub(crate) fn hold_head(&self, held: &mut HeldMemory, bytes: usize) -> bool {
        let Some(more) = take(&self.heads, bytes.saturating_sub(held.bytes)) else { return false };
        held.add([Some(more), None], bytes);
        true
    }
}

impl HeldMemory {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn add_share(&mut self, more: HeldShare) {
        match &mut self.share {
            Some(share) if share.is_like(&more) => share.merge(more),
            share => *share = Some(more),
        }
    }

    fn add(&mut self, more: [Option<OwnedSemaphorePermit>; 2], bytes: usize) {
        for (held, more) in self.permits.iter_mut().zip(more) {
            match (held.as_mut(), more) {
                (Some(held), Some(more)) => held.merge(more),
                (None, more @ Some(_)) => *held = more,
                (_, None) => {}
            }
        }
        self.bytes = self.bytes.max(bytes);
    }
}

/// Returns `None` if fewer than `bytes` are left.
fn take(memory: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(memory).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_are_bounded_in_sum_and_leave_room_for_small_ones() {
        let memory = MemoryBudget::default();
        let mut bodies: Vec<HeldMemory> = Vec::new();
        loop {
            let mut held = HeldMemory::default();
            if !memory.hold_body(&mut held, 1 << 20) {
                break;
            }
            bodies.push(held);
        }

        assert_eq!(bodies.len(), 16);
        let mut small = HeldMemory::default();
        assert!(memory.hold_body(&mut small, SMALL_PART_BYTES));
        assert!(
            !memory.hold_body(&mut small, SMALL_PART_BYTES + (1 << 20)),
            "a small body cannot become large"
        );

        bodies.pop();

        assert!(
            memory.hold_body(&mut small, SMALL_PART_BYTES + (1 << 19)),
            "the memory of a body that has ended is free again"
        );
    }

    #[test]
    fn a_body_that_grows_holds_its_size_and_not_the_sum_of_its_steps() {
        let memory = MemoryBudget::default();
        let mut held = HeldMemory::default();
        for bytes in [1 << 10, 1 << 14, 1 << 20] {
            assert!(memory.hold_body(&mut held, bytes));
        }

        assert_eq!(
            memory.small_parts.available_permits(),
            MAX_SMALL_PARTS_BYTES - SMALL_PART_BYTES
        );
        assert_eq!(
            memory.large_parts.available_permits(),
            MAX_LARGE_PARTS_BYTES - (1 << 20) + SMALL_PART_BYTES
        );
    }
}
