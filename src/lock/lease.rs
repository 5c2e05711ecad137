use std::time::Duration;

use rslock::{Lock, LockManager};
use tokio::time::timeout;

use super::{LockError, client::clients};
use crate::config;

/// Keeps a job that one process at a time suffices for from being done by several, as far as Redis can: the job must bear it where
/// two are at it all the same, for instance as it took longer than the TTL.
#[derive(Debug, Clone)]
pub enum Lease {
    /// Under `row` there is no Redis. Every process does the job.
    None,
    Redlock {
        masters: LockManager,
        key: String,
        ttl: Duration,
    },
}

impl Lease {
    /// Connects to nothing yet. Fails where a Redis URL does not parse, or a file of certificates
    /// is none.
    pub fn new(
        lock: &config::LockConfig,
        redis: &config::RedisConfig,
        job: &str,
    ) -> Result<Self, LockError> {
        if lock.strategy == config::LockStrategy::Row {
            return Ok(Self::None);
        }
        let mut masters = LockManager::from_clients(clients(redis)?);
        masters.set_retry(1, Duration::from_millis(1));
        // No product's id has a space, so that this is no product's key.
        let key = format!("{}job {job}", lock.prefix);
        Ok(Self::Redlock { masters, key, ttl: lock.ttl })
    }

    /// Does the job. `None` where another is at it, or no majority of the masters answers within the TTL.
    pub async fn hold<T>(&self, job: impl Future<Output = T>) -> Option<T> {
        let Self::Redlock { masters, key, ttl } = self else { return Some(job.await) };
        let lock: Lock = timeout(*ttl, masters.lock(key.as_str(), *ttl)).await.ok()?.ok()?;
        let done = job.await;
        if timeout(*ttl, masters.unlock(&lock)).await.is_err() {
            tracing::debug!(key, "a lease was not given back, it expires");
        }
        Some(done)
    }
}
