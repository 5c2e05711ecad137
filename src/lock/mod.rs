//! Locks on the products of a batch, and leases on jobs. The only room that talks to Redis.
//!
//! A lock saves work; the database decides. Every write names the version that it read, and an
//! order's outcome has the order's id as its key. So a lock may be lost at any time without harm.
//! `docs/locking.md` has the algorithm, the failures and the reasons.
//!
//! | file | what it does |
//! | --- | --- |
//! | `mod.rs` | [`Locks`], the lock strategy of a lane, and [`Held`], the locks of one batch |
//! | `redlock.rs` | acquires the keys of a batch on a majority of the masters |
//! | `held_keys.rs` | renews and releases these keys |
//! | `votes.rs` | collects the masters' answers without waiting for the slowest master |
//! | `queue_notices.rs` | receives the notice that this lane is first in the queue of a key |
//! | `master.rs` | sends claims to one master, and cleans up those whose end is unknown |
//! | `scripts.rs` | the Lua scripts that the masters run |
//! | `client.rs` | opens the clients, with TLS; again when files of certificates change |
//! | `advice.rs` | what mends a failure of TLS or of the login |
//! | `lease.rs` | a lease on a job that one process at a time does |
//! | `probe.rs` | tries whether a majority can lock, for `/readyz` |
//! | `look.rs` | looks at the masters, for `stocklock doctor` |
//! | `survey.rs` | finds keys that outlive the TTL, for `stocklock verify` |

mod advice;
mod client;
mod held_keys;
mod lease;
mod look;
mod master;
mod probe;
mod queue_notices;
mod redlock;
mod scripts;
mod survey;
mod votes;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use prometheus::IntGauge;
use tokio::time::Instant;

pub(crate) use client::MasterError;
use held_keys::HeldKeys;
pub use lease::Lease;
pub(crate) use look::look_at_masters;
pub(crate) use probe::MastersProbe;
pub(crate) use redlock::Redlock;
pub(crate) use survey::OverlongKey;
pub use survey::overlong_keys;

use crate::{
    config::{LockConfig, LockFallback, LockStrategy, RedisConfig},
    domain::ProductId,
    store::Guard,
    telemetry::Metrics,
};

/// Why a batch did not acquire its locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Other claims held keys of every order of the batch until `lock.wait` was over.
    #[error("other workers hold some of the keys")]
    Contended,
    /// An outage: it says nothing about who holds the keys.
    #[error("no majority of the Redis masters answers in time")]
    Unavailable,
}

/// The part of a batch that can be decided without certain products.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The products of the orders in this part. Empty if no order can be decided.
    pub products: BTreeSet<ProductId>,
    /// Indices of the deferred orders in the batch, ascending.
    pub deferred: Vec<usize>,
    /// At least half of the batch can be decided. Then it is locked at once instead of waiting for
    /// the whole batch.
    pub covers_half: bool,
}

/// Locks, and the part of the batch that they cover.
#[derive(Debug)]
pub struct Acquired {
    pub held: Held,
    pub(crate) selection: Selection,
}

/// The lock strategy of one lane.
#[derive(Debug)]
pub enum Locks {
    /// The transaction locks the rows itself.
    Row,
    Redlock {
        redlock: Arc<Redlock>,
        /// `None` if the lane never takes row locks.
        fallback: Option<Fallback>,
    },
}

/// The locks of a batch, until they are released.
#[derive(Debug)]
pub enum Held {
    /// The transaction holds row locks; there is nothing to release.
    Row,
    Redlock(Box<HeldKeys>),
}

impl Locks {
    /// Connects to nothing yet.
    ///
    /// Fails with [`MasterError::Url`] if a URL of `redis.urls` is not valid, and with
    /// [`MasterError::Certificate`] or [`MasterError::NoPem`] if a certificate file is not usable.
    pub fn new(
        lock: &LockConfig,
        redis: &RedisConfig,
        metrics: &Metrics,
    ) -> Result<Self, MasterError> {
        match lock.strategy {
            LockStrategy::Row => Ok(Self::Row),
            LockStrategy::Redlock => Ok(Self::Redlock {
                redlock: Arc::new(Redlock::new(lock, redis, metrics)?),
                fallback: match lock.fallback {
                    LockFallback::None => None,
                    LockFallback::Row => Some(Fallback {
                        lanes: metrics.lock_fallback.clone(),
                        is_on: AtomicBool::new(false),
                    }),
                },
            }),
        }
    }

    /// Locks the whole batch, or a part of it if other workers hold some of its products.
    ///
    /// - `since`: arrival time of the oldest order in the batch. The oldest batch comes first.
    /// - `select`: answers which part of the batch can be decided without the given products. With
    ///   no products it answers the whole batch. It may be called often.
    ///
    /// Which part is locked:
    ///
    /// - A part that covers half of the batch is locked at once.
    /// - A smaller part is locked when `lock.wait` is over.
    ///
    /// Fails with [`LockError::Contended`] after `lock.wait` if no order can be decided. Fails with
    /// [`LockError::Unavailable`] at once if no majority of the masters answers in time, unless
    /// `lock.fallback` is `row`.
    pub async fn acquire(
        &self,
        since: Instant,
        select: impl Fn(&BTreeSet<ProductId>) -> Selection,
    ) -> Result<Acquired, LockError> {
        let by_rows = || Acquired { held: Held::Row, selection: select(&BTreeSet::new()) };
        match self {
            Self::Row => Ok(by_rows()),
            Self::Redlock { redlock, fallback } => {
                let acquired = redlock.acquire(since, &select).await;
                if let Some(fallback) = fallback
                    && fallback.takes_over(acquired.as_ref().err())
                {
                    return Ok(by_rows());
                }
                acquired
            }
        }
    }
}

/// Takes row locks while no majority of the masters answers.
#[derive(Debug)]
pub struct Fallback {
    /// The number of lanes that take row locks now.
    lanes: IntGauge,
    is_on: AtomicBool,
}

impl Fallback {
    /// Whether the batch takes row locks. Logs and counts each change.
    fn takes_over(&self, failure: Option<&LockError>) -> bool {
        let is_on = match failure {
            Some(LockError::Unavailable) => true,
            Some(LockError::Contended) | None => false,
        };
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
            (false, false) | (true, true) => {}
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

    /// What protects the transaction under these locks.
    pub(crate) fn guard(&self) -> Guard {
        match self {
            Self::Row => Guard::RowLocks,
            Self::Redlock(_) => Guard::Versions,
        }
    }

    /// Whether another holder may have the locks by now. The caller asks before each commit.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Row => false,
            Self::Redlock(keys) => keys.is_lost(),
        }
    }

    /// Releases all locks on the masters that can be reached. On the others they expire.
    pub async fn release(self) {
        match self {
            Self::Row => {}
            Self::Redlock(keys) => keys.release().await,
        }
    }
}
