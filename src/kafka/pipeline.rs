use std::{fmt::Display, sync::Arc};

use rdkafka::message::OwnedMessage;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use super::{DeadLetters, Fate, Handler, Lane, Refusal, breaker::Breaker, lane::Batch, publishing::Publishing};
use crate::{
    backoff::Backoff,
    config::Batches,
    lifecycle::Shutdown,
    telemetry::{Component, Metrics},
};

/// How often a batch, or a part of one, is repeated as it is before it is halved.
const FAILURES_BEFORE_SPLIT: u32 = 3;

/// A batch that is handled, part by part, and not yet published.
pub(super) struct HandledBatch<H: Handler> {
    pub batch: Batch<H::Decoded>,
    pub parts: Vec<Part<H>>,
}

/// Messages that were handled together, and what came of them; or one that was refused.
pub(super) struct Part<H: Handler> {
    /// Where it ends in its batch; it begins where the part before it ends.
    pub end: usize,
    pub result: Result<H::Handled, Refusal>,
}

impl Lane {
    /// Has batches handled in turn until the process is to stop. The three steps work on a batch each: while one is in its transaction, the
    /// next is collected and decoded, and the last is published, what is refused to `dead_letters`. Only then are its offsets stored, in the
    /// order of the batches.
    ///
    /// A batch that still fails when its partitions have gone is left to their next owner. One that still fails at the stop ends its step:
    /// the offsets of a later batch would pass those of this one.
    pub async fn run<H: Handler>(
        mut self,
        handler: H,
        dead_letters: DeadLetters,
        batches: Batches,
        metrics: &Metrics,
        health: [Component; 2],
    ) {
        let handler = Arc::new(handler);
        let demand = Arc::new(Semaphore::new(0));
        let (collected, to_handle) = mpsc::channel(1);
        let (done, to_publish) = mpsc::channel(1);
        let [handling, publishing] = health.map(|health| Step {
            handler: Arc::clone(&handler),
            metrics: metrics.clone(),
            health,
            shutdown: self.shutdown.clone(),
        });
        let publishing = Publishing {
            step: publishing,
            dead_letters,
            offsets: self.offsets.clone(),
            breaker: Breaker::default(),
            stopped: metrics.lanes_stopped.with_label_values(&[&self.topic]),
        };
        let mut steps = JoinSet::new();
        steps.spawn(handling.handle(Arc::clone(&demand), to_handle, done));
        steps.spawn(publishing.run(to_publish));
        steps.spawn(async move {
            let decode = |message: &OwnedMessage| handler.decode(message);
            while let Some(batch) = self.next_batch(batches, decode, taken(&demand)).await {
                if collected.send(batch).await.is_err() {
                    break;
                }
            }
        });
        while let Some(ended) = steps.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}

async fn taken(demand: &Semaphore) {
    if let Ok(permit) = demand.acquire().await {
        permit.forget();
    }
}

/// What each of a lane's steps has.
pub(super) struct Step<H> {
    pub handler: Arc<H>,
    pub metrics: Metrics,
    pub health: Component,
    pub shutdown: Shutdown,
}

impl<H: Handler> Step<H> {
    async fn handle(
        self,
        demand: Arc<Semaphore>,
        mut batches: mpsc::Receiver<Batch<H::Decoded>>,
        handled: mpsc::Sender<HandledBatch<H>>,
    ) {
        self.health.ready();
        loop {
            demand.add_permits(1);
            let Some(batch) = self.health.waiting(batches.recv()).await else { return };
            if let Some(parts) = self.handle_all(&batch).await {
                self.health.ready();
                if self.health.waiting(handled.send(HandledBatch { batch, parts })).await.is_err() {
                    return;
                }
            } else if self.shutdown.is_requested() {
                return;
            }
        }
    }

    /// Repeats what fails, with growing delays and in ever smaller parts: a batch may be too large for the database, in bytes or in
    /// time. What is refused for its data is halved at once, until the culprit is alone. `None` where it is given up.
    async fn handle_all(&self, batch: &Batch<H::Decoded>) -> Option<Vec<Part<H>>> {
        let messages = batch.decoded();
        let (mut done, mut size) = (0, messages.len());
        let mut parts = Vec::with_capacity(1);
        let mut backoff = Backoff::default();
        while done < messages.len() {
            let end = messages.len().min(done + size);
            let tried = end - done;
            match self.handler.handle(&messages[done..end]).await {
                Ok(handled) => {
                    parts.push(Part { end, result: Ok(handled) });
                    (done, size) = (end, size * 2);
                    backoff = Backoff::default();
                }
                Err(error) => match H::fate(&error) {
                    Fate::Refused(class) => {
                        self.goes_on(batch)?;
                        if tried == 1 {
                            parts.push(Part { end, result: Err(Refusal { class, text: error.to_string() }) });
                            done = end;
                        } else {
                            tracing::debug!(messages = tried, class, %error, "refused, tried in halves");
                            size = tried / 2;
                        }
                        backoff = Backoff::default();
                    }
                    fate => {
                        self.failed(&error, fate, tried, batch, &mut backoff).await?;
                        if backoff.failures().is_multiple_of(FAILURES_BEFORE_SPLIT) {
                            size = (tried / 2).max(1);
                        }
                    }
                },
            }
        }
        Some(parts)
    }

    /// Waits before the next attempt. `None` where there is to be none.
    pub async fn failed(
        &self,
        error: &impl Display,
        fate: Fate,
        messages: usize,
        batch: &Batch<H::Decoded>,
        backoff: &mut Backoff,
    ) -> Option<()> {
        let delay = backoff.next_delay();
        tracing::warn!(messages, failures = backoff.failures(), %error, ?delay, "batch failed");
        if let Fate::Unavailable(dependency) = fate {
            self.metrics.retries.with_label_values(&[dependency]).inc();
            self.health.not_ready(error.to_string());
        }
        self.goes_on(batch)?;
        tokio::time::sleep(delay).await;
        Some(())
    }

    /// `None` where the batch is not worth another attempt: the process is to stop, or its partitions are gone.
    pub fn goes_on(&self, batch: &Batch<H::Decoded>) -> Option<()> {
        self.health.alive();
        (!self.shutdown.is_requested() && batch.is_owned()).then_some(())
    }
}
