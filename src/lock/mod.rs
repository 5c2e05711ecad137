//! The two ways to keep other workers off a batch's products, and a lease on jobs. The only user of Redis.

mod lease;
mod redlock;

pub use lease::Lease;
pub use redlock::Redlock;

use crate::{config, domain::ProductId, store::Guard, telemetry::Metrics};

/// Why a batch does not have its locks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    #[error("other holders have some of the keys")]
    Contended,
    #[error("no majority of the Redis masters answers")]
    Unavailable,
    #[error("redis.urls: {0}")]
    BadUrl(String),
}

/// A lock strategy, ready for use.
#[derive(Debug, Clone)]
pub enum Locks {
    /// The transaction locks the rows itself.
    Row,
    Redlock(Box<Redlock>),
}

/// The locks of a batch, until they are released.
#[derive(Debug)]
pub enum Held {
    Row,
    Redlock(Box<redlock::Held>),
}

impl Locks {
    /// Connects to nothing yet. Fails where a Redis URL does not parse.
    pub fn new(lock: &config::Lock, redis: &config::Redis, metrics: &Metrics) -> Result<Self, LockError> {
        match lock.strategy {
            config::LockStrategy::Row => Ok(Self::Row),
            config::LockStrategy::Redlock => {
                Redlock::new(lock, &redis.urls, metrics).map(|redlock| Self::Redlock(Box::new(redlock)))
            }
        }
    }

    pub fn strategy(&self) -> config::LockStrategy {
        match self {
            Self::Row => config::LockStrategy::Row,
            Self::Redlock(_) => config::LockStrategy::Redlock,
        }
    }

    /// What the transaction under these locks must do itself.
    pub fn guard(&self) -> Guard {
        match self {
            Self::Row => Guard::RowLocks,
            Self::Redlock(_) => Guard::Versions,
        }
    }

    /// Locks all the products or none, which are sorted and distinct. Waits for other holders up to `lock.wait`.
    pub async fn acquire(&self, products: &[ProductId]) -> Result<Held, LockError> {
        match self {
            Self::Row => Ok(Held::Row),
            Self::Redlock(redlock) => redlock.acquire(products).await.map(|held| Held::Redlock(Box::new(held))),
        }
    }
}

impl Held {
    /// Whether the locks may be another's by now.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Row => false,
            Self::Redlock(held) => held.is_lost(),
        }
    }

    /// Gives all of them back, as far as the masters can be reached.
    pub async fn release(self) {
        match self {
            Self::Row => {}
            Self::Redlock(held) => held.release().await,
        }
    }
}
