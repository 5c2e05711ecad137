use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

use crate::{
    backoff::Backoff,
    domain::{OrderId, OrderState},
    lifecycle::Shutdown,
    store::{DecidedOrder, OrderStore},
};

/// How often the order store is asked about the orders that clients wait for; all of them in one query.
const ASK_EVERY: Duration = Duration::from_millis(4);
/// A query about more orders than these is followed by a rest: a multiple of the time that it took.
const MANY: usize = 256;
const REST: u32 = 4;
const MAX_REST: Duration = Duration::from_millis(500);
/// Orders that one query asks about.
const ASK_MAX: usize = 2_000;
/// Clients that wait; others are answered at once.
const MAX_WAITING: usize = 2_000;

/// Where an order's final state comes in: the state and its reason.
pub(super) type Decided = (OrderState, Option<String>);

type Waiting = HashMap<OrderId, oneshot::Sender<Decided>>;

/// Clients that wait for their order's outcome. It is read where `GET` reads it, so that every replica answers alike,
/// whichever of them took the order.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    store: OrderStore,
    waiting: Arc<Mutex<Waiting>>,
    arrived: Arc<Notify>,
    shutdown: Shutdown,
}

impl Desk {
    pub(crate) fn new(store: OrderStore, shutdown: Shutdown) -> Self {
        Self { store, waiting: Arc::default(), arrived: Arc::default(), shutdown }
    }

    /// Waits up to `patience` for an order to leave `PENDING`, or until the process is to stop. Does
    /// not wait where too many others do.
    pub(crate) async fn wait(&self, id: OrderId, patience: Duration) -> Option<Decided> {
        let (sender, decided) = oneshot::channel();
        {
            let mut waiting = self.lock();
            if waiting.len() >= MAX_WAITING {
                return None;
            }
            waiting.insert(id, sender);
        }
        let _seat = Seat { desk: self, id };
        self.arrived.notify_one();
        tokio::select! {
            decided = decided => decided.ok(),
            () = tokio::time::sleep(patience) => None,
            () = self.shutdown.requested() => None,
        }
    }

    /// Asks the store for as long as anybody waits.
    pub(crate) async fn run(self) {
        let mut failures = Backoff::default();
        let mut next = None;
        while !self.shutdown.is_requested() {
            let (ids, following) = self.next_to_ask(next);
            next = following;
            let mut rest = ASK_EVERY;
            if ids.is_empty() {
                tokio::select! {
                    () = self.arrived.notified() => {}
                    () = self.shutdown.requested() => return,
                }
            } else {
                let asked = Instant::now();
                match self.store.find_decided(&ids).await {
                    Ok(decided) => {
                        if ids.len() > MANY {
                            rest = (asked.elapsed() * REST).clamp(ASK_EVERY, MAX_REST);
                        }
                        failures = Backoff::default();
                        self.answer(decided);
                    }
                    Err(error) => {
                        tracing::warn!(waiting = ids.len(), %error, "outcomes not read");
                        tokio::time::sleep(failures.next_delay()).await;
                    }
                }
            }
            tokio::time::sleep(rest).await;
        }
    }

    /// Up to [`ASK_MAX`] of the waiting orders from `from` on, in turn, and where the next query begins.
    fn next_to_ask(&self, from: Option<OrderId>) -> (Vec<OrderId>, Option<OrderId>) {
        let waiting = self.lock();
        if waiting.len() <= ASK_MAX {
            return (waiting.keys().copied().collect(), None);
        }
        let sorted: BTreeSet<_> = waiting.keys().copied().collect();
        let from = from.filter(|from| sorted.range(from..).next().is_some());
        let mut due = sorted.into_iter().filter(|id| from.is_none_or(|from| *id >= from));
        let ids = due.by_ref().take(ASK_MAX).collect();
        (ids, due.next())
    }

    fn answer(&self, decided: Vec<DecidedOrder>) {
        let mut waiting = self.lock();
        for DecidedOrder { order_id, state, reason } in decided {
            if let Some(sender) = waiting.remove(&order_id) {
                let _gone = sender.send((state, reason));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place among the waiting, left also when the client goes away and its request is dropped.
struct Seat<'a> {
    desk: &'a Desk,
    id: OrderId,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.desk.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, Layers},
        store::{Database, StoreName},
        telemetry::Metrics,
    };

    /// A desk whose store is never asked.
    fn desk() -> Desk {
        let config = Config::resolve(&Layers::default()).unwrap();
        let database = Database::open(
            &config.order_store,
            StoreName::OrderStore,
            ASK_EVERY,
            Metrics::new().unwrap(),
        );
        Desk::new(OrderStore::new(database.unwrap()), Shutdown::default())
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_asked_for_no_longer() {
        let desk = desk();
        let mut request = Box::pin(desk.wait(OrderId::generate(), Duration::from_secs(60)));
        assert!(futures::poll!(request.as_mut()).is_pending());
        assert_eq!(desk.next_to_ask(None).0.len(), 1);
        drop(request);
        assert_eq!(desk.next_to_ask(None).0, []);
    }

    #[tokio::test]
    async fn a_client_does_not_wait_where_too_many_others_do() {
        let desk = desk();
        desk.lock().extend((0..MAX_WAITING).map(|_| (OrderId::generate(), oneshot::channel().0)));
        let mut request = Box::pin(desk.wait(OrderId::generate(), Duration::from_secs(60)));
        assert!(futures::poll!(request.as_mut()).is_ready());
        assert_eq!(desk.lock().len(), MAX_WAITING);
    }

    #[tokio::test]
    async fn more_clients_than_a_query_takes_are_asked_for_in_turn() {
        let desk = desk();
        let mut ids: Vec<_> = (0..=ASK_MAX).map(|_| OrderId::generate()).collect();
        ids.sort_unstable();
        desk.lock().extend(ids.iter().map(|id| (*id, oneshot::channel().0)));
        assert_eq!(desk.next_to_ask(None), (ids[..ASK_MAX].to_vec(), Some(ids[ASK_MAX])));
        assert_eq!(desk.next_to_ask(Some(ids[ASK_MAX])), (vec![ids[ASK_MAX]], None));
        // Those that were next may have gone meanwhile; the others must not wait for newcomers.
        assert_eq!(desk.next_to_ask(Some(OrderId::generate())).0.len(), ASK_MAX);
    }
}
