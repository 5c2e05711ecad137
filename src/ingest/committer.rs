use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    backoff::Backoff,
    config::Batches,
    crash_point::crash_point,
    domain::{EventKind, OrderEvent},
    relay::{COMMITTER_LEASE, Relay},
    store::{NewOrder, OrderStore, StoreError},
    telemetry::Metrics,
};

/// Orders that wait for a commit; more are refused.
const QUEUE: usize = 10_000;
/// Groups on their way at once: while one is being committed, the next gathers.
const COMMITTERS: usize = 2;
const MAX_ATTEMPTS: u32 = 4;

/// Why an order was not saved.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Rejected {
    #[error("more orders are waiting than can be saved soon")]
    Overloaded,
    #[error("the order store cannot save orders at present")]
    Unavailable,
    #[error("the order store broke off in a commit: the order is saved or it is not, as GET will tell")]
    Unknown,
    #[error("the order store refuses this order: {0}")]
    Refused(String),
}

/// Group commit: orders that arrive together share a transaction.
#[derive(Clone)]
pub struct Committer {
    queue: mpsc::Sender<Waiting>,
}

struct Waiting {
    order: NewOrder,
    saved: oneshot::Sender<Result<(), Rejected>>,
}

impl Committer {
    /// Starts the tasks that commit; they end when the last clone of the committer is dropped and the queue is empty.
    pub fn start(store: OrderStore, relay: Relay, groups: Batches, metrics: Metrics) -> (Self, JoinSet<()>) {
        let (queue, orders) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(Queue { orders, groups, closed_at: Instant::now() }));
        let mut tasks = JoinSet::new();
        for _ in 0..COMMITTERS {
            let task = Task { store: store.clone(), relay: relay.clone(), metrics: metrics.clone() };
            tasks.spawn(task.run(Arc::clone(&waiting)));
        }
        (Self { queue }, tasks)
    }

    /// Returns once the order is durable, and on its way to the `orders` topic.
    pub async fn save(&self, order: NewOrder) -> Result<(), Rejected> {
        let (saved, outcome) = oneshot::channel();
        self.queue.try_send(Waiting { order, saved }).map_err(|_| Rejected::Overloaded)?;
        outcome.await.unwrap_or(Err(Rejected::Unavailable))
    }
}

/// Orders that wait for a commit.
struct Queue {
    orders: mpsc::Receiver<Waiting>,
    groups: Batches,
    /// When the last group was closed.
    closed_at: Instant,
}

impl Queue {
    /// Waits for orders, and closes their group as a lane closes its batches. Empty where no more will come.
    async fn next_group(&mut self) -> Vec<Waiting> {
        let Batches { max, linger } = self.groups;
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

struct Task {
    store: OrderStore,
    relay: Relay,
    metrics: Metrics,
}

impl Task {
    async fn run(self, queue: Arc<Mutex<Queue>>) {
        loop {
            let group = queue.lock().await.next_group().await;
            if group.is_empty() {
                return;
            }
            self.save(group).await;
        }
    }

    /// Saves a group; one that is refused is split until the culprit is alone.
    fn save(&self, mut group: Vec<Waiting>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let orders: Vec<_> = group.iter().map(|waiting| waiting.order.clone()).collect();
            match self.place(&orders).await {
                Ok(()) => {
                    crash_point("ingest.committed");
                    for waiting in group {
                        // The client may have gone; its order is saved all the same.
                        let _gone = waiting.saved.send(Ok(()));
                    }
                    self.relay.publish_in_background(orders.into_iter().map(placed).collect());
                }
                Err(Rejected::Refused(_)) if group.len() > 1 => {
                    let second_half = group.split_off(group.len() / 2);
                    self.save(group).await;
                    self.save(second_half).await;
                }
                Err(rejected) => {
                    for waiting in group {
                        let _gone = waiting.saved.send(Err(rejected.clone()));
                    }
                }
            }
        })
    }

    async fn place(&self, orders: &[NewOrder]) -> Result<(), Rejected> {
        let mut failures = Backoff::default();
        let mut exhausted = Rejected::Unavailable;
        loop {
            let error = match self.store.place(orders, COMMITTER_LEASE).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Refused(why)) => return Err(Rejected::Refused(why)),
                Err(error) => error,
            };
            self.metrics.retries.with_label_values(&["order_store"]).inc();
            let delay: Duration = failures.next_delay();
            tracing::warn!(orders = orders.len(), %error, "orders not saved");
            if let StoreError::CommitUnknown(_) = error {
                exhausted = Rejected::Unknown;
            }
            if failures.failures() == MAX_ATTEMPTS {
                return Err(exhausted);
            }
            tokio::time::sleep(delay).await;
        }
    }
}

fn placed(order: NewOrder) -> OrderEvent {
    OrderEvent { order_id: order.order_id, kind: EventKind::Placed, lines: order.lines, accepted_at: order.accepted_at }
}
