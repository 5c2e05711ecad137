use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rslock::{Lock, LockManager};
use tokio::time::timeout;

use super::client::{MasterClient, MasterError, clients};
use crate::config::{LockConfig, LockStrategy, RedisConfig};

/// Lets one process at a time do a job, as far as Redis can.
///
/// Two processes may do it at once, for instance when the job takes longer than `lock.ttl`. So the
/// job must do no harm when it is done twice.
#[derive(Debug, Clone)]
pub enum Lease {
    /// Under `row` there is no Redis: every process does the job.
    None,
    Redlock(JobLease),
}

/// What a lease on one job needs of the masters.
#[derive(Debug, Clone)]
pub struct JobLease {
    clients: Vec<MasterClient>,
    /// Of the clients as they were opened last.
    masters: Arc<Mutex<LockManager>>,
    key: String,
    ttl: Duration,
}

impl Lease {
    /// Connects to nothing yet. `job` names the job; it becomes part of a key in Redis.
    ///
    /// Fails with [`MasterError::Url`], [`MasterError::Certificate`] or [`MasterError::NoPem`] if
    /// the settings of the masters are not usable.
    pub fn new(lock: &LockConfig, redis: &RedisConfig, job: &str) -> Result<Self, MasterError> {
        match lock.strategy {
            LockStrategy::Row => Ok(Self::None),
            LockStrategy::Redlock => {
                let clients = clients(redis)?;
                let masters = Arc::new(Mutex::new(manager(&clients)));
                // No product id has a space in it, so this is the key of no product.
                let key = format!("{}job {job}", lock.prefix);
                Ok(Self::Redlock(JobLease { clients, masters, key, ttl: lock.ttl }))
            }
        }
    }

    /// Does the job and answers its result. `None` if another process holds the lease, or if no
    /// majority of the masters answers within the TTL.
    pub async fn hold<T>(&self, job: impl Future<Output = T>) -> Option<T> {
        let (masters, key, ttl) = match self {
            Self::None => return Some(job.await),
            Self::Redlock(job) => (job.masters(), &job.key, job.ttl),
        };
        let lock: Lock = timeout(ttl, masters.lock(key.as_str(), ttl)).await.ok()?.ok()?;
        let done = job.await;
        if timeout(ttl, masters.unlock(&lock)).await.is_err() {
            tracing::debug!(key, "lease not released in time, it expires");
        }
        Some(done)
    }
}

impl JobLease {
    /// The masters with the certificates that the files have now.
    fn masters(&self) -> LockManager {
        let mut masters = self.masters.lock().unwrap_or_else(PoisonError::into_inner);
        // Each client is renewed, also behind one that was.
        let renewed: Vec<_> = self.clients.iter().map(MasterClient::renew).collect();
        if renewed.contains(&true) {
            *masters = manager(&self.clients);
        }
        masters.clone()
    }
}

fn manager(clients: &[MasterClient]) -> LockManager {
    let mut masters =
        LockManager::from_clients(clients.iter().map(MasterClient::current).collect());
    masters.set_retry(1, Duration::from_millis(1));
    masters
}
