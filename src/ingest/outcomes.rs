//! The states of the orders that clients wait for: with `Prefer: wait`, or as they watch an order.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::timeout};

use super::subscriptions::{SubscribedOrders, Subscription, Subscriptions};
use crate::{
    backoff::Backoff,
    domain::OrderId,
    lifecycle::Shutdown,
    store::{OrderStore, OrderSummary},
};

/// How often the order store is asked about the orders that clients wait for. One query asks about
/// all of them.
const ASK_EVERY: Duration = Duration::from_millis(4);
/// The least time between two queries about an order that clients watch.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// A query about more orders than these is followed by a longer rest: [`REST_FACTOR`] times the
/// duration of the query, [`MAX_REST`] at most.
const MANY_ORDERS: usize = 256;
const REST_FACTOR: u32 = 4;
const MAX_REST: Duration = Duration::from_millis(500);
/// The most orders that one query asks about for clients that wait, and for clients that watch.
const MAX_ORDERS_PER_QUERY: usize = 2_000;
const MAX_WATCHED_PER_QUERY: usize = 500;
/// The most clients that wait. A client above it is answered at once.
const MAX_WAITING_CLIENTS: usize = 2_000;
/// The pause while no client waits. The first that does ends it.
const IDLE_PAUSE: Duration = Duration::from_secs(3600);

/// Reads the states of the orders that clients wait for or watch.
///
/// A state is read from the order store, as `GET` reads it. So all replicas answer alike, whichever
/// of them took the order. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct OutcomeWatch {
    store: OrderStore,
    waiting: Subscriptions,
    watching: Subscriptions,
    /// A client has begun to wait.
    arrived: Arc<Notify>,
    shutdown: Shutdown,
}

/// The queries about the orders that clients watch. A round asks about each of them once.
struct WatchRounds {
    begun_at: Instant,
    /// When the next query is due.
    due_at: Instant,
    /// The order at which it begins. `None` if it begins a round.
    next: Option<OrderId>,
}

impl OutcomeWatch {
    /// `max_watching_clients`: the most clients that watch an order.
    pub(crate) fn new(store: OrderStore, max_watching_clients: usize, shutdown: Shutdown) -> Self {
        Self {
            store,
            waiting: Subscriptions::new(MAX_WAITING_CLIENTS),
            watching: Subscriptions::new(max_watching_clients),
            arrived: Arc::default(),
            shutdown,
        }
    }

    /// Waits up to `max_wait` until an order leaves `PENDING`.
    ///
    /// Returns `None` if the order is pending still, or once a stop is requested. Returns `None` at
    /// once if [`MAX_WAITING_CLIENTS`] wait already.
    pub(super) async fn wait(&self, id: OrderId, max_wait: Duration) -> Option<OrderSummary> {
        let mut subscription = self.waiting.subscribe(id)?;
        self.arrived.notify_one();
        let waiting = timeout(max_wait, subscription.next());
        self.shutdown.interruptible(waiting).await.ok()?.ok()?
    }

    /// Begins to watch an order. Its news are its states but `PENDING`. Returns `None` if too many
    /// clients watch.
    pub(super) fn watch(&self, id: OrderId) -> Option<Subscription> {
        let subscription = self.watching.subscribe(id)?;
        self.arrived.notify_one();
        Some(subscription)
    }

    /// Asks the order store while clients wait or watch, until a stop is requested.
    pub(crate) async fn run(self) {
        let (mut failures, mut next) = (Backoff::default(), None);
        let now = Instant::now();
        let mut rounds = WatchRounds { begun_at: now, due_at: now, next: None };
        loop {
            let waiting = self.waiting.orders_from(next, MAX_ORDERS_PER_QUERY);
            next = waiting.next;
            let watched = rounds.next_orders(&self.watching, Instant::now());
            let rest = if waiting.ids.is_empty() && watched.is_empty() {
                let pause = rounds.pause(&self.watching, Instant::now());
                let arrived = timeout(pause, self.arrived.notified());
                if self.shutdown.interruptible(arrived).await.is_err() {
                    return;
                }
                ASK_EVERY
            } else {
                self.ask(&waiting.ids, &watched, &mut failures).await
            };
            if self.shutdown.sleep(rest).await.is_err() {
                return;
            }
        }
    }

