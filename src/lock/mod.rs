//! The two ways to keep other workers off a batch's products, and a lease on jobs. The only user of Redis.

mod lease;
mod master;
mod redlock;
mod survey;
mod turns;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use prometheus::IntGauge;
use tokio::time::Instant;

pub use lease::Lease;
pub use redlock::Redlock;
pub use survey::{Overlong, overlong_keys};

use crate::{
    config::{self, LockFallback, LockStrategy},
    domain::ProductId,
    store::Guard,
    telemetry::Metrics,
};

/// Why a batch does not have its locks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    #[error("other holders have some of the keys")]
    Contended,
    #[error("no majority of the Redis masters answers")]
    Unavailable,
    #[error("a Redis master does not answer: {0}")]
    Unanswered(String),
    #[error("redis.urls: {0}")]
    BadUrl(String),
}

/// The products that are wanted, and since when.
pub type Wanted = BTreeMap<ProductId, Instant>;

/// Whether one can still wait for what one does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    Left,
    Over,
}

/// A lock strategy, ready for use by one lane.
#[derive(Debug)]
pub enum Locks {
    /// The transaction locks the rows itself.
    Row,
    Redlock {
        redlock: Arc<Redlock>,
        fallback: LockFallback,
        falls_back: IntGauge,
    },
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
        if lock.strategy == LockStrategy::Row {
            return Ok(Self::Row);
        }
        let redlock = Arc::new(Redlock::new(lock, &redis.urls, metrics)?);
        Ok(Self::Redlock { redlock, fallback: lock.fallback, falls_back: metrics.lock_fallback.clone() })
    }

    /// Locks all that is wanted, or as much of it as will do: `wanted` says what to try without the products that others hold, which are
    /// none at first. While that is nothing it waits, until it is its turn, `lock.wait` at most. Fails at once where no majority of
    /// the masters answers.
    pub async fn acquire(
        &self,
        mut wanted: impl FnMut(&BTreeSet<ProductId>, Patience) -> Wanted,
    ) -> Result<Held, LockError> {
        match self {
            Self::Row => {
                wanted(&BTreeSet::new(), Patience::Left);
                Ok(Held::Row)
            }
            Self::Redlock { redlock, fallback, falls_back: gauge } => {
                let acquired = redlock.acquire(&mut wanted).await;
                let falls_back = *fallback == LockFallback::Row && matches!(acquired, Err(LockError::Unavailable));
                say_whether_it_falls_back(gauge, falls_back);
                if falls_back {
                    wanted(&BTreeSet::new(), Patience::Left);
                    return Ok(Held::Row);
                }
                acquired.map(|held| Held::Redlock(Box::new(held)))
            }
        }
    }
}

fn say_whether_it_falls_back(gauge: &IntGauge, falls_back: bool) {
    let before = gauge.get() != 0;
    gauge.set(falls_back.into());
    match (before, falls_back) {
        (false, true) => tracing::warn!("no majority of the Redis masters answers: row locks until one does"),
        (true, false) => tracing::info!("a majority of the Redis masters answers again: no more row locks"),
        _ => {}
    }
}

impl Held {
    pub fn strategy(&self) -> LockStrategy {
        match self {
            Self::Row => LockStrategy::Row,
            Self::Redlock(_) => LockStrategy::Redlock,
        }
    }

    /// What the transaction under these locks must do itself.
    pub fn guard(&self) -> Guard {
        match self {
            Self::Row => Guard::RowLocks,
            Self::Redlock(_) => Guard::Versions,
        }
    }

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
