//! Group commit: orders that arrive together share a transaction.

use std::{
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prometheus::IntCounter;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::groups::GroupQueue;
use crate::{
    backoff::Backoff,
    config::BatchConfig,
    crash_point::crash_point,
    domain::{OrderId, TracedOrders},
    relay::{COMMITTER_LEASE, Relay},
    store::{OrderStore, PlaceTerms, Placed, Placement, StoreError, StoreUse, leaders},
    telemetry::{Metrics, SharedTransaction, order_log},
};

/// The most orders that wait for a commit. An order above it is not accepted.
const MAX_QUEUED_ORDERS: usize = 10_000;
/// Tasks that commit. Two, so that the next group gathers while one is being committed.
const COMMIT_TASKS: usize = 2;
/// How long attempts fail before the order store counts as away.
const AWAY_AFTER: Duration = Duration::from_secs(1);
/// The pause between two probes of an order store that is away, and how long a probe may take.
const PROBE_EVERY: Duration = Duration::from_millis(250);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why an order was not saved. The text is for the client.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SaveError {
    #[error("more orders are waiting than can be saved soon; nothing was saved")]
    QueueFull,
    #[error("the order store cannot save orders at present; nothing was saved")]
    StoreAway,
    #[error("the order waited too long to be saved; nothing was saved")]
    DeadlinePassed,
    /// The order may be saved or not, under this id.
    #[error("the outcome of the commit is unknown: GET shows whether the order was saved")]
    CommitUnknown(OrderId),
    /// The order store rejects the order for its data, although the API found the order valid.
    #[error("the order store refuses this order; nothing was saved")]
    RefusedByStore(#[source] Arc<StoreError>),
}

/// Saves orders. Orders that arrive together share a transaction. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Committer {
    queue: mpsc::Sender<QueuedOrder>,
    /// How long an order may wait for its transaction to begin.
    deadline: Duration,
    is_store_away: Arc<AtomicBool>,
    /// Counts orders whose clients have gone before their transaction began.
    abandoned: IntCounter,
    _alive: Arc<()>,
}

/// An order that waits for a commit.
struct QueuedOrder {
    placement: Placement,
    /// The order's transaction begins before this instant, or never.
    deadline: Instant,
    ownership: Ownership,
    saved: oneshot::Sender<Result<Placed, SaveError>>,
}

/// Belongs to the first caller of [`Ownership::take`]: to the task that begins an order's
/// transaction, or to the client that gives the order up.
#[derive(Clone, Default)]
struct Ownership(Arc<AtomicBool>);

impl Ownership {
    /// Returns true for the first caller alone.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Gives an order up when it is dropped, unless its transaction has begun. It is dropped with its
/// request when the client closes the connection.
struct AbandonOnDrop {
    ownership: Ownership,
    abandoned: IntCounter,
}

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        if self.ownership.take() {
            self.abandoned.inc();
        }
    }
}

impl Committer {
    /// Starts the tasks that commit. `groups` bounds the orders of a transaction, and `deadline` is
    /// how long an order may wait for its transaction to begin.
    ///
    /// The tasks end once the last clone of the committer is dropped and the queue is empty.
    pub(crate) fn start(
        store: OrderStore,
        relay: Relay,
        groups: BatchConfig,
        deadline: Duration,
        metrics: &Metrics,
    ) -> (Self, JoinSet<()>) {
        let (queue, orders) = mpsc::channel(MAX_QUEUED_ORDERS);
        let queued = Arc::new(Mutex::new(GroupQueue::new(orders, groups)));
        let (is_store_away, alive) = (Arc::new(AtomicBool::new(false)), Arc::new(()));
        let abandoned = metrics.orders_ingested.with_label_values(&["abandoned"]);
        let mut tasks = JoinSet::new();
        for _ in 0..COMMIT_TASKS {
            let task = CommitTask {
                store: store.clone(),
                relay: relay.clone(),
                metrics: metrics.clone(),
                is_store_away: Arc::clone(&is_store_away),
                alive: Arc::downgrade(&alive),
            };
            tasks.spawn(task.run(Arc::clone(&queued)));
        }
        (Self { queue, deadline, is_store_away, abandoned, _alive: alive }, tasks)
    }

