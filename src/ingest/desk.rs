use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};

use crate::{
    backoff::Backoff,
    domain::{OrderId, OrderState},
    lifecycle::Shutdown,
    store::OrderStore,
};

/// How often the order store is asked about the orders that clients wait for; all of them in one query.
const ASK_EVERY: Duration = Duration::from_millis(4);
/// Orders that one query asks about.
const ASK_MAX: usize = 2_000;

/// Where an order's final state comes in: the state and its reason.
pub type Decided = (OrderState, Option<String>);

type Waiting = HashMap<OrderId, oneshot::Sender<Decided>>;

/// Clients that wait for their order's outcome. It is read where `GET` reads it, so that every replica answers alike,
/// whichever of them took the order.
#[derive(Debug, Clone)]
pub struct Desk {
    store: OrderStore,
    waiting: Arc<Mutex<Waiting>>,
    arrived: Arc<Notify>,
    shutdown: Shutdown,
}

impl Desk {
    pub fn new(store: OrderStore, shutdown: Shutdown) -> Self {
        Self { store, waiting: Arc::default(), arrived: Arc::default(), shutdown }
    }

    /// Waits up to `patience` for an order to leave `PENDING`, or until the process is to stop.
    pub async fn wait(&self, id: OrderId, patience: Duration) -> Option<Decided> {
        let (sender, decided) = oneshot::channel();
        self.lock().insert(id, sender);
        self.arrived.notify_one();
        let decided = tokio::select! {
            decided = decided => decided.ok(),
            () = tokio::time::sleep(patience) => None,
            () = self.shutdown.requested() => None,
        };
        self.lock().remove(&id);
        decided
    }

    /// Asks the store for as long as anybody waits.
    pub async fn run(self) {
        let mut failures = Backoff::default();
        let mut next = None;
        while !self.shutdown.is_requested() {
            let (ids, following) = self.next_to_ask(next);
            next = following;
            if ids.is_empty() {
                tokio::select! {
                    () = self.arrived.notified() => {}
                    () = self.shutdown.requested() => return,
                }
            } else {
                match self.store.find_decided(&ids).await {
                    Ok(decided) => {
                        failures = Backoff::default();
                        self.answer(decided);
                    }
                    Err(error) => {
                        tracing::warn!(waiting = ids.len(), %error, "outcomes not read");
                        tokio::time::sleep(failures.next_delay()).await;
                    }
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Up to [`ASK_MAX`] of the waiting orders from `from` on, in turn, and where the next query begins.
    fn next_to_ask(&self, from: Option<OrderId>) -> (Vec<OrderId>, Option<OrderId>) {
        let waiting = self.lock();
        if waiting.len() <= ASK_MAX {
            return (waiting.keys().copied().collect(), None);
        }
        let sorted: BTreeSet<_> = waiting.keys().copied().filter(|id| from.is_none_or(|from| *id >= from)).collect();
        let following = sorted.iter().nth(ASK_MAX).copied();
        (sorted.into_iter().take(ASK_MAX).collect(), following)
    }

    fn answer(&self, decided: Vec<(OrderId, OrderState, Option<String>)>) {
        let mut waiting = self.lock();
        for (id, state, reason) in decided {
            if let Some(sender) = waiting.remove(&id) {
                let _gone = sender.send((state, reason));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
