use std::{fmt::Display, sync::Arc};

use rdkafka::message::OwnedMessage;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use super::{
    DeadLetterReason, DeadLetters, Fate, Handler, Lane,
    breaker::Breaker,
    lane::{Batch, LeftBehind},
    partitions::Partitions,
    publishing::Publishing,
};
use crate::{
    backoff::Backoff,
    config,
    lifecycle::Shutdown,
    telemetry::{Component, Metrics},
};

/// How often a batch, or a part of one, is repeated as it is before it is halved.
const FAILURES_BEFORE_SPLIT: u32 = 3;

/// A batch that is handled, part by part, and not yet published.
pub(super) struct HandledBatch<H: Handler> {
    pub(crate) batch: Batch<H::Decoded>,
    pub(crate) parts: Vec<Part<H>>,
}

/// Batches, each closed when it is asked for.
struct Batches<D> {
    demand: Arc<Semaphore>,
    closed: mpsc::Receiver<Batch<D>>,
    is_demanded: bool,
}

impl<D> Batches<D> {
    /// Waits for the next one. `None` where there will be none any more.
    async fn next(&mut self) -> Option<Batch<D>> {
        self.demand();
        let next = self.closed.recv().await;
        self.is_demanded = false;
        next
    }

    /// The next one where it was asked for before and is there.
    fn at_hand(&mut self) -> Option<Batch<D>> {
        let next = self.closed.try_recv().ok();
        self.is_demanded &= next.is_none();
        next
    }

    fn demand(&mut self) {
        if !std::mem::replace(&mut self.is_demanded, true) {
            self.demand.add_permits(1);
        }
    }
}

/// Messages that were handled together, and what came of them; or one that was refused.
pub(super) struct Part<H: Handler> {
    /// Where it ends in its batch, from which what was left behind is gone; it begins where the part before it ends.
    pub(crate) end: usize,
    pub(crate) result: Result<H::Handled, DeadLetterReason>,
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
        batches: config::BatchConfig,
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
        let closed = Batches { demand: Arc::clone(&demand), closed: to_handle, is_demanded: false };
        steps.spawn(handling.handle(closed, Arc::clone(&self.partitions), batches.max, done));
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
    pub(crate) handler: Arc<H>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Component,
    pub(crate) shutdown: Shutdown,
}

impl<H: Handler> Step<H> {
    /// While `most` messages or more are left behind, no others are asked for.
    async fn handle(
        self,
        mut batches: Batches<H::Decoded>,
        partitions: Arc<Partitions>,
        most: usize,
        handled: mpsc::Sender<HandledBatch<H>>,
    ) {
        self.health.ready();
        let mut left = LeftBehind::default();
        while !self.shutdown.is_requested() {
            let next = match left.len() {
                0 => match self.health.waiting(batches.next()).await {
                    None => return,
                    next => next,
                },
                behind => {
                    let next = batches.at_hand();
                    if behind + next.as_ref().map_or(0, Batch::len) < most {
                        batches.demand();
                    }
                    next
                }
            };
            let mut batch = Batch::again(std::mem::take(&mut left), &partitions, next);
            let Some((parts, left_behind)) = self.handle_all(&batch).await else { continue };
            self.health.ready();
            left = batch.leave_behind(&left_behind);
            if !batch.is_empty()
                && self.health.waiting(handled.send(HandledBatch { batch, parts })).await.is_err()
            {
                return;
            }
        }
    }

    /// Repeats what fails, with growing delays and in ever smaller parts: a batch may be too large for the database, in bytes or in
    /// time. What is refused for its data is halved at once, until the culprit is alone. A part that leaves messages behind is the last. Answers
    /// the parts without what was left behind, and the numbers of that; `None` where the batch is given up.
    async fn handle_all(&self, batch: &Batch<H::Decoded>) -> Option<(Vec<Part<H>>, Vec<usize>)> {
        let messages = batch.decoded();
        let (mut tried_up_to, mut size) = (0, messages.len());
        let (mut parts, mut left_behind) = (Vec::with_capacity(1), Vec::new());
        let mut backoff = Backoff::default();
        while tried_up_to < messages.len() {
            let tried = tried_up_to..messages.len().min(tried_up_to + size);
            match self.handler.handle(&messages[tried.clone()]).await {
                Ok(done) => {
                    self.health.alive();
                    left_behind
                        .extend(done.deferred.into_iter().map(|number| tried.start + number));
                    parts.push(Part {
                        end: tried.end - left_behind.len(),
                        result: Ok(done.handled),
                    });
                    if !left_behind.is_empty() {
                        // None of the parts to come may overtake it.
                        left_behind.extend(tried.end..messages.len());
                        break;
                    }
                    (tried_up_to, size) = (tried.end, size * 2);
                    backoff = Backoff::default();
                }
                Err(error) => match H::fate(&error) {
                    Fate::Reject(class) => {
                        self.goes_on(batch)?;
                        if tried.len() == 1 {
                            let refusal = DeadLetterReason { class, text: error.to_string() };
                            parts.push(Part {
                                end: tried.end - left_behind.len(),
                                result: Err(refusal),
                            });
                            tried_up_to = tried.end;
                        } else {
                            tracing::debug!(messages = tried.len(), class, %error, "refused, tried in halves");
                            size = tried.len() / 2;
                        }
                        backoff = Backoff::default();
                    }
                    fate @ Fate::Retry(_) => {
                        self.failed(&error, fate, tried.len(), batch, &mut backoff).await?;
                        if backoff.failures().is_multiple_of(FAILURES_BEFORE_SPLIT) {
                            size = (tried.len() / 2).max(1);
                        }
                    }
                },
            }
        }
        Some((parts, left_behind))
    }

    /// Waits before the next attempt. `None` where there is to be none.
    pub(super) async fn failed(
        &self,
        error: &impl Display,
        fate: Fate,
        messages: usize,
        batch: &Batch<H::Decoded>,
        backoff: &mut Backoff,
    ) -> Option<()> {
        let delay = backoff.next_delay();
        if backoff.failures().is_power_of_two() {
            tracing::warn!(messages, failures = backoff.failures(), %error, ?delay, "batch failed");
        }
        if let Fate::Retry(dependency) = fate {
            self.metrics.retries.with_label_values(&[dependency]).inc();
            self.health.not_ready(error.to_string());
        }
        self.goes_on(batch)?;
        tokio::time::sleep(delay).await;
        Some(())
    }

    /// `None` where the batch is not worth another attempt: the process is to stop, or its partitions are gone.
    pub(super) fn goes_on(&self, batch: &Batch<H::Decoded>) -> Option<()> {
        self.health.alive();
        (!self.shutdown.is_requested() && batch.is_owned()).then_some(())
    }
}
