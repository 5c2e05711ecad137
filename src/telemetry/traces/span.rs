use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, LazyLock},
    time::SystemTime,
};

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId, Value,
    trace::{Link, SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::time::Instant;

use super::{Tracing, wall_time};
use crate::domain::TraceContext;

static SCOPE: LazyLock<InstrumentationScope> = LazyLock::new(|| {
    InstrumentationScope::builder("stocklock").with_version(env!("CARGO_PKG_VERSION")).build()
});

/// What a span belongs to.
pub(super) enum Parent {
    /// Nothing: it begins this trace.
    Root([u8; 16]),
    /// A span of this process.
    Local(TraceContext),
    /// A span of another process.
    Remote(TraceContext),
}

/// A span of a sampled trace. It ends when it is dropped.
pub(crate) struct Span {
    tracing: Arc<Tracing>,
    context: TraceContext,
    parent_span_id: SpanId,
    is_parent_remote: bool,
    kind: SpanKind,
    name: String,
    begun_at: SystemTime,
    attributes: Vec<KeyValue>,
    links: SpanLinks,
    status: Status,
}

impl Span {
    pub(super) fn begin(
        tracing: &Arc<Tracing>,
        parent: Parent,
        kind: SpanKind,
        name: String,
        begun_at: SystemTime,
    ) -> Self {
        let is_parent_remote = matches!(parent, Parent::Remote(_));
        let (trace_id, parent_span_id, state) = match parent {
            Parent::Root(trace_id) => (trace_id, SpanId::INVALID, None),
            Parent::Local(parent) | Parent::Remote(parent) => {
                (parent.trace_id, SpanId::from_bytes(parent.span_id), parent.state)
            }
        };
        Self {
            tracing: Arc::clone(tracing),
            context: TraceContext { trace_id, span_id: new_span_id(), state },
            parent_span_id,
            is_parent_remote,
            kind,
            name,
            begun_at,
            attributes: Vec::new(),
            links: SpanLinks::default(),
            status: Status::Unset,
        }
    }

    /// The parent of the spans below this one.
    pub(crate) fn context(&self) -> &TraceContext {
        &self.context
    }

    pub(crate) fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(key, value));
    }

    /// Adds a link, and counts it as dropped above `OTEL_SPAN_LINK_COUNT_LIMIT`.
    pub(super) fn link(&mut self, to: &TraceContext) {
        if self.links.links.len() < self.tracing.max_links {
            self.links.links.push(Link::new(span_context(to, true), Vec::new(), 0));
        } else {
            self.links.dropped_count += 1;
        }
    }

    /// Marks the span as failed, for this reason.
    pub(crate) fn fail(&mut self, why: impl Into<Cow<'static, str>>) {
        // What the conventions demand of an error without a name.
        self.fail_as("_OTHER", why);
    }

    /// Does the same with the name of the kind of error.
    pub(super) fn fail_as(
        &mut self,
        error_type: impl Into<Value>,
        why: impl Into<Cow<'static, str>>,
    ) {
        self.set("error.type", error_type);
        self.status = Status::error(why);
    }

    /// Begins a span below this one.
    pub(super) fn child(&self, kind: SpanKind, name: String, begun_at: SystemTime) -> Self {
        Self::begin(&self.tracing, Parent::Local(self.context.clone()), kind, name, begun_at)
    }

    /// Begins a span in the trace of another process's span.
    pub(super) fn beside(&self, parent: TraceContext, name: String, begun: Instant) -> Self {
        let parent = Parent::Remote(parent);
        Self::begin(&self.tracing, parent, SpanKind::Consumer, name, wall_time(begun))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.tracing.queue.push(SpanData {
            span_context: span_context(&self.context, false),
            parent_span_id: self.parent_span_id,
            parent_span_is_remote: self.is_parent_remote,
            span_kind: self.kind.clone(),
            name: std::mem::take(&mut self.name).into(),
            start_time: self.begun_at,
            // A clock that was set back makes no span of negative length.
            end_time: SystemTime::now().max(self.begun_at),
            attributes: std::mem::take(&mut self.attributes),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: std::mem::take(&mut self.links),
            status: std::mem::take(&mut self.status),
            instrumentation_scope: SCOPE.clone(),
        });
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span").field("name", &self.name).finish_non_exhaustive()
    }
}

fn span_context(context: &TraceContext, is_remote: bool) -> SpanContext {
    let state = context.state.as_deref().and_then(|state| state.parse::<TraceState>().ok());
    SpanContext::new(
        TraceId::from_bytes(context.trace_id),
        SpanId::from_bytes(context.span_id),
        TraceFlags::SAMPLED,
        is_remote,
        state.unwrap_or_default(),
    )
}

/// Not zero, as W3C demands.
pub(super) fn new_trace_id() -> [u8; 16] {
    fastrand::u128(1..).to_be_bytes()
}

pub(super) fn new_span_id() -> [u8; 8] {
    fastrand::u64(1..).to_be_bytes()
}
