use std::{collections::BTreeMap, fmt::Display};

use opentelemetry::trace::SpanKind;
use tokio::time::Instant;

use super::{Span, Traces, span::Parent};
use crate::domain::{OrderId, TraceContext, TracedOrders};

/// The spans of messages about traced orders that are being produced. Each ends when the broker has
/// acknowledged it. Empty without a traced order.
pub(crate) struct Sending<'t> {
    traced: &'t TracedOrders,
    spans: BTreeMap<OrderId, Span>,
}

impl Traces {
    /// Begins a span for each traced order, of which a message is produced to `topic`.
    pub(crate) fn sending<'t>(&self, topic: &str, traced: &'t TracedOrders) -> Sending<'t> {
        let begun = Instant::now();
        let span = |(order_id, context): (OrderId, &TraceContext)| {
            let parent = Parent::Local(context.clone());
            let mut span =
                self.below(parent, SpanKind::Producer, format!("send {topic}"), begun)?;
            about_messages(&mut span, topic, "send", "send");
            span.set("messaging.kafka.message.key", order_id.to_string());
            span.set("stocklock.order.id", order_id.to_string());
            Some((order_id, span))
        };
        Sending { traced, spans: traced.iter().filter_map(span).collect() }
    }
}

impl Sending<'_> {
    /// The context of the message about an order. A process whose traces are off passes on the
    /// context that it has.
    pub(crate) fn context(&self, order_id: OrderId) -> Option<&TraceContext> {
        let own = self.spans.get(&order_id).map(Span::context);
        own.or_else(|| self.traced.get(order_id))
    }

    /// Ends the spans.
    pub(crate) fn ended<E: Display>(self, produced: &Result<(), E>) {
        if let Err(error) = produced {
            for mut span in self.spans.into_values() {
                span.fail(error.to_string());
            }
        }
    }
}

/// The attributes of one or more messages by the conventions of messaging.
pub(super) fn about_messages(
    span: &mut Span,
    topic: &str,
    operation: &'static str,
    operation_type: &'static str,
) {
    span.set("messaging.system", "kafka");
    span.set("messaging.destination.name", topic.to_owned());
    span.set("messaging.operation.name", operation);
    span.set("messaging.operation.type", operation_type);
}
