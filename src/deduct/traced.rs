use std::collections::HashMap;

use super::Arrived;
use crate::{
    domain::{OrderStatus, TracedOrders, fold::Decisions},
    telemetry::BatchSpan,
};

/// Makes the span of each traced order that a batch has decided, in the trace of that order.
/// Returns the contexts that the orders' statuses carry. `deferred` is ascending.
pub(super) fn decided(
    batch: &[&Arrived],
    deferred: &[usize],
    decisions: &Decisions,
    span: &BatchSpan,
) -> TracedOrders {
    let mut traced = TracedOrders::default();
    if batch.iter().all(|arrived| arrived.trace.is_none()) {
        return traced;
    }
    let status = |status: &OrderStatus| (status.order_id, status.status.as_str());
    let statuses: HashMap<_, _> = decisions.statuses.iter().map(status).collect();
    for (number, Arrived { event, at, trace }) in batch.iter().enumerate() {
        let is_decided = deferred.binary_search(&number).is_err();
        let Some(received) = trace.as_deref().filter(|_| is_decided) else { continue };
        let (order_id, status) = (event.order_id, statuses.get(&event.order_id).copied());
        traced.insert(order_id, span.order(received, "decide", order_id, *at, status));
    }
    traced
}
