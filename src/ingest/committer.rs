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
    domain::{EventKind, OrderEvent},
    relay::{COMMITTER_LEASE, Relay},
    store::{NewOrder, OrderStore, StoreError, Work},
    telemetry::Metrics,
};

/// Orders that wait for a commit; more are refused.
const QUEUE: usize = 10_000;
/// Groups on their way at once: while one is being committed, the next gathers.
const COMMITTERS: usize = 2;
/// How long attempts fail before the store counts as away.
const AWAY_AFTER: Duration = Duration::from_secs(1);
/// How often a store that is away is asked whether it is back, and for how long.
const PROBE_EVERY: Duration = Duration::from_millis(250);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why an order was not saved.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Rejected {
    #[error("more orders are waiting than can be saved soon")]
    Overloaded,
    #[error("the order store cannot save orders at present")]
    Unavailable,
    #[error("the order waited too long to be saved; nothing was saved")]
    TooLate,
    #[error(
        "the order store broke off in a commit: the order is saved or it is not, as GET will tell"
    )]
    Unknown,
    #[error("the order store refuses this order: {0}")]
    Refused(String),
}

/// Group commit: orders that arrive together share a transaction.
#[derive(Clone)]
pub(crate) struct Committer {
    queue: mpsc::Sender<Waiting>,
    /// How long an order may wait for its transaction to begin.
    deadline: Duration,
    is_away: Arc<AtomicBool>,
    /// Orders whose clients have gone before their transaction began.
    abandoned: IntCounter,
    _alive: Arc<()>,
}

struct Waiting {
    order: NewOrder,
    deadline: Instant,
    claim: Claim,
    saved: oneshot::Sender<Result<(), Rejected>>,
}

/// Decides between a committer that begins with an order and a client that gives it up: the first
/// one takes it.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// A client whose connection has closed drops this with its request, and so gives the order up.
struct Client {
    claim: Claim,
    abandoned: IntCounter,
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.claim.take() {
            self.abandoned.inc();
        }
    }
}

impl Committer {
    /// Starts the tasks that commit. They end once the last clone of the committer is dropped and the
    /// queue is empty.
    pub(crate) fn start(
        store: OrderStore,
        relay: Relay,
        (groups, deadline): (BatchConfig, Duration),
        metrics: Metrics,
    ) -> (Self, JoinSet<()>) {
        let (queue, orders) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(Queue { orders, groups, closed_at: Instant::now() }));
        let (is_away, alive) = (Arc::new(AtomicBool::new(false)), Arc::new(()));
        let abandoned = metrics.orders_ingested.with_label_values(&["abandoned"]);
        let mut tasks = JoinSet::new();
        for _ in 0..COMMITTERS {
            let task = Task {
                store: store.clone(),
                relay: relay.clone(),
                metrics: metrics.clone(),
                is_away: Arc::clone(&is_away),
                alive: Arc::downgrade(&alive),
            };
            tasks.spawn(task.run(Arc::clone(&waiting)));
        }
        (Self { queue, deadline, is_away, abandoned, _alive: alive }, tasks)
    }

    /// Returns once the order is durable, and on its way to the `orders` topic.
    ///
    /// No transaction is begun once the deadline has passed, or once this is dropped. A transaction
    /// that has begun may take as long again.
    pub(crate) async fn save(&self, order: NewOrder) -> Result<(), Rejected> {
        self.check_store()?;
        let deadline = Instant::now() + self.deadline;
        let (saved, mut outcome) = oneshot::channel();
        let claim = Claim::default();
        let waiting = Waiting { order, deadline, claim: claim.clone(), saved };
        self.queue.try_send(waiting).map_err(|_| Rejected::Overloaded)?;
        let client = Client { claim, abandoned: self.abandoned.clone() };
        let answer = match timeout_at(deadline, &mut outcome).await {
            Ok(answer) => answer,
            Err(_) if client.claim.take() => return Err(Rejected::TooLate),
            Err(_) => outcome.await,
        };
        // The task is lost that had the order, or that would have taken it.
        answer.unwrap_or_else(|_| {
            Err(if client.claim.take() { Rejected::Unavailable } else { Rejected::Unknown })
        })
    }

    /// Fails while the store is known to be away.
    pub(crate) fn check_store(&self) -> Result<(), Rejected> {
        if self.is_away.load(Ordering::Relaxed) { Err(Rejected::Unavailable) } else { Ok(()) }
    }
}

impl Waiting {
    /// Takes the order for a transaction, unless its client has given it up or it waited too long.
    fn begin(self) -> Option<Self> {
        if self.claim.take() { self.unless_late() } else { None }
    }

    fn unless_late(self) -> Option<Self> {
        if Instant::now() < self.deadline {
            return Some(self);
        }
        self.answer(Err(Rejected::TooLate));
        None
    }

    fn answer(self, outcome: Result<(), Rejected>) {
        // The client may have gone; what became of its order stands.
        let _gone = self.saved.send(outcome);
    }
}

