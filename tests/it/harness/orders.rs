use chrono::Utc;
use stocklock::{domain::OrderId, store::NewOrder};

use super::order_lines;

/// An order of one unit of `a`, as ingest gives it to the order store.
pub(crate) fn new_order() -> NewOrder {
    NewOrder {
        order_id: OrderId::generate(),
        reference: None,
        customer_id: None,
        hold_seconds: None,
        lines: order_lines(&[("a", 1)]),
        accepted_at: Utc::now(),
    }
}
