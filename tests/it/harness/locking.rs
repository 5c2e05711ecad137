//! Redlock as a process of its own has it, and products to lock.

use stocklock::{domain::ProductId, lock::Locks, telemetry::Metrics};

use super::World;

impl World {
    /// Locks over the world's masters, with metrics that no test reads.
    pub(crate) fn locks(&self) -> Locks {
        self.locks_with(&Self::metrics())
    }

    pub(crate) fn locks_with(&self, metrics: &Metrics) -> Locks {
        Locks::new(&self.config.lock, &self.config.redis, metrics).expect("the locks")
    }
}

/// The products `p0000`, `p0001`, and so on.
pub(crate) fn products(count: usize) -> Vec<ProductId> {
    (0..count).map(|number| ProductId::parse(&format!("p{number:04}")).expect("an id")).collect()
}

pub(crate) fn products_named(names: &[&str]) -> Vec<ProductId> {
    names.iter().map(|name| ProductId::parse(name).expect("an id")).collect()
}