/// Orders that wait for a commit.
struct Queue {
    orders: mpsc::Receiver<Waiting>,
    groups: BatchConfig,
    /// When the last group was closed.
    closed_at: Instant,
}

impl Queue {
    /// Waits for orders, and closes their group as a lane closes its batches. Empty where no more will come.
    async fn next_group(&mut self) -> Vec<Waiting> {
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

struct Task {
    store: OrderStore,
    relay: Relay,
    metrics: Metrics,
    is_away: Arc<AtomicBool>,
    /// Gone with the last committer.
    alive: Weak<()>,
}

impl Task {
    async fn run(self, queue: Arc<Mutex<Queue>>) {
        loop {
            self.wait_for_store().await;
            let group = queue.lock().await.next_group().await;
            if group.is_empty() {
                return;
            }
            self.save(group.into_iter().filter_map(Waiting::begin).collect()).await;
        }
    }

    /// Asks a store that is away until it is back, or nobody places orders any more.
    async fn wait_for_store(&self) {
        while self.is_away.load(Ordering::Relaxed) && self.alive.strong_count() > 0 {
            match timeout(PROBE_TIMEOUT, self.store.probe(&[Work::Place])).await {
                Ok(Ok(())) => {
                    if self.is_away.swap(false, Ordering::Relaxed) {
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

    /// Saves a group; one that is refused is split until the culprit is alone.
    fn save(&self, mut group: Vec<Waiting>) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            match self.place(&mut group).await {
                Ok(orders) => {
                    crash_point("ingest.committed");
                    for waiting in group {
                        waiting.answer(Ok(()));
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
                        waiting.answer(Err(rejected.clone()));
                    }
                }
            }
        })
    }

    /// Places a group in one transaction, and tries again up to the last deadline of the group.
    /// Between attempts, orders leave it whose deadline has passed or whose client has gone.
    async fn place(&self, group: &mut Vec<Waiting>) -> Result<Vec<NewOrder>, Rejected> {
        let (mut failures, mut exhausted, begun) =
            (Backoff::default(), Rejected::Unavailable, Instant::now());
        while let Some(deadline) = group.iter().map(|waiting| waiting.deadline).max() {
            let orders: Vec<_> = group.iter().map(|waiting| waiting.order.clone()).collect();
            let error = match self.store.place_by(&orders, COMMITTER_LEASE, deadline).await {
                Ok(()) => {
                    self.is_away.store(false, Ordering::Relaxed);
                    return Ok(orders);
                }
                Err(StoreError::Refused(why)) => return Err(Rejected::Refused(why)),
                Err(error) => error,
            };
            self.metrics.retries.with_label_values(&["order_store"]).inc();
            let delay = failures.next_delay();
            let is_over = Instant::now() + delay >= deadline;
            if is_over || begun.elapsed() >= AWAY_AFTER {
                self.is_away.store(true, Ordering::Relaxed);
            }
            tracing::warn!(orders = orders.len(), %error, "orders not saved");
            if let StoreError::CommitUnknown(_) = error {
                exhausted = Rejected::Unknown;
            }
            if is_over {
                return Err(exhausted);
            }
            sleep(delay).await;
            // After a commit of unknown outcome, the next attempt says what became of each order.
            if !matches!(exhausted, Rejected::Unknown) {
                group.retain(|waiting| !waiting.saved.is_closed());
                *group =
                    std::mem::take(group).into_iter().filter_map(Waiting::unless_late).collect();
            }
        }
        Ok(Vec::new())
    }
}

fn placed(order: NewOrder) -> OrderEvent {
    OrderEvent {
        order_id: order.order_id,
        kind: EventKind::Placed,
        lines: order.lines,
        accepted_at: order.accepted_at,
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::domain::{Line, Lines, OrderId, ProductId};

    /// What a client is answered whose order is lost with the task that committed.
    async fn answer_of_lost_task(has_begun: bool) -> Result<(), Rejected> {
        let (queue, mut orders) = mpsc::channel::<Waiting>(1);
        let committer = Committer {
            queue,
            deadline: Duration::from_secs(60),
            is_away: Arc::default(),
            abandoned: IntCounter::new("abandoned", "abandoned orders").unwrap(),
            _alive: Arc::default(),
        };
        let line = Line::new(ProductId::parse("a").unwrap(), 1).unwrap();
        let order = NewOrder {
            order_id: OrderId::generate(),
            reference: None,
            customer_id: None,
            lines: Lines::new(vec![line]).unwrap(),
            accepted_at: Utc::now(),
        };
        let task = async {
            let waiting = orders.recv().await.unwrap();
            drop(if has_begun { waiting.begin() } else { Some(waiting) });
        };
        tokio::join!(committer.save(order), task).0
    }

    #[tokio::test]
    async fn an_order_of_a_lost_task_is_unknown_once_its_transaction_began() {
        assert!(matches!(answer_of_lost_task(true).await, Err(Rejected::Unknown)));
        assert!(matches!(answer_of_lost_task(false).await, Err(Rejected::Unavailable)));
    }
}
