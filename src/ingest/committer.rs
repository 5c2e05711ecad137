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
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use crate::{
    backoff::Backoff,
    config::BatchConfig,
    crash_point::crash_point,
    relay::{COMMITTER_LEASE, Relay},
    store::{NewOrder, OrderStore, StoreError, StoreUse},
    telemetry::Metrics,
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
    #[error("more orders are waiting than can be saved soon")]
    QueueFull,
    #[error("the order store cannot save orders at present")]
    StoreAway,
    #[error("the order waited too long to be saved; nothing was saved")]
    DeadlinePassed,
    /// The order may be saved or not.
    #[error("the outcome of the commit is unknown: GET shows whether the order was saved")]
    CommitUnknown,
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
    order: NewOrder,
    /// The order's transaction begins before this instant, or never.
    deadline: Instant,
    ownership: Ownership,
    saved: oneshot::Sender<Result<(), SaveError>>,
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
        let queued = OrderQueue { orders, groups, closed_at: Instant::now() };
        let queued = Arc::new(Mutex::new(queued));
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

    /// Returns once the order is durable, and on its way to the `orders` topic.
    ///
    /// The order's transaction begins before the deadline or not at all. It does not begin either
    /// once this future is dropped. A transaction that has begun may take as long again.
    ///
    /// Fails with every variant of [`SaveError`]. After `CommitUnknown` the order may be saved.
    pub(crate) async fn save(&self, order: NewOrder) -> Result<(), SaveError> {
        self.check_store()?;
        let deadline = Instant::now() + self.deadline;
        let (saved, mut outcome) = oneshot::channel();
        let ownership = Ownership::default();
        let queued = QueuedOrder { order, deadline, ownership: ownership.clone(), saved };
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
            Err(if has_begun { SaveError::CommitUnknown } else { SaveError::StoreAway })
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

    fn answer(self, outcome: Result<(), SaveError>) {
        // The client may have gone. The outcome of its order stands.
        let _client_gone = self.saved.send(outcome);
    }
}

/// The orders that wait for a commit.
struct OrderQueue {
    orders: mpsc::Receiver<QueuedOrder>,
    groups: BatchConfig,
    /// When the last group was closed.
    closed_at: Instant,
}

impl OrderQueue {
    /// Waits for orders and closes their group, as a lane closes its batches: when it is full, or
    /// when no order waits and `linger` has passed since the last group. So a lone order does not
    /// wait (Nagle, RFC 896). Empty if no more orders will come.
    async fn next_group(&mut self) -> Vec<QueuedOrder> {
        let BatchConfig { max, linger } = self.groups;
        let mut group = Vec::new();
        let mut received = self.orders.recv_many(&mut group, max).await;
        while received > 0 && group.len() < max {
            let room = max - group.len();
            received = tokio::select! {
                biased;
                received = self.orders.recv_many(&mut group, room) => received,
                () = sleep_until(self.closed_at + linger) => 0,
            };
        }
        self.closed_at = Instant::now();
        group
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
    async fn run(self, queue: Arc<Mutex<OrderQueue>>) {
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
            match self.place(&mut group).await {
                Ok(orders) => {
                    crash_point("ingest.committed");
                    for queued in group {
                        queued.answer(Ok(()));
                    }
                    self.relay.publish_in_background(
                        orders.into_iter().map(NewOrder::into_event).collect(),
                    );
                }
                Err(SaveError::RefusedByStore(_)) if group.len() > 1 => {
                    let second_half = group.split_off(group.len() / 2);
                    self.save(group).await;
                    self.save(second_half).await;
                }
                Err(error) => {
                    for queued in group {
                        queued.answer(Err(error.clone()));
                    }
                }
            }
        })
    }

    /// Places a group in one transaction, and repeats a failed attempt until the last deadline of
    /// the group. Between attempts, an order leaves the group if its deadline has passed or its
    /// client has gone.
    ///
    /// Fails with `RefusedByStore` at once. Fails with `StoreAway` at the last deadline, or with
    /// `CommitUnknown` if the outcome of an attempt is unknown.
    async fn place(&self, group: &mut Vec<QueuedOrder>) -> Result<Vec<NewOrder>, SaveError> {
        let (mut failures, begun_at) = (Backoff::default(), Instant::now());
        let mut is_commit_unknown = false;
        while let Some(deadline) = group.iter().map(|queued| queued.deadline).max() {
            let orders: Vec<_> = group.iter().map(|queued| queued.order.clone()).collect();
            let error = match self.store.place_by(&orders, COMMITTER_LEASE, deadline).await {
                Ok(()) => {
                    self.is_store_away.store(false, Ordering::Relaxed);
                    return Ok(orders);
                }
                Err(error @ (StoreError::Refused(_) | StoreError::Unencodable(_))) => {
                    return Err(SaveError::RefusedByStore(Arc::new(error)));
                }
                Err(error) => error,
            };
            self.metrics.retries.with_label_values(&["order_store"]).inc();
            let delay = failures.next_delay();
            let is_last = Instant::now() + delay >= deadline;
            if is_last || begun_at.elapsed() >= AWAY_AFTER {
                self.is_store_away.store(true, Ordering::Relaxed);
            }
            tracing::warn!(orders = orders.len(), %error, "orders not saved");
            is_commit_unknown |= matches!(error, StoreError::CommitUnknown(_));
            if is_last {
                return Err(if is_commit_unknown {
                    SaveError::CommitUnknown
                } else {
                    SaveError::StoreAway
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
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::domain::{Line, Lines, OrderId, ProductId};

    /// What the client receives if the task that commits ends without an answer.
    async fn answer_of_lost_task(has_begun: bool) -> Result<(), SaveError> {
        let (queue, mut orders) = mpsc::channel::<QueuedOrder>(1);
        let committer = Committer {
            queue,
            deadline: Duration::from_secs(60),
            is_store_away: Arc::default(),
            abandoned: IntCounter::new("abandoned", "abandoned orders").unwrap(),
            _alive: Arc::default(),
        };
        let line = Line::new(ProductId::parse("a").unwrap(), 1).unwrap();
        let order = NewOrder {
            order_id: OrderId::generate(),
            reference: None,
            customer_id: None,
            hold_seconds: None,
            lines: Lines::new(vec![line]).unwrap(),
            accepted_at: Utc::now(),
        };
        let task = async {
            let queued = orders.recv().await.unwrap();
            drop(if has_begun { queued.begin(Instant::now()) } else { Some(queued) });
        };
        tokio::join!(committer.save(order), task).0
    }

    #[tokio::test]
    async fn an_order_of_a_lost_task_is_unknown_once_its_transaction_began() {
        assert!(matches!(answer_of_lost_task(true).await, Err(SaveError::CommitUnknown)));
        assert!(matches!(answer_of_lost_task(false).await, Err(SaveError::StoreAway)));
    }
}
