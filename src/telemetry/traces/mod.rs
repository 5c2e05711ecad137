//! Traces: the spans of sampled orders, sent to an OpenTelemetry collector.
//!
//! Only this folder knows OpenTelemetry. The other rooms carry a [`TraceContext`], and end spans by
//! dropping them. An order that is not sampled has no context, so it makes no span.
//!
//! | file | has |
//! | --- | --- |
//! | `sampler` | which traces are sampled |
//! | `span` | a span that is being made |
//! | `ingest` | the spans of HTTP requests and of shared transactions |
//! | `batch` | the spans of a consumer: of records, of batches, of the orders in a batch |
//! | `sending` | the spans of messages that are produced |
//! | `queue` | the bounded queue of ended spans |
//! | `exporter` | the thread that sends them |

mod batch;
mod exporter;
mod ingest;
mod queue;
mod sampler;
mod sending;
mod span;

use std::{sync::Arc, time::SystemTime};

use opentelemetry::trace::SpanKind;
use tokio::time::Instant;

pub(crate) use batch::BatchSpan;
pub use batch::ConsumerTraces;
pub use batch::Received;
pub(crate) use exporter::SpanExport;
pub(crate) use ingest::{SharedTransaction, TracedRequest};
use queue::SpanQueue;
use sampler::Sampler;
pub(crate) use sampler::TraceStarter;
use span::Parent;
pub(crate) use span::Span;

use crate::{
    config::TracesConfig,
    domain::{TraceContext, TraceParent},
};

/// Makes the spans of a process. If traces are off, nothing is made. Cheap to clone.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<Tracing>>);

struct Tracing {
    sampler: Sampler,
    queue: Arc<SpanQueue>,
    max_links: usize,
}

impl Traces {
    /// Makes no spans.
    pub fn off() -> Self {
        Self::default()
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    fn on(config: &TracesConfig, queue: Arc<SpanQueue>) -> Self {
        let (sampler, max_links) = (Sampler::new(config.sampler), config.max_links);
        Self(Some(Arc::new(Tracing { sampler, queue, max_links })))
    }

    /// The context of a message whose producer samples it. If traces are off, the process passes
    /// it on.
    pub(crate) fn continued(
        &self,
        parent: impl FnOnce() -> Option<TraceParent>,
    ) -> Option<TraceContext> {
        let parent = parent()?;
        let is_sampled = match &self.0 {
            Some(tracing) => tracing.sampler.samples(Some(&parent), &parent.context.trace_id),
            None => parent.is_sampled,
        };
        is_sampled.then_some(parent.context)
    }

    /// Begins the span with which a request enters the process: in the trace of its caller, or in a
    /// new one. `None` unless the trace is sampled.
    fn entered(
        &self,
        parent: impl FnOnce() -> Option<TraceParent>,
        kind: SpanKind,
        name: impl FnOnce() -> String,
    ) -> Option<Span> {
        let tracing = self.0.as_ref()?;
        let parent = parent();
        let trace_id = match &parent {
            Some(parent) => parent.context.trace_id,
            None => span::new_trace_id(),
        };
        if !tracing.sampler.samples(parent.as_ref(), &trace_id) {
            return None;
        }
        let parent = match parent {
            Some(parent) => Parent::Remote(parent.context),
            None => Parent::Root(trace_id),
        };
        Some(Span::begin(tracing, parent, kind, name(), SystemTime::now()))
    }

    /// Begins a span below `parent`. `None` if traces are off.
    fn below(&self, parent: Parent, kind: SpanKind, name: String, begun: Instant) -> Option<Span> {
        Some(Span::begin(self.0.as_ref()?, parent, kind, name, wall_time(begun)))
    }
}

/// The wall-clock time of an instant in the past.
fn wall_time(instant: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(instant.elapsed()).unwrap_or(now)
}