    /// Asks about orders and reports their states to the clients. Returns how long to rest before
    /// the next query.
    async fn ask(
        &self,
        waiting: &[OrderId],
        watched: &[OrderId],
        failures: &mut Backoff,
    ) -> Duration {
        let asked_at = Instant::now();
        match self.store.find_decided(&[waiting, watched].concat()).await {
            Ok(decided) => {
                *failures = Backoff::default();
                let is_many = waiting.len() > MANY_ORDERS;
                let rest = (asked_at.elapsed() * REST_FACTOR).clamp(ASK_EVERY, MAX_REST);
                for order in &decided {
                    self.waiting.publish(order);
                    self.watching.publish(order);
                }
                if is_many { rest } else { ASK_EVERY }
            }
            Err(error) => {
                let (waiting, watched) = (waiting.len(), watched.len());
                tracing::warn!(waiting, watched, %error, "states of orders not read");
                failures.next_delay() + ASK_EVERY
            }
        }
    }
}

impl WatchRounds {
    /// The orders of the next query. Empty if it is not due.
    fn next_orders(&mut self, watching: &Subscriptions, now: Instant) -> Vec<OrderId> {
        if now < self.due_at {
            return Vec::new();
        }
        if self.next.is_none() {
            self.begun_at = now;
        }
        let SubscribedOrders { ids, next } = watching.orders_from(self.next, MAX_WATCHED_PER_QUERY);
        self.next = next;
        if next.is_none() {
            // Many orders make a long round, and a longer rest after it.
            let rest = (now - self.begun_at) * REST_FACTOR;
            self.due_at = now + rest.clamp(WATCH_EVERY, WATCH_EVERY + MAX_REST);
        }
        ids
    }

    /// How long no query is due, unless a client arrives.
    fn pause(&self, watching: &Subscriptions, now: Instant) -> Duration {
        if watching.is_empty() { IDLE_PAUSE } else { self.due_at.saturating_duration_since(now) }
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
        OutcomeWatch::new(OrderStore::new(database.unwrap()), 1, Shutdown::default())
    }

    #[tokio::test]
    async fn the_order_of_a_client_that_has_gone_is_not_asked_about() {
        let watch = watch();
        let mut request = Box::pin(watch.wait(OrderId::generate(), Duration::from_secs(60)));

        assert!(futures::poll!(request.as_mut()).is_pending());
        assert!(!watch.waiting.is_empty());
        drop(request);

        assert!(watch.waiting.is_empty());
    }

    #[tokio::test]
    async fn a_client_does_not_wait_if_too_many_others_do() {
        let watch = watch();
        let others = (0..MAX_WAITING_CLIENTS).map(|_| watch.waiting.subscribe(OrderId::generate()));
        let others: Vec<_> = others.collect();

        let mut request = Box::pin(watch.wait(OrderId::generate(), Duration::from_secs(60)));

        assert!(futures::poll!(request.as_mut()).is_ready());
        assert!(others.iter().all(Option::is_some));
    }

    #[test]
    fn a_watched_order_is_asked_about_every_250_ms() {
        let (watching, begun) = (Subscriptions::new(1_200), Instant::now());
        let ids = (0..1_200).map(|_| watching.subscribe(OrderId::generate()));
        let _clients: Vec<_> = ids.collect();
        let mut rounds = WatchRounds { begun_at: begun, due_at: begun, next: None };

        let mut at =
            |ms: u64| rounds.next_orders(&watching, begun + Duration::from_millis(ms)).len();
        let first_round = [at(0), at(4), at(8), at(12)];
        let until_second = [at(100), at(257), at(258)];

        assert_eq!(first_round, [500, 500, 200, 0]);
        assert_eq!(until_second, [0, 0, 500]);
    }
}
