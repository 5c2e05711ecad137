//! The client that a connection belongs to, and what its bodies may hold.

use std::sync::{Arc, PoisonError};

use super::Connection;
use crate::http::{
    memory::HeldMemory,
    share::{HeldShare, Holding, Share},
};

/// The client of a connection, and its limits. A limit of 0 is none.
pub(super) struct Owner {
    share: Arc<Share>,
    max_body_bytes: usize,
    connection: HeldShare,
}

/// Why a body gets no more memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoMemory {
    /// The bodies of this client hold as much as they may.
    OfClient,
    /// The bodies of all clients do.
    OfAll,
}

impl Connection {
    /// Counts the connection as one of this client, until it ends or another client uses it.
    /// Returns false if the client has `max_connections` already. A limit of 0 is none.
    pub(crate) fn belongs_to(
        &self,
        share: &Arc<Share>,
        max_connections: usize,
        max_body_bytes: usize,
    ) -> bool {
        let mut owner = self.0.owner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = owner.as_mut().filter(|owner| owner.connection.is_of(share)) {
            owner.max_body_bytes = max_body_bytes;
            return true;
        }
        *owner = None;
        let Some(connection) = share.take(Holding::Connections, 1, max_connections) else {
            return false;
        };
        *owner = Some(Owner { share: Arc::clone(share), max_body_bytes, connection });
        true
    }

    /// Raises what `held` holds for a body to `bytes` in all. `held` is unchanged if this fails.
    pub(crate) fn hold_body(&self, held: &mut HeldMemory, bytes: usize) -> Result<(), NoMemory> {
        let more = bytes.saturating_sub(held.bytes());
        let owner = self.0.owner.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = match &*owner {
            Some(Owner { share, max_body_bytes, .. }) => {
                let taken = share.take(Holding::BodyBytes, more, *max_body_bytes);
                Some(taken.ok_or(NoMemory::OfClient)?)
            }
            None => None,
        };
        drop(owner);
        if !self.0.memory.hold_body(held, bytes) {
            return Err(NoMemory::OfAll);
        }
        if let Some(of_client) = of_client {
            held.add_share(of_client);
        }
        Ok(())
    }
}
