//! The two ways to keep other workers off a batch's products, and a lease on jobs. The only user of Redis.

mod client;
mod lease;
mod master;
mod probe;
mod redlock;
mod scripts;
mod survey;
mod turns;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use prometheus::IntGauge;
use tokio::time::Instant;

pub use lease::Lease;
pub(crate) use probe::MastersProbe;
pub(crate) use redlock::Redlock;
pub(crate) use survey::Overlong;
pub use survey::overlong_keys;

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
    #[error("no majority of the Redis masters answers in time")]
    Unavailable,
    #[error("a Redis master does not answer: {0}")]
    Unanswered(String),
    #[error("redis.urls: {0}")]
    BadUrl(String),
    #[error("{0}")]
    BadTls(String),
}

/// What is to be locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub products: BTreeSet<ProductId>,
    /// Since when the one has waited who has waited for the longest.
    pub since: Instant,
}

impl Wanted {
    pub(crate) fn nothing() -> Self {
        Self { products: BTreeSet::new(), since: Instant::now() }
    }
}

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
        /// `None` where it never takes row locks.
        fallback: Option<Fallback>,
    },
}

/// The locks of a batch, until they are released.
#[derive(Debug)]
pub enum Held {
    Row,
    Redlock(Box<redlock::Held>),
}

impl Locks {
    /// Connects to nothing yet. Fails where a Redis URL does not parse, or a file of certificates
    /// is none.
    pub fn new(
        lock: &config::LockConfig,
        redis: &config::RedisConfig,
        metrics: &Metrics,
    ) -> Result<Self, LockError> {
        if lock.strategy == LockStrategy::Row {
            return Ok(Self::Row);
        }
        let redlock = Arc::new(Redlock::new(lock, redis, metrics)?);
        let fallback = (lock.fallback == LockFallback::Row).then(|| Fallback {
            lanes: metrics.lock_fallback.clone(),
            is_on: AtomicBool::new(false),
        });
        Ok(Self::Redlock { redlock, fallback })
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
            Self::Redlock { redlock, fallback } => {
                let acquired = redlock.acquire(&mut wanted).await;
                if let Some(fallback) = fallback
                    && fallback.takes_over(acquired.as_ref().err())
                {
                    wanted(&BTreeSet::new(), Patience::Left);
                    return Ok(Held::Row);
                }
                acquired.map(|held| Held::Redlock(Box::new(held)))
            }
        }
    }
}

/// Row locks, while no majority of the masters answers.
#[derive(Debug)]
pub struct Fallback {
    /// How many lanes take them.
    lanes: IntGauge,
    is_on: AtomicBool,
}

impl Fallback {
    fn takes_over(&self, failure: Option<&LockError>) -> bool {
        let is_on = failure == Some(&LockError::Unavailable);
        match (self.is_on.swap(is_on, Ordering::SeqCst), is_on) {
            (false, true) => {
                self.lanes.inc();
                tracing::warn!(
                    "no majority of the Redis masters answers in time: row locks until one does"
                );
            }
            (true, false) => {
                self.lanes.dec();
                tracing::info!("a majority of the Redis masters answers again: no more row locks");
            }
            _ => {}
        }
        is_on
    }
}

impl Drop for Fallback {
    fn drop(&mut self) {
        if *self.is_on.get_mut() {
            self.lanes.dec();
        }
    }
}

impl Held {
    pub(crate) fn strategy(&self) -> LockStrategy {
        match self {
            Self::Row => LockStrategy::Row,
            Self::Redlock(_) => LockStrategy::Redlock,
        }
    }

    /// What the transaction under these locks must do itself.
    pub(crate) fn guard(&self) -> Guard {
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
