//! Changes the orders of the order store on the request of clients.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::{
    Change, Changed, OrderStore, StoreError,
    changes::{Context, Event, Plan},
    deadline::{CommitSent, by_deadline},
    rows::order_ids,
    statuses::lock_states,
    transaction::transaction,
};
use crate::{
    crash_point::crash_point,
    domain::{Horizon, INGEST_SOURCE, OrderId},
};

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
        requested: &[(OrderId, Change)],
        now: DateTime<Utc>,
        horizon: Horizon,
        lease: Duration,
    ) -> Result<Changed, StoreError> {
        let context = Context { now, horizon, announcer: INGEST_SOURCE, lease };
        self.change_noting(requested, context, &CommitSent::default()).await
    }

    /// [`OrderStore::change`] with a deadline. A COMMIT that was sent before it is awaited for 1 s
    /// more.
    ///
    /// After the deadline this fails with [`StoreError::Unavailable`] if no COMMIT was sent, and
    /// with [`StoreError::CommitUnknown`] if one was.
    pub(crate) async fn change_by(
        &self,
        requested: &[(OrderId, Change)],
        horizon: Horizon,
        times: RequestTimes,
    ) -> Result<Changed, StoreError> {
        let RequestTimes { now, lease, deadline } = times;
        let context = Context { now, horizon, announcer: INGEST_SOURCE, lease };
        let commit_sent = CommitSent::default();
        let changing = self.change_noting(requested, context, &commit_sent);
        by_deadline(deadline, &commit_sent, changing).await
    }

    /// Keeps `commit_sent` up to date.
    async fn change_noting(
        &self,
        requested: &[(OrderId, Change)],
        context: Context,
        commit_sent: &CommitSent,
    ) -> Result<Changed, StoreError> {
        let ids: BTreeSet<_> = requested.iter().map(|(id, _)| *id).collect();
        let ids = order_ids(ids)?;
        transaction!(self.db, ChangeOrders, |conn, _| {
            commit_sent.set(false);
            let locked = lock_states(conn, &ids).await?;
            let events = requested.iter().map(|(id, change)| Event::Requested(*id, *change));
            let changed = Plan::new(events, locked, context).write(conn).await?;
            crash_point("ingest.changed");
            commit_sent.set(true);
            Ok(changed)
        })
    }
}
