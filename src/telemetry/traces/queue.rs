use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use opentelemetry_sdk::trace::SpanData;
use prometheus::IntCounter;

use crate::config::SpanQueueConfig;

/// The ended spans that wait for the exporter, a bounded number. A span above it is dropped and
/// counted, so that a collector that is away costs nothing else.
pub(super) struct SpanQueue {
    limits: SpanQueueConfig,
    state: Mutex<State>,
    changed: Condvar,
    dropped: IntCounter,
}

#[derive(Default)]
struct State {
    spans: VecDeque<SpanData>,
    is_closed: bool,
}

impl SpanQueue {
    pub(super) fn new(limits: SpanQueueConfig, dropped: IntCounter) -> Self {
        Self { limits, state: Mutex::default(), changed: Condvar::new(), dropped }
    }

    /// Adds a span. Never waits for the collector.
    pub(super) fn push(&self, span: SpanData) {
        let mut state = self.state();
        if state.is_closed || state.spans.len() >= self.limits.max_queued {
            self.dropped.inc();
            return;
        }
        state.spans.push_back(span);
        if state.spans.len() == self.limits.max_batch {
            self.changed.notify_one();
        }
    }

    /// Waits for the next batch: a full one, or what has come within the delay. After
    /// [`SpanQueue::close`] it returns the rest without a wait, and then `None`.
    pub(super) fn next_batch(&self) -> Option<Vec<SpanData>> {
        let due_at = Instant::now() + self.limits.delay;
        let mut state = self.state();
        loop {
            let wait = due_at.saturating_duration_since(Instant::now());
            let is_full = state.spans.len() >= self.limits.max_batch;
            if is_full || state.is_closed || wait.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.is_closed && state.spans.is_empty() {
            return None;
        }
        let count = state.spans.len().min(self.limits.max_batch);
        Some(state.spans.drain(..count).collect())
    }

    /// Takes no further span.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_one();
    }

    /// How many spans wait.
    pub(super) fn len(&self) -> usize {
        self.state().spans.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
