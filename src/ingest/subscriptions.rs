//! Clients that wait for news of orders.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{domain::OrderId, store::OrderSummary};

/// The clients that wait for news of orders, a bounded number. Clients that wait for the same order
/// cost one id of a query. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Subscriptions {
    max: usize,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    /// The last news of each order.
    orders: BTreeMap<OrderId, watch::Sender<Option<OrderSummary>>>,
    clients: usize,
}

/// Some of the orders that clients wait for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SubscribedOrders {
    pub(super) ids: Vec<OrderId>,
    /// The order at which the next ones begin. `None` if these are all that are left.
    pub(super) next: Option<OrderId>,
}

/// A client that waits for news of an order. It waits no longer once this is dropped.
#[derive(Debug)]
pub(super) struct Subscription {
    order_id: OrderId,
    table: Arc<Mutex<Table>>,
    /// `None` once it is dropped.
    news: Option<watch::Receiver<Option<OrderSummary>>>,
}

impl Subscriptions {
    /// `max`: the most clients.
    pub(super) fn new(max: usize) -> Self {
        Self { max, table: Arc::default() }
    }

    /// Returns `None` if there are too many clients.
    pub(super) fn subscribe(&self, order_id: OrderId) -> Option<Subscription> {
        let mut table = lock(&self.table);
        if table.clients >= self.max {
            return None;
        }
        table.clients += 1;
        let mut news =
            table.orders.entry(order_id).or_insert_with(|| watch::channel(None).0).subscribe();
        if news.borrow().is_some() {
            news.mark_changed();
        }
        Some(Subscription { order_id, table: Arc::clone(&self.table), news: Some(news) })
    }

    /// Up to `max` orders in the order of their ids, beginning with `from`. Begins with the first
    /// order if there is none from `from` on.
    pub(super) fn orders_from(&self, from: Option<OrderId>, max: usize) -> SubscribedOrders {
        let table = lock(&self.table);
        let from = from.filter(|from| table.orders.range(from..).next().is_some());
        let mut due = table.orders.keys().copied().filter(|id| from.is_none_or(|from| *id >= from));
        let ids = due.by_ref().take(max).collect();
        SubscribedOrders { ids, next: due.next() }
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.table).orders.is_empty()
    }

    /// Reports the state of an order to its clients, unless they know it.
    pub(super) fn publish(&self, order: &OrderSummary) {
        if let Some(sender) = lock(&self.table).orders.get(&order.order_id) {
            sender.send_if_modified(|last| {
                let is_new = last.as_ref() != Some(order);
                if is_new {
                    *last = Some(order.clone());
                }
                is_new
            });
        }
    }
}

impl Subscription {
    /// Returns the next news. News that come quickly are merged: it returns the last.
    pub(super) async fn next(&mut self) -> Option<OrderSummary> {
        let news = self.news.as_mut()?;
        news.changed().await.ok()?;
        news.borrow_and_update().clone()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.news = None;
        let mut table = lock(&self.table);
        table.clients -= 1;
        let is_last =
            table.orders.get(&self.order_id).is_some_and(|sender| sender.receiver_count() == 0);
        if is_last {
            table.orders.remove(&self.order_id);
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::OrderState;

    #[tokio::test]
    async fn each_client_of_an_order_receives_its_last_news_once() {
        let (clients, order_id) = (Subscriptions::new(10), OrderId::generate());
        let in_state = |state| OrderSummary { order_id, state, reason: None, expires_at: None };
        let mut first = clients.subscribe(order_id).unwrap();
        clients.publish(&in_state(OrderState::Reserved));
        let mut second = clients.subscribe(order_id).unwrap();

        assert_eq!(first.next().await, Some(in_state(OrderState::Reserved)));
        assert_eq!(second.next().await, Some(in_state(OrderState::Reserved)));
        clients.publish(&in_state(OrderState::Reserved));
        assert!(futures::poll!(Box::pin(first.next())).is_pending());
        clients.publish(&in_state(OrderState::Completed));
        clients.publish(&in_state(OrderState::Cancelled));

        assert_eq!(first.next().await, Some(in_state(OrderState::Cancelled)));
    }

    #[test]
    fn clients_of_one_order_cost_one_id_until_the_last_has_gone() {
        let (clients, order_id) = (Subscriptions::new(2), OrderId::generate());
        let one = clients.subscribe(order_id);
        let two = clients.subscribe(order_id);

        assert!(one.is_some() && two.is_some());
        assert!(clients.subscribe(OrderId::generate()).is_none(), "two are the most");
        assert_eq!(clients.orders_from(None, 10).ids, [order_id]);
        drop(one);
        assert_eq!(clients.orders_from(None, 10).ids, [order_id]);
        drop(two);

        assert!(clients.is_empty());
        assert!(clients.subscribe(OrderId::generate()).is_some());
    }

    #[test]
    fn more_orders_than_a_query_takes_come_in_turn() {
        let clients = Subscriptions::new(3);
        let mut ids = [(); 3].map(|()| OrderId::generate());
        ids.sort_unstable();
        let _subscribed = ids.map(|id| clients.subscribe(id).unwrap());

        let first = clients.orders_from(None, 2);
        let second = clients.orders_from(first.next, 2);
        // The client whose order was to be next may have gone. Then the turn begins anew, so that
        // the other clients do not wait for new ones.
        let third = clients.orders_from(Some(OrderId::generate()), 2);

        assert_eq!(first, SubscribedOrders { ids: ids[..2].to_vec(), next: Some(ids[2]) });
        assert_eq!(second, SubscribedOrders { ids: vec![ids[2]], next: None });
        assert_eq!(third.ids, ids[..2]);
    }
}
