//! New order ids. The domain takes time and randomness as arguments; this room reads both.

use uuid::Uuid;

use crate::domain::OrderId;

impl OrderId {
    /// A new id: the present time and random bits of the operating system. The ids that a process
    /// makes are ascending.
    pub fn generate() -> Self {
        Self::with_bits(Uuid::now_v7().into_bytes())
    }
}
