//! The slots of a listener: how many connections it has, and which one is cut for a new one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::Connection;

/// The most connections that are cut together. More than one, so that not every new connection
/// searches all others for idle ones.
const MAX_CUT_TOGETHER: usize = 32;
/// Of the idle connections, one in so many is cut together, rounded up: a small listener keeps
/// most.
const MIN_IDLE_PER_CUT: usize = 8;
/// How long a new connection waits until a connection that is being cut has closed.
const MAX_CUT_TIME: Duration = Duration::from_secs(1);

/// The slots of a listener, a bounded number. Each connection has one.
pub(super) struct Slots {
    max: usize,
    table: Mutex<SlotTable>,
    /// A slot is free, or a connection that was to be cut keeps its slot.
    changed: Notify,
}

#[derive(Default)]
struct SlotTable {
    by_number: HashMap<u64, Admitted>,
    next_number: u64,
}

struct Admitted {
    connection: Connection,
    /// The connection is being cut.
    is_cut: bool,
}

/// Why there is no slot for a connection.
enum NoSlot {
    /// Some connections are being cut, so a slot will be free soon.
    Cutting,
    /// The server works for every client.
    AllBusy,
}

/// One connection's slot. When it is dropped, the socket is closed and the slot is free.
pub(super) struct Slot {
    slots: Arc<Slots>,
    number: u64,
}

impl Slots {
    pub(super) fn new(max: usize) -> Self {
        Self { max, table: Mutex::default(), changed: Notify::new() }
    }

    /// Gives `connection` a slot.
    ///
    /// If all slots are taken, cuts idle connections, the longest idle first. Then waits up to 1 s
    /// until one of them has closed. Returns `None` if none closes, or if none is idle.
    pub(super) async fn admit(self: &Arc<Self>, connection: &Connection) -> Option<Slot> {
        let deadline = Instant::now() + MAX_CUT_TIME;
        loop {
            let changed = self.changed.notified();
            let admitted = self.table().admit(self.max, connection);
            match admitted {
                Ok(number) => return Some(Slot { slots: Arc::clone(self), number }),
                Err(NoSlot::AllBusy) => return None,
                Err(NoSlot::Cutting) => timeout_at(deadline, changed).await.ok()?,
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, SlotTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SlotTable {
    /// Returns the number of the new slot.
    fn admit(&mut self, max: usize, connection: &Connection) -> Result<u64, NoSlot> {
        if self.by_number.len() >= max {
            return Err(if self.cut_idle() { NoSlot::Cutting } else { NoSlot::AllBusy });
        }
        let number = self.next_number;
        self.next_number += 1;
        self.by_number.insert(number, Admitted { connection: connection.clone(), is_cut: false });
        Ok(number)
    }

    /// Cuts idle connections, unless some are being cut already. Returns false if none is idle.
    fn cut_idle(&mut self) -> bool {
        if self.by_number.values().any(|admitted| admitted.is_cut) {
            return true;
        }
        let idle = self
            .by_number
            .values_mut()
            .filter_map(|admitted| Some((admitted.connection.idle_since_ms()?, admitted)));
        let mut idle: Vec<_> = idle.collect();
        let cut = MAX_CUT_TOGETHER.min(idle.len().div_ceil(MIN_IDLE_PER_CUT));
        if idle.len() > cut && cut > 0 {
            idle.select_nth_unstable_by_key(cut - 1, |(since_ms, _)| *since_ms);
            idle.truncate(cut);
        }
        for (_, admitted) in &mut idle {
            admitted.is_cut = true;
            admitted.connection.request_cut();
        }
        cut > 0
    }
}

impl Slot {
    /// The connection is not cut after all.
    pub(super) fn keep(&self) {
        if let Some(admitted) = self.slots.table().by_number.get_mut(&self.number) {
            admitted.is_cut = false;
        }
        self.slots.changed.notify_waiters();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.slots.table();
        // Closes the socket before another connection gets the slot.
        drop(table.by_number.remove(&self.number));
        drop(table);
        self.slots.changed.notify_waiters();
    }
}
