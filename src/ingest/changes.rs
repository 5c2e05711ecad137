//! Group commit of changes: requests to cancel, confirm and extend that arrive together share a
//! transaction.

use std::{pin::Pin, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::groups::GroupQueue;
use crate::{
    backoff::Backoff,
    config::BatchConfig,
    crash_point::crash_point,
    domain::{Effect, Horizon, OrderId, TraceContext, TracedOrders},
    relay::{Announcer, COMMITTER_LEASE, Relay, publish_changes},
    store::{Change, ChangeResult, Changed, OrderStore, RequestTimes, StoreError},
    telemetry::Metrics,
};

/// The most requests that wait for their transaction. A request above it is refused.
const MAX_QUEUED_CHANGES: usize = 10_000;
/// Tasks that change orders. Two, so that a group that waits for a locked order does not hold up
/// the next one.
const CHANGE_TASKS: usize = 2;

/// Why an order was not changed. The text is for the client.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum ChangeError {
    #[error("more requests are waiting than can be done soon; nothing was changed")]
    QueueFull,
    #[error("the order store cannot change orders at present; nothing was changed")]
    StoreAway,
    #[error("the request waited too long; nothing was changed")]
    DeadlinePassed,
    /// The order may be changed or not.
    #[error("the outcome of the commit is unknown: the request may be sent again")]
    CommitUnknown,
    /// The order's row cannot be read or written.
    #[error("the order store cannot change this order; nothing was changed")]
    Refused(#[source] Arc<StoreError>),
}

/// Changes orders on the request of clients. Requests that arrive together share a transaction.
/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Changer {
    queue: mpsc::Sender<QueuedChange>,
    /// How long a request may wait for its transaction to begin.
    deadline: Duration,
}

/// The parts that change orders and publish what the changes owe.
#[derive(Clone)]
pub(crate) struct ChangeTask {
    pub(crate) store: OrderStore,
    pub(crate) relay: Relay,
    pub(crate) announcer: Announcer,
    pub(crate) horizon: Horizon,
    pub(crate) metrics: Metrics,
}

/// A request that waits for its transaction.
struct QueuedChange {
    order_id: OrderId,
    change: Change,
    /// The trace of the request, if it is sampled.
    trace: Option<TraceContext>,
    /// The transaction begins before this instant, or never.
    deadline: Instant,
    /// Closed once the client has gone.
    result: oneshot::Sender<Result<ChangeResult, ChangeError>>,
}

/// A group whose transaction is committed.
struct CommittedGroup {
    changed: Changed,
    changed_at: DateTime<Utc>,
    /// An attempt before had a commit of unknown outcome.
    was_doubted: bool,
}

impl Changer {
    /// Starts the tasks that change orders. `groups` bounds the requests of a transaction, and
    /// `deadline` is how long a request may wait for its transaction to begin.
    ///
    /// The tasks end once the last clone of the changer is dropped and the queue is empty.
    pub(crate) fn start(
        task: &ChangeTask,
        groups: BatchConfig,
        deadline: Duration,
    ) -> (Self, JoinSet<()>) {
        let (queue, requests) = mpsc::channel(MAX_QUEUED_CHANGES);
        let queued = Arc::new(Mutex::new(GroupQueue::new(requests, groups)));
        let mut tasks = JoinSet::new();
        for _ in 0..CHANGE_TASKS {
            tasks.spawn(task.clone().run(Arc::clone(&queued)));
        }
        (Self { queue, deadline }, tasks)
    }

    /// Changes an order, and returns the effect and the order after it.
    ///
    /// The transaction begins before the deadline or not at all. It does not begin either once this
    /// future is dropped. A transaction that has begun may take 1 s longer.
    ///
    /// Fails with every variant of [`ChangeError`]. After `CommitUnknown` the order may be changed.
    pub(super) async fn change(
        &self,
        order_id: OrderId,
        change: Change,
        trace: Option<TraceContext>,
    ) -> Result<ChangeResult, ChangeError> {
        let (result, answer) = oneshot::channel();
        let deadline = Instant::now() + self.deadline;
        let queued = QueuedChange { order_id, change, trace, deadline, result };
        self.queue.try_send(queued).map_err(|_| ChangeError::QueueFull)?;
        // No answer: the task that had the request has ended.
        answer.await.unwrap_or(Err(ChangeError::CommitUnknown))
    }
}

impl QueuedChange {
    /// Returns `None` if the client has gone. Answers a late request with `DeadlinePassed`, and
    /// returns `None`.
    fn unless_gone_or_late(self, now: Instant) -> Option<Self> {
        if self.result.is_closed() {
            return None;
        }
        if now < self.deadline {
            return Some(self);
        }
        self.answer(Err(ChangeError::DeadlinePassed));
        None
    }

    fn answer(self, result: Result<ChangeResult, ChangeError>) {
        // The client may have gone. The change stands.
        let _client_gone = self.result.send(result);
    }
}

impl ChangeTask {
    async fn run(self, queue: Arc<Mutex<GroupQueue<QueuedChange>>>) {
        loop {
            let group = queue.lock().await.next_group().await;
            if group.is_empty() {
                return;
            }
            self.change(in_time(group)).await;
        }
    }

    /// Changes the orders of a group and answers its clients. A group that the store refuses is
    /// split in halves, until the refused order is alone.
    fn change(
        &self,
        mut group: Vec<QueuedChange>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            match self.commit(&mut group).await {
                Ok(Some(CommittedGroup { mut changed, changed_at, was_doubted })) => {
                    crash_point("ingest.changes_committed");
                    changed.log();
                    let results = std::mem::take(&mut changed.results);
                    let mut traced = TracedOrders::default();
                    for (mut queued, result) in group.into_iter().zip(results) {
                        if let Some(context) = queued.trace.take() {
                            traced.insert(queued.order_id, context);
                        }
                        queued.answer(known(result, was_doubted));
                    }
                    changed.count_closed_holds(&self.metrics.holds_closed);
                    let decidable_from = self.horizon.decidable(changed_at).start;
                    publish_changes(&self.relay, &self.announcer, changed, decidable_from, traced);
                }
                Ok(None) => {}
                Err(ChangeError::Refused(_)) if group.len() > 1 => {
                    let second_half = group.split_off(group.len() / 2);
                    self.change(group).await;
                    self.change(second_half).await;
                }
                Err(error) => {
                    for queued in group {
                        queued.answer(Err(error.clone()));
                    }
                }
            }
        })
    }

    /// Changes the orders of a group in one transaction, and repeats a failed attempt until the
    /// last deadline of the group. A change that is made twice has the effect of one, so the
    /// attempts go on after a commit of unknown outcome. Between attempts, a request leaves the
    /// group if its deadline has passed or its client has gone. `None` if all have left.
    ///
    /// Fails with `Refused` at once. Fails with `StoreAway` at the last deadline, or with
    /// `CommitUnknown` if the outcome of an attempt is unknown.
    async fn commit(
        &self,
        group: &mut Vec<QueuedChange>,
    ) -> Result<Option<CommittedGroup>, ChangeError> {
        let (mut failures, mut is_commit_unknown) = (Backoff::default(), false);
        while let Some(deadline) = group.iter().map(|queued| queued.deadline).max() {
            let requested: Vec<_> =
                group.iter().map(|queued| (queued.order_id, queued.change)).collect();
            let now = Utc::now();
            let times = RequestTimes { now, lease: COMMITTER_LEASE, deadline };
            let error = match self.store.change_by(&requested, self.horizon, times).await {
                Ok(changed) => {
                    let was_doubted = is_commit_unknown;
                    return Ok(Some(CommittedGroup { changed, changed_at: now, was_doubted }));
                }
                // The attempt before may have changed some of the orders.
                Err(StoreError::Refused(_) | StoreError::Corrupt(_)) if is_commit_unknown => {
                    return Err(ChangeError::CommitUnknown);
                }
                Err(
                    error @ (StoreError::Refused(_)
                    | StoreError::Unencodable(_)
                    | StoreError::Corrupt(_)),
                ) => return Err(ChangeError::Refused(Arc::new(error))),
                Err(error) => error,
            };
            self.metrics.retries.with_label_values(&["order_store"]).inc();
            tracing::warn!(requests = requested.len(), %error, "orders not changed");
            is_commit_unknown |= matches!(error, StoreError::CommitUnknown(_));
            let delay = failures.next_delay();
            if Instant::now() + delay >= deadline {
                return Err(if is_commit_unknown {
                    ChangeError::CommitUnknown
                } else {
                    ChangeError::StoreAway
                });
            }
            sleep(delay).await;
            if !is_commit_unknown {
                *group = in_time(std::mem::take(group));
            }
        }
        Ok(None)
    }
}

/// The answer to a request. A refusal after a commit of unknown outcome says nothing: that commit
/// may have made the change, and a later event of the order has followed it.
fn known(result: ChangeResult, was_doubted: bool) -> Result<ChangeResult, ChangeError> {
    let is_refused = matches!(result.effect, Effect::Refused | Effect::TooOld);
    if was_doubted && is_refused { Err(ChangeError::CommitUnknown) } else { Ok(result) }
}

/// The requests whose clients still wait and whose deadlines have not passed.
fn in_time(group: Vec<QueuedChange>) -> Vec<QueuedChange> {
    let now = Instant::now();
    group.into_iter().filter_map(|queued| queued.unless_gone_or_late(now)).collect()
}
