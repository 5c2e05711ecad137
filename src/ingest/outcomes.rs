//! The outcomes that clients with `Prefer: wait` wait for.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, oneshot};

use crate::{
    backoff::Backoff,
    domain::{OrderId, OrderState},
    lifecycle::Shutdown,
    store::{DecidedOrder, OrderStore},
};

/// How often the order store is asked about the orders that clients wait for. One query asks about
/// all of them.
const ASK_EVERY: Duration = Duration::from_millis(4);
/// A query about more orders than these is followed by a longer rest: [`REST_FACTOR`] times the
/// duration of the query, [`MAX_REST`] at most.
const MANY_ORDERS: usize = 256;
const REST_FACTOR: u32 = 4;
const MAX_REST: Duration = Duration::from_millis(500);
/// The most orders that one query asks about.
const MAX_ORDERS_PER_QUERY: usize = 2_000;
/// The most clients that wait. A client above it is answered at once.
const MAX_WAITING_CLIENTS: usize = 2_000;

/// The state of an order that a worker has decided, and its reason.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DecidedState {
    pub(super) state: OrderState,
    pub(super) reason: Option<String>,
    /// When its hold ends. Only a reserved order has one.
    pub(super) expires_at: Option<DateTime<Utc>>,
}

/// One sender for each client that waits, by the order that it waits for. Only the client that
/// placed an order can wait for it, so an order has one client at most.
type WaitingClients = HashMap<OrderId, oneshot::Sender<DecidedState>>;

/// Reads the outcomes of the orders that clients wait for.
///
/// An outcome is read from the order store, as `GET` reads it. So all replicas answer alike,
/// whichever of them took the order. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct OutcomeWatch {
    store: OrderStore,
    waiting: Arc<Mutex<WaitingClients>>,
    /// A client has begun to wait.
    arrived: Arc<Notify>,
    shutdown: Shutdown,
}

/// The orders that one query asks about.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    ids: Vec<OrderId>,
    /// The order at which the next query begins. `None` if this one asks about all that are left.
    next: Option<OrderId>,
}

impl OutcomeWatch {
    pub(crate) fn new(store: OrderStore, shutdown: Shutdown) -> Self {
        Self { store, waiting: Arc::default(), arrived: Arc::default(), shutdown }
    }

