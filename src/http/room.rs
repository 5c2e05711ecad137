use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Connection;

/// Connections that are cut at once, so that not every new connection looks at all of them.
const CUT_AT_ONCE: usize = 32;

/// The connections of a listener, a bounded number.
pub struct Room {
    max: usize,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    by_number: HashMap<u64, Connection>,
    next_number: u64,
}

/// One connection's place; it is free when this is dropped.
pub struct Place {
    room: Arc<Room>,
    number: u64,
}

impl Room {
    pub fn new(max: usize) -> Self {
        Self { max, connections: Mutex::default() }
    }

    /// In a full room, cuts connections that wait for their clients, the longest waiting first.
    /// Answers none where the server works for every client.
    pub fn admit(self: &Arc<Self>, connection: &Connection) -> Option<Place> {
        let mut connections = self.lock();
        if connections.by_number.len() >= self.max {
            connections.cut_idle();
        }
        if connections.by_number.len() >= self.max {
            return None;
        }
        let number = connections.next_number;
        connections.next_number += 1;
        connections.by_number.insert(number, connection.clone());
        Some(Place { room: Arc::clone(self), number })
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connections {
    fn cut_idle(&mut self) {
        let idle = self.by_number.iter().filter_map(|(number, connection)| Some((connection.idle_since()?, *number)));
        let mut idle: Vec<_> = idle.collect();
        // A small room keeps most of its connections.
        let cut = CUT_AT_ONCE.min(idle.len().div_ceil(8));
        if idle.len() > cut && cut > 0 {
            idle.select_nth_unstable(cut - 1);
            idle.truncate(cut);
        }
        for (_, number) in idle {
            if let Some(connection) = self.by_number.remove(&number) {
                connection.request_cut();
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.lock().by_number.remove(&self.number);
    }
}