    /// Returns once the order is durable, and on its way to the `orders` topic. Or returns what an
    /// earlier request with the same key or id has made.
    ///
    /// The order's transaction begins before the deadline or not at all. It does not begin either
    /// once this future is dropped. A transaction that has begun may take as long again.
    ///
    /// Fails with every variant of [`SaveError`]. After `CommitUnknown` the order may be saved.
    pub(crate) async fn save(&self, placement: Placement) -> Result<Placed, SaveError> {
        self.check_store()?;
        let order_id = placement.order.order_id;
        let deadline = Instant::now() + self.deadline;
        let (saved, mut outcome) = oneshot::channel();
        let ownership = Ownership::default();
        let queued = QueuedOrder { placement, deadline, ownership: ownership.clone(), saved };
        self.queue.try_send(queued).map_err(|_| SaveError::QueueFull)?;
        let client = AbandonOnDrop { ownership, abandoned: self.abandoned.clone() };
        let answer = match timeout_at(deadline, &mut outcome).await {
            Ok(answer) => answer,
            Err(_) if client.ownership.take() => return Err(SaveError::DeadlinePassed),
            Err(_) => outcome.await,
        };
        // No answer: the task ended that had the order, or the tasks that might have taken it.
        answer.unwrap_or_else(|_| {
            let has_begun = !client.ownership.take();
            Err(if has_begun { SaveError::CommitUnknown(order_id) } else { SaveError::StoreAway })
        })
    }

    /// Fails with `StoreAway` while the order store is known to be away.
    pub(crate) fn check_store(&self) -> Result<(), SaveError> {
        if self.is_store_away.load(Ordering::Relaxed) { Err(SaveError::StoreAway) } else { Ok(()) }
    }
}

impl QueuedOrder {
    /// Takes the order for a transaction. Returns `None` if its client gave it up or its deadline
    /// has passed.
    fn begin(self, now: Instant) -> Option<Self> {
        if self.ownership.take() { self.unless_late(now) } else { None }
    }

    /// Answers a late order with `DeadlinePassed`, and returns `None`.
    fn unless_late(self, now: Instant) -> Option<Self> {
        if now < self.deadline {
            return Some(self);
        }
        self.answer(Err(SaveError::DeadlinePassed));
        None
    }

    fn answer(self, outcome: Result<Placed, SaveError>) {
        // The client may have gone. The outcome of its order stands.
        let _client_gone = self.saved.send(outcome);
    }
}

/// Why the orders of a group were not saved.
enum GroupFailure {
    Refused(Arc<StoreError>),
    StoreAway,
    CommitUnknown,
}

impl GroupFailure {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::StoreAway => "the order store is away",
            Self::CommitUnknown => "the outcome of the commit is unknown",
        }
    }

    fn answer(&self, group: Vec<QueuedOrder>) {
        let placements: Vec<_> = group.iter().map(|queued| &queued.placement).collect();
        // Equal requests of a group make the order of the first of them.
        let leaders = leaders(&placements).into_iter();
        let ids: Vec<_> = leaders.map(|at| placements[at].order.order_id).collect();
        for (queued, order_id) in group.into_iter().zip(ids) {
            queued.answer(Err(match self {
                Self::Refused(error) => SaveError::RefusedByStore(Arc::clone(error)),
                Self::StoreAway => SaveError::StoreAway,
                Self::CommitUnknown => SaveError::CommitUnknown(order_id),
            }));
        }
    }
}

/// One of the tasks that commit.
struct CommitTask {
    store: OrderStore,
    relay: Relay,
    metrics: Metrics,
    is_store_away: Arc<AtomicBool>,
    /// Cannot be upgraded once the last committer is dropped.
    alive: Weak<()>,
}

impl CommitTask {
    async fn run(self, queue: Arc<Mutex<GroupQueue<QueuedOrder>>>) {
        loop {
            self.wait_for_store().await;
            let group = queue.lock().await.next_group().await;
            if group.is_empty() {
                return;
            }
            let now = Instant::now();
            self.save(group.into_iter().filter_map(|queued| queued.begin(now)).collect()).await;
        }
    }

    /// Probes a store that is away until it is back, or until the last committer is dropped.
    async fn wait_for_store(&self) {
        while self.is_store_away.load(Ordering::Relaxed) && self.alive.strong_count() > 0 {
            match timeout(PROBE_TIMEOUT, self.store.probe(&[StoreUse::Place])).await {
                Ok(Ok(())) => {
                    if self.is_store_away.swap(false, Ordering::Relaxed) {
                        tracing::info!("the order store is back");
                    }
                }
                failed => {
                    tracing::debug!(error = ?failed, "the order store is still away");
                    sleep(PROBE_EVERY).await;
                }
            }
        }
    }

