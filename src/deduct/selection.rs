use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashSet},
};

use tokio::time::Instant;

use crate::{
    domain::{Line, OrderEvent, ProductId},
    lock::Wanted,
};

/// An order event, and when it came.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub event: OrderEvent,
    pub at: Instant,
}

impl Borrow<OrderEvent> for Arrived {
    fn borrow(&self) -> &OrderEvent {
        &self.event
    }
}

/// Those events of a batch that can be decided while others hold some products.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    /// The numbers of the others, in their order.
    pub(crate) left_behind: Vec<usize>,
    /// The products of those that can be decided, and since when the first of them has been here.
    pub(crate) wanted: Wanted,
}

impl Selection {
    /// Leaves behind the events with products that are `held`, and those that share a product with one left behind before them, so
    /// that none overtakes another on a product.
    pub(crate) fn without<'a>(
        held: &BTreeSet<ProductId>,
        arrived: impl IntoIterator<Item = &'a Arrived>,
    ) -> Self {
        let mut left_behind = Vec::new();
        let mut wanted = Wanted::nothing();
        let mut theirs: HashSet<&ProductId> = HashSet::new();
        for (number, Arrived { event, at }) in arrived.into_iter().enumerate() {
            let products = event.lines.as_slice().iter().map(Line::product_id);
            if products.clone().any(|product| held.contains(product) || theirs.contains(product)) {
                theirs.extend(products);
                left_behind.push(number);
            } else {
                wanted.products.extend(products.cloned());
                wanted.since = wanted.since.min(*at);
            }
        }
        Self { left_behind, wanted }
    }
}
