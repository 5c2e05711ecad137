use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashSet},
};

use tokio::time::Instant;

use crate::{
    domain::{Line, OrderEvent, ProductId},
    lock::Selection,
    telemetry::Received,
};

/// An order event, and when the worker received it.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub event: OrderEvent,
    pub at: Instant,
    /// The trace of the order, if it is sampled.
    pub trace: Option<Box<Received>>,
}

impl Borrow<OrderEvent> for Arrived {
    fn borrow(&self) -> &OrderEvent {
        &self.event
    }
}

/// Selects the events of a batch that can be decided without the products that were `refused`.
///
/// It defers the events with a refused product. It also defers each event that shares a product
/// with an event deferred before it, so that no order overtakes another on a product.
pub(super) fn select(batch: &[&Arrived], refused: &BTreeSet<ProductId>) -> Selection {
    let mut products = BTreeSet::new();
    let mut deferred = Vec::new();
    let mut blocked: HashSet<&ProductId> = HashSet::new();
    for (number, Arrived { event, .. }) in batch.iter().enumerate() {
        let wanted = event.lines.as_slice().iter().map(Line::product_id);
        if wanted.clone().any(|product| refused.contains(product) || blocked.contains(product)) {
            blocked.extend(wanted);
            deferred.push(number);
        } else {
            products.extend(wanted.cloned());
        }
    }
    let covers_half = deferred.len() <= batch.len() / 2;
    Selection { products, deferred, covers_half }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::domain::{EventKind, Lines, OrderId};

    fn product(id: &str) -> ProductId {
        ProductId::parse(id).unwrap()
    }

    fn products(ids: &[&str]) -> BTreeSet<ProductId> {
        ids.iter().map(|id| product(id)).collect()
    }

    /// An order for each list of products, in this order.
    fn batch(orders: &[&[&str]]) -> Vec<Arrived> {
        let at = Instant::now();
        let event = |ids: &&[&str]| OrderEvent {
            order_id: OrderId::first_of(DateTime::UNIX_EPOCH),
            kind: EventKind::Placed,
            lines: Lines::new(ids.iter().map(|id| Line::new(product(id), 1).unwrap()).collect())
                .unwrap(),
            accepted_at: DateTime::UNIX_EPOCH,
            hold_seconds: None,
            reference: None,
        };
        orders.iter().map(|ids| Arrived { event: event(ids), at, trace: None }).collect()
    }

    #[test]
    fn nothing_is_deferred_if_no_product_is_refused() {
        let batch = batch(&[&["a", "b"], &["b", "c"]]);

        let selection = select(&batch.iter().collect::<Vec<_>>(), &BTreeSet::new());

        let products = products(&["a", "b", "c"]);
        assert_eq!(selection, Selection { products, deferred: vec![], covers_half: true });
    }

    #[test]
    fn an_order_that_shares_a_product_with_a_deferred_one_is_deferred() {
        let batch = batch(&[&["a", "b"], &["b", "c"], &["c"], &["d"]]);

        let selection = select(&batch.iter().collect::<Vec<_>>(), &products(&["a"]));

        assert_eq!(selection.deferred, [0, 1, 2]);
        assert_eq!(selection.products, products(&["d"]));
        assert!(!selection.covers_half);
    }

    #[test]
    fn an_order_before_a_deferred_one_is_not_deferred() {
        let batch = batch(&[&["b"], &["a", "b"]]);

        let selection = select(&batch.iter().collect::<Vec<_>>(), &products(&["a"]));

        assert_eq!(selection.deferred, [1]);
        assert!(selection.covers_half);
    }
}
