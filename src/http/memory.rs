use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The part of a body that counts as small.
const SMALL_BYTES: usize = 16 << 10;
/// What the small parts of all bodies take together.
const MAX_SMALL_BYTES: usize = 32 << 20;
/// What the rest of all bodies takes together, so that large bodies do not displace small ones.
const MAX_LARGE_BYTES: usize = 16 << 20;
/// What large heads take together.
const MAX_HEADS_BYTES: usize = 16 << 20;

/// The memory that the requests of one listener may hold together: 64 MiB.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    heads: Arc<Semaphore>,
}

impl Default for Memory {
    fn default() -> Self {
        let [small, large, heads] = [MAX_SMALL_BYTES, MAX_LARGE_BYTES, MAX_HEADS_BYTES]
            .map(|bytes| Arc::new(Semaphore::new(bytes)));
        Self { small, large, heads }
    }
}

/// What one request holds of the memory; it is free again when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Held {
    bytes: usize,
    permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Memory {
    /// Holds `bytes` of a body in all, instead of what is held already. Answers false, and holds no
    /// more than before, where others hold too much.
    pub(crate) fn hold_body(&self, held: &mut Held, bytes: usize) -> bool {
        let (now, then) = (held.bytes.min(SMALL_BYTES), bytes.min(SMALL_BYTES));
        let Some(small) = take(&self.small, then.saturating_sub(now)) else { return false };
        let (now, then) =
            (held.bytes.saturating_sub(SMALL_BYTES), bytes.saturating_sub(SMALL_BYTES));
        let Some(large) = take(&self.large, then.saturating_sub(now)) else { return false };
        held.add([Some(small), Some(large)], bytes);
        true
    }

    /// The same for a head.
    pub(crate) fn hold_head(&self, held: &mut Held, bytes: usize) -> bool {
        let Some(more) = take(&self.heads, bytes.saturating_sub(held.bytes)) else { return false };
        held.add([Some(more), None], bytes);
        true
    }
}

impl Held {
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

fn take(memory: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(memory).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_are_bounded_in_sum_and_leave_room_for_small_ones() {
        let memory = Memory::default();
        let mut bodies: Vec<Held> = Vec::new();
        loop {
            let mut held = Held::default();
            if !memory.hold_body(&mut held, 1 << 20) {
                break;
            }
            bodies.push(held);
        }
        assert_eq!(bodies.len(), 16);
        let mut small = Held::default();
        assert!(memory.hold_body(&mut small, SMALL_BYTES));
        assert!(
            !memory.hold_body(&mut small, SMALL_BYTES + (1 << 20)),
            "a small body grows no further"
        );
        bodies.pop();
        assert!(
            memory.hold_body(&mut small, SMALL_BYTES + (1 << 19)),
            "what a body held is free again"
        );
    }

    #[test]
    fn a_body_that_grows_holds_its_size_and_not_the_sum_of_its_steps() {
        let memory = Memory::default();
        let mut held = Held::default();
        for bytes in [1 << 10, 1 << 14, 1 << 20] {
            assert!(memory.hold_body(&mut held, bytes));
        }
        assert_eq!(memory.small.available_permits(), MAX_SMALL_BYTES - SMALL_BYTES);
        assert_eq!(memory.large.available_permits(), MAX_LARGE_BYTES - (1 << 20) + SMALL_BYTES);
    }
}
