use tokio::time::Instant;

use crate::{
    domain::{OrderStatus, TracedOrders},
    telemetry::{BatchSpan, Received},
    wire::WireError,
};

/// A message of `order-status`, as it was received.
pub struct ReceivedStatus {
    /// `None` is a tombstone: a message without a value.
    pub(super) status: Result<Option<OrderStatus>, WireError>,
    /// The trace of the order, if it is sampled.
    pub(super) trace: Option<Box<Received>>,
    pub(super) at: Instant,
}

impl ReceivedStatus {
    /// The status, unless the message is a tombstone or cannot be decoded.
    pub(super) fn readable(&self) -> Option<&OrderStatus> {
        self.status.as_ref().ok()?.as_ref()
    }
}

/// Makes the span of each traced order whose status a batch has applied, in the trace of that
/// order. Returns the contexts that the messages about these orders carry.
pub(super) fn applied(batch: &[ReceivedStatus], span: &BatchSpan) -> TracedOrders {
    let mut traced = TracedOrders::default();
    for received in batch {
        let (Some(status), Some(trace)) = (received.readable(), &received.trace) else { continue };
        let (order_id, name) = (status.order_id, status.status.as_str());
        traced.insert(order_id, span.order(trace, "apply", order_id, received.at, Some(name)));
    }
    traced
}
