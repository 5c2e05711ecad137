//! The one runner of transactions: named, bounded, measured, and repeated after a conflict.

use std::{ops::ControlFlow, time::Duration};

use sqlx::Executor as _;
use tokio::time::{Instant, error::Elapsed, timeout};

use super::{Database, StoreError, error::Conflict, in_use::InUse};
use crate::backoff::jittered;

const MAX_ATTEMPTS: u32 = 10;
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(2);
/// The delay doubles so often: up to 256 ms.
const MAX_DOUBLINGS: u32 = 7;

macro_rules! transaction_names {
    ($($variant:ident => $label:literal,)+) => {
        /// A transaction of one of the stores. Its label is the value of `name` in
        /// `stocklock_transaction_seconds`, so there are no other values.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum TransactionName { $($variant,)+ }

        impl TransactionName {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];

            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }
    };
}

transaction_names! {
    // The order store.
    Place => "place",
    ClaimOutbox => "claim_outbox",
    ForgetPublished => "forget_published",
    ClaimReleases => "claim_releases",
    ScheduleReleases => "schedule_releases",
    ExpireReleases => "expire_releases",
    OweReleases => "owe_releases",
    DismissReleases => "dismiss_releases",
    ApplyStatuses => "apply_statuses",
    ChangeOrders => "change_orders",
    EndHolds => "end_holds",
    ClaimAnnouncements => "claim_announcements",
    ForgetAnnouncements => "forget_announcements",
    PurgeOrders => "purge_orders",
    // The stock store.
    Decide => "decide",
    Import => "import",
    Restock => "restock",
    Adjust => "adjust",
    PurgeOutcomes => "purge_outcomes",
    PurgeMovements => "purge_movements",
    NoteLevels => "note_levels",
    ForgetLevelNotes => "forget_level_notes",
}

/// Runs a block in a transaction and commits it:
/// `transaction!(db, Place, |conn, attempt| { …; Ok(value) })`. The name is a variant of
/// [`TransactionName`].
///
/// A conflict with another transaction runs the block again, at most 10 times. `attempt` counts
/// from 0. One attempt takes no longer than the lock limit of the pool. Fails with
///
/// - [`StoreError::Conflict`] if each of the attempts met one,
/// - [`StoreError::Unavailable`] if there is no connection, or an attempt took too long,
/// - [`StoreError::CommitUnknown`] if the server did not answer COMMIT: the rows may be committed,
/// - any other error of the block.
///
/// (A macro, since the compiler cannot show that a future which borrows from an async closure is
/// `Send`.)
macro_rules! transaction {
    ($database:expr, $name:ident, |$conn:ident, $attempt:pat_param| $work:expr) => {{
        let name = $crate::store::transaction::TransactionName::$name;
        let mut attempts = $crate::store::transaction::Attempts::new(&$database, name);
        loop {
            let $attempt = attempts.made();
            let mut in_use = match $database.acquire().await {
                Ok(in_use) => in_use,
                Err(error) => break Err(error),
            };
            let worked = tokio::time::timeout($database.limits().work, async {
                let $conn: &mut sqlx::MySqlConnection = in_use.conn();
                sqlx::Executor::execute(&mut *$conn, "START TRANSACTION").await?;
                $work
            });
            let worked = worked.await;
            if let std::ops::ControlFlow::Break(done) = attempts.end(in_use, worked).await {
                break done;
            }
        }
    }};
}
pub(super) use transaction;

/// The attempts at one transaction. When this is dropped, its time is recorded: also of a
/// transaction that failed, or whose caller went away.
pub(super) struct Attempts<'a> {
    database: &'a Database,
    name: TransactionName,
    begun: Instant,
    made: u32,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(database: &'a Database, name: TransactionName) -> Self {
        Self { database, name, begun: Instant::now(), made: 0 }
    }

    /// How many attempts have ended.
    pub(super) fn made(&self) -> u32 {
        self.made
    }

    /// Commits the attempt, or rolls it back. `Continue` says that it met a conflict and the caller
    /// makes another attempt.
    pub(super) async fn end<T>(
        &mut self,
        in_use: InUse,
        worked: Result<Result<T, StoreError>, Elapsed>,
    ) -> ControlFlow<Result<T, StoreError>> {
        let limits = self.database.limits();
        let error = match worked {
            Ok(Ok(value)) => match commit(in_use, limits.commit).await {
                Ok(()) => return ControlFlow::Break(Ok(value)),
                Err(error) => error,
            },
            Ok(Err(error)) => roll_back(in_use, limits.commit, error).await,
            Err(_) => StoreError::Unavailable(in_use.give_up(limits.work)),
        };
        self.made += 1;
        match error {
            StoreError::Conflict(conflict) if self.made < MAX_ATTEMPTS => {
                self.wait_after(&conflict).await;
                ControlFlow::Continue(())
            }
            error => ControlFlow::Break(Err(error)),
        }
    }

    async fn wait_after(&self, conflict: &Conflict) {
        self.database.count_retry();
        tracing::debug!(
            transaction = self.name.as_str(),
            attempts = self.made,
            %conflict,
            "transaction met a conflict, running it again"
        );
        let bound = FIRST_RETRY_DELAY.saturating_mul(1 << self.made.min(MAX_DOUBLINGS));
        tokio::time::sleep(jittered(bound, 0.0..1.0)).await;
    }
}

impl Drop for Attempts<'_> {
    fn drop(&mut self) {
        self.database.observe_transaction(self.name, self.begun.elapsed());
    }
}

/// Fails with [`StoreError::Conflict`] if the server answers that it rolled back, and else with
/// [`StoreError::CommitUnknown`].
async fn commit(mut in_use: InUse, limit: Duration) -> Result<(), StoreError> {
    match timeout(limit, in_use.conn().execute("COMMIT")).await {
        Ok(Ok(_)) => in_use.end(Ok(())),
        Ok(Err(error)) => match StoreError::of_commit(error) {
            conflict @ StoreError::Conflict(_) => Err(roll_back(in_use, limit, conflict).await),
            unknown => Err(in_use.end_failed(unknown)),
        },
        Err(_) => Err(StoreError::CommitUnknown(in_use.give_up(limit))),
    }
}

/// Returns `error`. The pool does not use a session again that fails to roll back within `limit`.
async fn roll_back(mut in_use: InUse, limit: Duration, error: StoreError) -> StoreError {
    match timeout(limit, in_use.conn().execute("ROLLBACK")).await {
        Ok(Ok(_)) => in_use.end_failed(error),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_transaction_has_a_label_of_its_own() {
        let labels: BTreeSet<_> = TransactionName::ALL.iter().map(|name| name.as_str()).collect();

        assert_eq!(labels.len(), TransactionName::ALL.len());
        assert!(
            labels.iter().all(|label| {
                label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            })
        );
    }
}