    /// Saves a group and answers its clients. A group that the store refuses is split in halves,
    /// until the refused order is alone.
    fn save(&self, mut group: Vec<QueuedOrder>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let begun = Instant::now();
            let placed = self.place(&mut group).await;
            self.trace(&group, begun, placed.as_ref().err());
            match placed {
                Ok(placed) => {
                    crash_point("ingest.committed");
                    self.answer(group, placed);
                }
                Err(GroupFailure::Refused(_)) if group.len() > 1 => {
                    let second_half = group.split_off(group.len() / 2);
                    self.save(group).await;
                    self.save(second_half).await;
                }
                Err(failure) => failure.answer(group),
            }
        })
    }

    /// Answers the clients of a group, and publishes its new orders.
    fn answer(&self, group: Vec<QueuedOrder>, placed: Vec<Placed>) {
        let mut events = Vec::with_capacity(group.len());
        let mut traced = TracedOrders::default();
        for (QueuedOrder { placement, saved, .. }, placed) in group.into_iter().zip(placed) {
            if placed == Placed::New {
                order_log::saved(placement.order.order_id);
                if let Some(context) = placement.trace {
                    traced.insert(placement.order.order_id, *context);
                }
                events.push(placement.order.into_event());
            }
            // The client may have gone. The outcome of its order stands.
            let _client_gone = saved.send(Ok(placed));
        }
        self.relay.publish_in_background(events, traced);
    }

    /// Makes the span of a transaction that has just ended, for each traced order of its group.
    fn trace(&self, group: &[QueuedOrder], begun: Instant, failure: Option<&GroupFailure>) {
        let transaction =
            SharedTransaction { name: "order_store place", begun, orders: group.len() };
        let error = failure.map(GroupFailure::as_str);
        for Placement { order, trace, .. } in group.iter().map(|queued| &queued.placement) {
            if let Some(trace) = trace {
                self.relay.traces().transaction(trace, order.order_id, transaction, error);
            }
        }
    }

    /// Places a group in one transaction, and repeats a failed attempt until the last deadline of
    /// the group. Between attempts, an order leaves the group if its deadline has passed or its
    /// client has gone.
    ///
    /// Fails with `Refused` at once. Fails with `StoreAway` at the last deadline, or with
    /// `CommitUnknown` if the outcome of an attempt is unknown.
    async fn place(&self, group: &mut Vec<QueuedOrder>) -> Result<Vec<Placed>, GroupFailure> {
        let (mut failures, begun_at) = (Backoff::default(), Instant::now());
        let mut is_commit_unknown = false;
        while let Some(deadline) = group.iter().map(|queued| queued.deadline).max() {
            let placements: Vec<_> = group.iter().map(|queued| &queued.placement).collect();
            let terms = PlaceTerms {
                lease: COMMITTER_LEASE,
                max_id_skew: self.relay.max_id_skew(),
                is_repeated: is_commit_unknown,
            };
            let error = match self.store.place_by(&placements, terms, deadline).await {
                Ok(placed) => {
                    self.is_store_away.store(false, Ordering::Relaxed);
                    return Ok(placed);
                }
                Err(
                    error @ (StoreError::Refused(_)
                    | StoreError::Unencodable(_)
                    | StoreError::Corrupt(_)),
                ) if !is_commit_unknown => {
                    return Err(GroupFailure::Refused(Arc::new(error)));
                }
                Err(error) => error,
            };
            self.metrics.retries.with_label_values(&["order_store"]).inc();
            let delay = failures.next_delay();
            let is_last = Instant::now() + delay >= deadline;
            // A row that others have locked is no outage.
            let is_outage =
                matches!(error, StoreError::Unavailable(_) | StoreError::CommitUnknown(_));
            if is_outage && (is_last || begun_at.elapsed() >= AWAY_AFTER) {
                self.is_store_away.store(true, Ordering::Relaxed);
            }
            tracing::warn!(orders = placements.len(), %error, "orders not saved");
            is_commit_unknown |= matches!(error, StoreError::CommitUnknown(_));
            if is_last {
                return Err(if is_commit_unknown {
                    GroupFailure::CommitUnknown
                } else {
                    GroupFailure::StoreAway
                });
            }
            sleep(delay).await;
            // After a commit of unknown outcome no order leaves the group: the next attempt finds
            // out whether each of them was saved.
            if !is_commit_unknown {
                group.retain(|queued| !queued.saved.is_closed());
                let (queued, now) = (std::mem::take(group), Instant::now());
                *group = queued.into_iter().filter_map(|queued| queued.unless_late(now)).collect();
            }
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests;
