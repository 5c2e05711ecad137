//! Transactions of requests, which have a deadline.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::{Instant, timeout, timeout_at};

use super::{StoreError, error::Outage};

/// How long a COMMIT that was sent before the deadline is awaited after it.
const COMMIT_GRACE: Duration = Duration::from_secs(1);

/// Whether the fate of a transaction depends on a COMMIT.
#[derive(Debug, Default)]
pub(super) struct CommitSent(AtomicBool);

impl CommitSent {
    pub(super) fn set(&self, is_sent: bool) {
        self.0.store(is_sent, Ordering::Relaxed);
    }
}

/// Runs a transaction until the deadline, after which no COMMIT is sent. A COMMIT that was sent
/// before is awaited for 1 s more. The transaction keeps `commit_sent` up to date.
///
/// After the deadline this fails with [`StoreError::Unavailable`] if no COMMIT was sent, and with
/// [`StoreError::CommitUnknown`] if one was.
pub(super) async fn by_deadline<T>(
    deadline: Instant,
    commit_sent: &CommitSent,
    transaction: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let mut transaction = pin!(transaction);
    if let Ok(done) = timeout_at(deadline, &mut transaction).await {
        return done;
    }
    if !commit_sent.0.load(Ordering::Relaxed) {
        return Err(Outage::DeadlinePassed.into());
    }
    let late = |_| StoreError::CommitUnknown(Outage::DeadlinePassed);
    timeout(COMMIT_GRACE, transaction).await.map_err(late)?
}
