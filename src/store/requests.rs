//! Changes the orders of the order store on the request of clients.

use std::{
    collections::BTreeSet,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Change, Changed, OrderStore, StoreError,
    changes::{Context, Event, Plan},
    error::Outage,
    rows::order_ids,
    statuses::lock_states,
    transaction::transaction,
};
use crate::{
    crash_point::crash_point,
    domain::{Horizon, INGEST_SOURCE, OrderId},
};

/// How long a COMMIT that was sent before the deadline is awaited after it.
const COMMIT_GRACE: Duration = Duration::from_secs(1);

/// When a group of requests changes orders.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestTimes {
    pub(crate) now: DateTime<Utc>,
    /// How long the caller has to publish the releases and the announcements.
    pub(crate) lease: Duration,
    /// No COMMIT is sent after it.
    pub(crate) deadline: Instant,
}

impl OrderStore {
    /// Changes orders on the request of clients in one transaction, as if one by one in their
    /// order. The releases that are owed then and the announcements are leased to the caller for
    /// `lease`.
    ///
    /// Fails as [`OrderStore::apply`] does.
    pub async fn change(
        &self,
        changes: &[(OrderId, Change)],
        now: DateTime<Utc>,
        horizon: Horizon,
        lease: Duration,
    ) -> Result<Changed, StoreError> {
        let context = Context { now, horizon, announcer: INGEST_SOURCE, lease };
        self.change_noting(changes, context, &AtomicBool::new(false)).await
    }

    /// [`OrderStore::change`] with a deadline. A COMMIT that was sent before it is awaited for 1 s
    /// more.
    ///
    /// After the deadline this fails with [`StoreError::Unavailable`] if no COMMIT was sent, and
    /// with [`StoreError::CommitUnknown`] if one was.
    pub(crate) async fn change_by(
        &self,
        changes: &[(OrderId, Change)],
        horizon: Horizon,
        times: RequestTimes,
    ) -> Result<Changed, StoreError> {
        let RequestTimes { now, lease, deadline } = times;
        let context = Context { now, horizon, announcer: INGEST_SOURCE, lease };
        let is_commit_sent = AtomicBool::new(false);
        let mut changing = pin!(self.change_noting(changes, context, &is_commit_sent));
        if let Ok(changed) = timeout_at(deadline, &mut changing).await {
            return changed;
        }
        if !is_commit_sent.load(Ordering::Relaxed) {
            return Err(Outage::DeadlinePassed.into());
        }
        let late = |_| StoreError::CommitUnknown(Outage::DeadlinePassed);
        timeout(COMMIT_GRACE, changing).await.map_err(late)?
    }

    /// Keeps in `is_commit_sent` whether the fate of the changes depends on a COMMIT.
    async fn change_noting(
        &self,
        changes: &[(OrderId, Change)],
        context: Context,
        is_commit_sent: &AtomicBool,
    ) -> Result<Changed, StoreError> {
        let ids: BTreeSet<_> = changes.iter().map(|(id, _)| *id).collect();
        let ids = order_ids(ids)?;
        transaction!(self.db, ChangeOrders, |conn, _| {
            is_commit_sent.store(false, Ordering::Relaxed);
            let locked = lock_states(conn, &ids).await?;
            let events = changes.iter().map(|(id, change)| Event::Requested(*id, *change));
            let changed = Plan::new(events, locked, context).write(conn).await?;
            crash_point("ingest.changed");
            is_commit_sent.store(true, Ordering::Relaxed);
            Ok(changed)
        })
    }
}
