use std::{sync::Arc, time::SystemTime};

use opentelemetry::{Value, trace::SpanKind};
use tokio::time::Instant;

use super::{
    Span, Traces,
    ingest::about_transaction,
    sending::about_messages,
    span::{self, Parent},
    wall_time,
};
use crate::domain::{OrderId, TraceContext, TraceParent};

/// A message about a traced order, as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    context: TraceContext,
    partition: i32,
    offset: i64,
}

/// Makes the spans of a consumer. Cheap to clone.
#[derive(Clone)]
pub struct ConsumerTraces {
    traces: Traces,
    topic: Arc<str>,
    group_id: Arc<str>,
}

/// The span of a batch. Without a traced order, the batch has no span, and nothing here does
/// anything.
#[derive(Debug, Default)]
pub(crate) struct BatchSpan(Option<Box<Batch>>);

#[derive(Debug)]
struct Batch {
    span: Span,
    topic: Arc<str>,
    group_id: Arc<str>,
}

impl ConsumerTraces {
    pub(crate) fn new(traces: &Traces, topic: &str, group_id: &str) -> Self {
        Self { traces: traces.clone(), topic: topic.into(), group_id: group_id.into() }
    }

    /// Makes no spans.
    pub fn off() -> Self {
        Self::new(&Traces::off(), "", "")
    }

    /// The traces of the process.
    pub(crate) fn process(&self) -> &Traces {
        &self.traces
    }

    /// Begins the span of a record from which an order is placed, in the trace of its producer or
    /// in a new one. `None` unless the trace is sampled.
    pub(crate) fn record(
        &self,
        parent: Option<&TraceParent>,
        partition: i32,
        offset: i64,
    ) -> Option<Span> {
        let name = || format!("process {}", self.topic);
        let mut span = self.traces.entered(|| parent.cloned(), SpanKind::Consumer, name)?;
        about_messages(&mut span, &self.topic, "process", "process");
        span.set("messaging.consumer.group.name", self.group_id.to_string());
        Received::describe(&mut span, partition, offset);
        Some(span)
    }

    /// `None` unless the producer of the message samples its trace.
    pub(crate) fn received(
        &self,
        partition: i32,
        offset: i64,
        parent: impl FnOnce() -> Option<TraceParent>,
    ) -> Option<Box<Received>> {
        let context = self.traces.continued(parent)?;
        Some(Box::new(Received { context, partition, offset }))
    }

    /// Begins the span of a batch: a trace of its own, with a link to each traced order, up to
    /// `OTEL_SPAN_LINK_COUNT_LIMIT`.
    pub(crate) fn batch<'r>(
        &self,
        messages: usize,
        received: impl Iterator<Item = &'r Received>,
    ) -> BatchSpan {
        let mut received = received.peekable();
        let (Some(tracing), true) = (&self.traces.0, received.peek().is_some()) else {
            return BatchSpan(None);
        };
        let topic = &*self.topic;
        let root = Parent::Root(span::new_trace_id());
        let name = format!("process {topic}");
        let mut span = Span::begin(tracing, root, SpanKind::Consumer, name, SystemTime::now());
        about_messages(&mut span, topic, "process", "process");
        span.set("messaging.consumer.group.name", self.group_id.to_string());
        span.set("messaging.batch.message_count", count(messages));
        let mut traced = 0;
        for received in received {
            traced += 1;
            span.link(&received.context);
        }
        span.set("stocklock.batch.traced_orders", count(traced));
        let (topic, group_id) = (Arc::clone(&self.topic), Arc::clone(&self.group_id));
        BatchSpan(Some(Box::new(Batch { span, topic, group_id })))
    }
}

impl Received {
    fn describe(span: &mut Span, partition: i32, offset: i64) {
        span.set("messaging.destination.partition.id", partition.to_string());
        span.set("messaging.kafka.offset", offset);
    }
}

impl BatchSpan {
    /// Makes the span of a stage of the batch that has just ended.
    pub(crate) fn stage(&self, name: &'static str, begun: Instant) {
        if let Some(batch) = &self.0 {
            drop(batch.span.child(SpanKind::Internal, name.to_owned(), wall_time(begun)));
        }
    }

    /// Makes the span of a transaction that has just ended: the store and the transaction, as in
    /// `stock_store decide`.
    pub(crate) fn transaction<T, E: std::fmt::Display>(
        &self,
        name: &'static str,
        begun: Instant,
        orders: usize,
        result: &Result<T, E>,
    ) {
        if let Some(batch) = &self.0 {
            let mut span = batch.span.child(SpanKind::Client, name.to_owned(), wall_time(begun));
            about_transaction(&mut span, name, orders);
            if let Err(error) = result {
                span.fail(error.to_string());
            }
        }
    }

    /// Makes the span of messages that were just produced. Each order has a span of the kind
    /// `PRODUCER`, and its message has the context of that one.
    pub(crate) fn sent(&self, topic: &str, messages: usize, begun: Instant) {
        if let Some(batch) = &self.0 {
            let (kind, name) = (SpanKind::Client, format!("send {topic}"));
            let mut span = batch.span.child(kind, name, wall_time(begun));
            about_messages(&mut span, topic, "send", "send");
            span.set("messaging.batch.message_count", count(messages));
        }
    }

    /// Marks the batch as failed: it is tried again, as another span.
    pub(crate) fn fail(&mut self, error: &impl std::fmt::Display) {
        if let Some(batch) = &mut self.0 {
            batch.span.fail(error.to_string());
        }
    }

    /// Makes the span of one order in the trace of that order, linked to the batch. `operation` is
    /// what was done with the order, and `status` what became of it.
    ///
    /// Returns the context for what follows from it. If traces are off, that is the producer's.
    pub(crate) fn order(
        &self,
        received: &Received,
        operation: &'static str,
        order_id: OrderId,
        begun: Instant,
        status: Option<impl Into<Value>>,
    ) -> TraceContext {
        let Some(Batch { span: batch, topic, group_id }) = self.0.as_deref() else {
            return received.context.clone();
        };
        let mut span =
            batch.beside(received.context.clone(), format!("{operation} {topic}"), begun);
        about_messages(&mut span, topic, operation, "process");
        span.set("messaging.consumer.group.name", group_id.to_string());
        Received::describe(&mut span, received.partition, received.offset);
        span.set("messaging.kafka.message.key", order_id.to_string());
        span.set("stocklock.order.id", order_id.to_string());
        if let Some(status) = status {
            span.set("stocklock.order.status", status);
        }
        span.link(batch.context());
        span.context().clone()
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
