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

/// Connections that are cut at once, so that not every new connection looks at all of them.
const CUT_AT_ONCE: usize = 32;
/// How long a new connection waits until those that are cut have closed.
const CUT_TIME: Duration = Duration::from_secs(1);

/// The connections of a listener, a bounded number.
pub(super) struct Room {
    max: usize,
    connections: Mutex<Connections>,
    /// A place is free, or a connection that was to be cut keeps its place.
    changed: Notify,
}

#[derive(Default)]
struct Connections {
    by_number: HashMap<u64, Admitted>,
    next_number: u64,
}

struct Admitted {
    connection: Connection,
    is_cut: bool,
}

/// Why a connection has no place.
enum Full {
    /// Other connections are being cut.
    Cutting,
    /// The server works for every client.
    Working,
}

/// One connection's place; it is free when this is dropped.
pub(super) struct Place {
    room: Arc<Room>,
    number: u64,
}

impl Room {
    pub(super) fn new(max: usize) -> Self {
        Self { max, connections: Mutex::default(), changed: Notify::new() }
    }

    /// In a full room, cuts connections that wait for their clients, the longest waiting first, and
    /// returns once one has closed. Answers none where the server works for every client.
    pub(super) async fn admit(self: &Arc<Self>, connection: &Connection) -> Option<Place> {
        let deadline = Instant::now() + CUT_TIME;
        loop {
            let changed = self.changed.notified();
            let admitted = self.lock().admit(self.max, connection);
            match admitted {
                Ok(number) => return Some(Place { room: Arc::clone(self), number }),
                Err(Full::Working) => return None,
                Err(Full::Cutting) => timeout_at(deadline, changed).await.ok()?,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    fn admit(&mut self, max: usize, connection: &Connection) -> Result<u64, Full> {
        if self.by_number.len() >= max {
            return Err(if self.cut_idle() { Full::Cutting } else { Full::Working });
        }
        let number = self.next_number;
        self.next_number += 1;
        self.by_number.insert(number, Admitted { connection: connection.clone(), is_cut: false });
        Ok(number)
    }

    /// Cuts idle connections, unless some are being cut. Answers false where none is idle.
    fn cut_idle(&mut self) -> bool {
        if self.by_number.values().any(|admitted| admitted.is_cut) {
            return true;
        }
        let idle = self
            .by_number
            .values_mut()
            .filter_map(|admitted| Some((admitted.connection.idle_since()?, admitted)));
        let mut idle: Vec<_> = idle.collect();
        // A small room keeps most of its connections.
        let cut = CUT_AT_ONCE.min(idle.len().div_ceil(8));
        if idle.len() > cut && cut > 0 {
            idle.select_nth_unstable_by_key(cut - 1, |(since, _)| *since);
            idle.truncate(cut);
        }
        for (_, admitted) in &mut idle {
            admitted.is_cut = true;
            admitted.connection.request_cut();
        }
        cut > 0
    }
}

impl Place {
    /// A connection that was to be cut goes on.
    pub(super) fn keep(&self) {
        if let Some(admitted) = self.room.lock().by_number.get_mut(&self.number) {
            admitted.is_cut = false;
        }
        self.room.changed.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.room.lock();
        // Closes the socket before another connection gets the place.
        drop(connections.by_number.remove(&self.number));
        drop(connections);
        self.room.changed.notify_waiters();
    }
}
