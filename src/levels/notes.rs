//! Publishes the levels of noted products.

use std::time::Duration;

use super::{LevelError, Levels};
use crate::{
    backoff::{Backoff, jittered},
    lifecycle::Shutdown,
    lock::Lease,
    telemetry::Component,
};

/// The pause between two passes.
const PASS_INTERVAL: Duration = Duration::from_secs(1);
/// The pause after a pass that left notes.
const SHORT_PAUSE: Duration = Duration::from_millis(100);
/// Notes of one page, and pages of one pass.
const MAX_PAGE_NOTES: u32 = 2_000;
const MAX_PAGES: usize = 50;

/// Publishes the levels of noted products, and deletes their notes.
///
/// Any number of workers may run it: under `redlock` one of them at a time does a pass. Under `row`
/// two passes may publish a level twice, which is harmless.
pub struct NotePublisher {
    pub levels: Levels,
    pub lease: Lease,
}

impl NotePublisher {
    /// Makes passes until a stop is requested. A pass that is dropped leaves its notes.
    pub(crate) async fn run(self, health: Component, shutdown: Shutdown) {
        let (mut failures, mut delay) = (Backoff::default(), PASS_INTERVAL);
        loop {
            health.ready();
            if shutdown.sleep(jittered(delay, 0.5..1.5)).await.is_err() {
                return;
            }
            let Ok(passed) = shutdown.interruptible(self.pass_alone()).await else { return };
            delay = match passed {
                Ok(has_more) => {
                    failures = Backoff::default();
                    if has_more { SHORT_PAUSE } else { PASS_INTERVAL }
                }
                Err(error) => {
                    tracing::warn!(%error, "levels of noted products not published");
                    let retries = &self.levels.metrics.retries;
                    retries.with_label_values(&[error.dependency()]).inc();
                    failures.next_delay().max(PASS_INTERVAL)
                }
            };
        }
    }

    /// Measures the notes, and makes a pass if there are some and no other worker makes one.
    /// Returns whether there may be more.
    async fn pass_alone(&self) -> Result<bool, LevelError> {
        let notes = self.levels.store.count_level_notes().await?;
        self.levels.metrics.level_notes.set(notes);
        if notes == 0 {
            return Ok(false);
        }
        self.lease.hold(self.pass()).await.unwrap_or(Ok(false))
    }

    /// Publishes the noted products, 100,000 at most. Returns whether there may be more.
    ///
    /// Fails if the store or the broker is unavailable. Then the notes stay.
    pub async fn pass(&self) -> Result<bool, LevelError> {
        let Levels { store, metrics, .. } = &self.levels;
        let mut after = None;
        for _ in 0..MAX_PAGES {
            let page = store.list_level_notes(after.as_ref(), MAX_PAGE_NOTES).await?;
            let done = self.levels.publish_noted(&page).await?;
            metrics.level_notes.sub(i64::try_from(done).unwrap_or(i64::MAX));
            if page.len() < MAX_PAGE_NOTES as usize {
                return Ok(false);
            }
            after = page.into_iter().next_back().map(|note| note.product_id);
        }
        Ok(true)
    }
}