    /// Waits up to `max_wait` until an order leaves `PENDING`.
    ///
    /// Returns `None` if the order is pending still, or once a stop is requested. Returns `None` at
    /// once if [`MAX_WAITING_CLIENTS`] wait already.
    pub(super) async fn wait(&self, id: OrderId, max_wait: Duration) -> Option<DecidedState> {
        let (sender, decided) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.len() >= MAX_WAITING_CLIENTS {
                return None;
            }
            waiting.insert(id, sender);
        }
        let _registered = Registration { watch: self, id };
        self.arrived.notify_one();
        let waiting = tokio::time::timeout(max_wait, decided);
        self.shutdown.interruptible(waiting).await.ok()?.ok()?.ok()
    }

    /// Asks the order store while clients wait, until a stop is requested.
    pub(crate) async fn run(self) {
        let (mut failures, mut next) = (Backoff::default(), None);
        loop {
            let question = self.next_question(next);
            next = question.next;
            let rest = if question.ids.is_empty() {
                if self.shutdown.interruptible(self.arrived.notified()).await.is_err() {
                    return;
                }
                ASK_EVERY
            } else {
                self.ask(&question.ids, &mut failures).await
            };
            if self.shutdown.sleep(rest).await.is_err() {
                return;
            }
        }
    }

    /// Asks about `ids` and answers the clients whose order is decided. Returns how long to rest
    /// before the next query.
    async fn ask(&self, ids: &[OrderId], failures: &mut Backoff) -> Duration {
        let asked_at = Instant::now();
        match self.store.find_decided(ids).await {
            Ok(decided) => {
                *failures = Backoff::default();
                let is_many = ids.len() > MANY_ORDERS;
                let rest = (asked_at.elapsed() * REST_FACTOR).clamp(ASK_EVERY, MAX_REST);
                for DecidedOrder { order_id, state, reason, expires_at } in decided {
                    self.answer(order_id, DecidedState { state, reason, expires_at });
                }
                if is_many { rest } else { ASK_EVERY }
            }
            Err(error) => {
                tracing::warn!(waiting = ids.len(), %error, "outcomes not read");
                failures.next_delay() + ASK_EVERY
            }
        }
    }

    /// Up to [`MAX_ORDERS_PER_QUERY`] orders that clients wait for. If there are more, they are
    /// asked about in the order of their ids, beginning with `from`, so that none waits for ever.
    fn next_question(&self, from: Option<OrderId>) -> Question {
        let waiting = self.waiting();
        if waiting.len() <= MAX_ORDERS_PER_QUERY {
            return Question { ids: waiting.keys().copied().collect(), next: None };
        }
        let sorted: BTreeSet<_> = waiting.keys().copied().collect();
        let from = from.filter(|from| sorted.range(from..).next().is_some());
        let mut due = sorted.into_iter().filter(|id| from.is_none_or(|from| *id >= from));
        let ids = due.by_ref().take(MAX_ORDERS_PER_QUERY).collect();
        Question { ids, next: due.next() }
    }

    fn answer(&self, id: OrderId, decided: DecidedState) {
        if let Some(sender) = self.waiting().remove(&id) {
            let _client_gone = sender.send(decided);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, WaitingClients> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client that waits. It waits no longer once this is dropped, also with its request.
struct Registration<'a> {
    watch: &'a OutcomeWatch,
    id: OrderId,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.watch.waiting().remove(&self.id);
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

    /// A watch whose store is never asked.
    fn watch() -> OutcomeWatch {
        let config = Config::resolve(&Layers::default()).unwrap();
        let database = Database::open(
            &config.order_store,
            StoreName::OrderStore,
            ASK_EVERY,
            Metrics::new().unwrap(),
        );
        OutcomeWatch::new(OrderStore::new(database.unwrap()), Shutdown::default())
    }

    #[tokio::test]
    async fn the_order_of_a_client_that_has_gone_is_not_asked_about() {
        let watch = watch();
        let mut request = Box::pin(watch.wait(OrderId::generate(), Duration::from_secs(60)));

        assert!(futures::poll!(request.as_mut()).is_pending());
        assert_eq!(watch.next_question(None).ids.len(), 1);
        drop(request);

        assert_eq!(watch.next_question(None).ids, []);
    }

    #[tokio::test]
    async fn a_client_does_not_wait_if_too_many_others_do() {
        let watch = watch();
        let others = (0..MAX_WAITING_CLIENTS).map(|_| (OrderId::generate(), oneshot::channel().0));
        watch.waiting().extend(others);

        let mut request = Box::pin(watch.wait(OrderId::generate(), Duration::from_secs(60)));

        assert!(futures::poll!(request.as_mut()).is_ready());
        assert_eq!(watch.waiting().len(), MAX_WAITING_CLIENTS);
    }

    #[tokio::test]
    async fn more_orders_than_a_query_takes_are_asked_about_in_turn() {
        const MAX: usize = MAX_ORDERS_PER_QUERY;
        let watch = watch();
        let mut ids: Vec<_> = (0..=MAX).map(|_| OrderId::generate()).collect();
        ids.sort_unstable();
        watch.waiting().extend(ids.iter().map(|id| (*id, oneshot::channel().0)));

        let first = watch.next_question(None);
        let second = watch.next_question(Some(ids[MAX]));
        // The client whose order was to be next may have gone. Then the query begins anew, so that
        // the other clients do not wait for new ones.
        let third = watch.next_question(Some(OrderId::generate()));

        assert_eq!(first, Question { ids: ids[..MAX].to_vec(), next: Some(ids[MAX]) });
        assert_eq!(second, Question { ids: vec![ids[MAX]], next: None });
        assert_eq!(third.ids.len(), MAX);
    }
}
