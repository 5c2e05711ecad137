use std::{
    fmt::Display,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::message::OwnedMessage;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use super::{
    DeadLetterReason, DeadLetters, Done, Fate, Handler, Lane,
    breaker::Breaker,
    lane::{Batch, DeferredMessages},
    pace::BatchPace,
    partitions::Partitions,
    publishing::Publishing,
};
use crate::{
    backoff::Backoff,
    config,
    lifecycle::Shutdown,
    telemetry::{Component, Metrics},
};

/// After so many failures in a row, the messages of the next attempt are halved.
const FAILURES_BEFORE_SPLIT: u32 = 3;

/// The pause if no message of a batch can be handled until its schema is looked up.
const PENDING_PAUSE: Duration = Duration::from_millis(50);

/// A step stops working on its batch: the process is to stop, or all partitions of the batch are
/// revoked. Messages whose offsets are not stored by then come again, here or to the next owner.
#[derive(Debug, Clone, Copy)]
pub(super) struct GivenUp;

/// A batch that is handled and not yet published.
pub(super) struct HandledBatch<H: Handler> {
    /// Without the deferred messages.
    pub(crate) batch: Batch<H::Decoded>,
    /// The parts cover the batch, in its order.
    pub(crate) parts: Vec<Part<H>>,
}

/// Consecutive messages of a batch that were handled together, or one message that was rejected.
pub(super) struct Part<H: Handler> {
    /// How many messages the part has, without the deferred ones.
    pub(crate) messages: usize,
    pub(crate) result: Result<H::Handled, DeadLetterReason>,
}

/// The result of handling a batch.
struct HandledParts<H: Handler> {
    parts: Vec<Part<H>>,
    /// Numbers in the batch of the messages that are deferred, ascending.
    deferred: Vec<usize>,
}

/// Consecutive messages of a batch, as they were decoded.
struct Span<'b, D> {
    /// The number of the first message in the batch.
    first: usize,
    decoded: &'b [D],
}

impl<D> Span<'_, D> {
    fn is_empty(&self) -> bool {
        self.decoded.is_empty()
    }

    fn len(&self) -> usize {
        self.decoded.len()
    }

    /// The numbers of its messages in the batch.
    fn numbers(&self) -> Range<usize> {
        self.first..self.first + self.len()
    }

    /// The number in the batch of its message `index`.
    fn number(&self, index: usize) -> usize {
        self.first + index
    }

    /// Splits off the first `count` messages, or all if there are fewer.
    fn split(&self, count: usize) -> (Self, Self) {
        let (front, back) = self.decoded.split_at(count.min(self.len()));
        (
            Self { first: self.first, decoded: front },
            Self { first: self.number(front.len()), decoded: back },
        )
    }
}

/// Delivers collected batches, each closed on demand: a batch grows until the handling step wants
/// it.
struct BatchSource<D> {
    demand: Arc<Semaphore>,
    closed: mpsc::Receiver<Batch<D>>,
    is_demanded: bool,
}

impl<D> BatchSource<D> {
    /// Demands a batch and waits for it. Returns `None` if the collecting step has ended.
    async fn next(&mut self) -> Option<Batch<D>> {
        self.demand();
        let next = self.closed.recv().await;
        self.is_demanded = false;
        next
    }

    /// Returns the batch that was demanded before, if it is closed. Does not wait.
    fn try_next(&mut self) -> Option<Batch<D>> {
        let next = self.closed.try_recv().ok();
        self.is_demanded &= next.is_none();
        next
    }

    /// Has the next batch closed, unless it is demanded already.
    fn demand(&mut self) {
        if !std::mem::replace(&mut self.is_demanded, true) {
            self.demand.add_permits(1);
        }
    }
}

impl Lane {
    /// Runs the lane's three steps until the process is to stop. Each step works on one batch:
    ///
    /// 1. collect and decode the next batch,
    /// 2. handle a batch in one transaction,
    /// 3. publish the outcomes of the batch before it, and dead-letter to `dead_letters`.
    ///
    /// The offsets of a batch are stored after its third step, in the order of the batches.
    ///
    /// A batch that still fails when its partitions are revoked is left to their next owner. If a
    /// batch still fails at the stop, its step ends there, since the offsets of a later batch would
    /// pass the failed one.
    ///
    /// `health` has one component for handling and one for publishing.
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
        let pace = Arc::new(BatchPace::default());
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
            dead_letters: dead_letters.of_group(&self.group_id),
            offsets: self.offsets.clone(),
            breaker: Breaker::default(),
            halted_lanes: metrics.lanes_stopped.with_label_values(&[&self.topic]),
        };
        let mut steps = JoinSet::new();
        let source =
            BatchSource { demand: Arc::clone(&demand), closed: to_handle, is_demanded: false };
        let handle = handling.handle(
            source,
            Arc::clone(&self.partitions),
            batches.max,
            Arc::clone(&pace),
            done,
        );
        steps.spawn(handle);
        steps.spawn(publishing.run(to_publish));
        steps.spawn(async move {
            let decode = |message: &OwnedMessage| handler.decode(message);
            loop {
                let paced = config::BatchConfig { linger: pace.linger(batches.linger), ..batches };
                let Some(batch) = self.next_batch(paced, decode, demanded(&demand)).await else {
                    break;
                };
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

/// Returns once a batch is demanded.
async fn demanded(demand: &Semaphore) {
    if let Ok(permit) = demand.acquire().await {
        permit.forget();
    }
}

/// What the handling and the publishing step of a lane have in common.
pub(super) struct Step<H> {
    pub(crate) handler: Arc<H>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Component,
    pub(crate) shutdown: Shutdown,
}

impl<H: Handler> Step<H> {
    /// Handles batches, each together with the messages that were deferred before. While
    /// `max_messages` or more are deferred, it demands no further batch.
    async fn handle(
        self,
        mut batches: BatchSource<H::Decoded>,
        partitions: Arc<Partitions>,
        max_messages: usize,
        pace: Arc<BatchPace>,
        handled: mpsc::Sender<HandledBatch<H>>,
    ) {
        self.health.ready();
        let mut deferred = DeferredMessages::default();
        while !self.shutdown.is_requested() {
            let next = if deferred.is_empty() {
                let next = self.health.waiting(batches.next()).await;
                if next.is_none() {
                    return;
                }
                next
            } else {
                let next = batches.try_next();
                if deferred.len() + next.as_ref().map_or(0, Batch::len) < max_messages {
                    batches.demand();
                }
                next
            };
            let mut batch = Batch::resume(std::mem::take(&mut deferred), &partitions, next);
            batch.decode_again(
                |decoded| self.handler.is_pending(decoded),
                |message| self.handler.decode(message),
            );
            let begun = Instant::now();
            let Ok(HandledParts { parts, deferred: numbers }) = self.handle_all(&batch).await
            else {
                continue;
            };
            pace.took(begun.elapsed());
            self.health.ready();
            deferred = batch.defer(&numbers);
            if batch.is_empty() && deferred.is_pending(|decoded| self.handler.is_pending(decoded)) {
                // A stop ends the sleep; the loop then ends.
                let _stopped = self.shutdown.sleep(PENDING_PAUSE).await;
            }
            if !batch.is_empty()
                && self.health.waiting(handled.send(HandledBatch { batch, parts })).await.is_err()
            {
                return;
            }
        }
    }

    /// Handles a batch, in parts if that is necessary.
    ///
    /// - A part that fails for want of a dependency is repeated with growing delays. After every
    ///   third failure it is halved, since it may be too large for the database in bytes or in
    ///   time.
    /// - A part that is rejected is halved at once, until the rejected message is alone.
    /// - A part that succeeds doubles the size of the next one.
    /// - The first part of which the handler defers messages is the last: all messages behind it
    ///   are deferred too, since they may not overtake.
    /// - Messages whose schema is being looked up are deferred. Others may overtake them.
    ///
    /// Fails with [`GivenUp`] if the process is to stop or the partitions are revoked while a part
    /// fails.
    async fn handle_all(&self, batch: &Batch<H::Decoded>) -> Result<HandledParts<H>, GivenUp> {
        let mut rest = Span { first: 0, decoded: batch.decoded() };
        let mut attempt_len = rest.len();
        let (mut parts, mut pending) = (Vec::with_capacity(1), Vec::new());
        let mut backoff = Backoff::default();
        while !rest.is_empty() {
            let (attempt, behind) = rest.split(attempt_len);
            match self.handler.handle(attempt.decoded).await {
                Ok(Done { handled, deferred }) => {
                    self.health.alive();
                    let waiting = self.pending(&attempt);
                    let messages = attempt.len() - deferred.len() - waiting.len();
                    parts.push(Part { messages, result: Ok(handled) });
                    pending.extend(waiting);
                    if !deferred.is_empty() {
                        let deferred = deferred.into_iter().map(|index| attempt.number(index));
                        let mut deferred: Vec<_> =
                            deferred.chain(behind.numbers()).chain(pending).collect();
                        deferred.sort_unstable();
                        return Ok(HandledParts { parts, deferred });
                    }
                    rest = behind;
                    attempt_len *= 2;
                    backoff = Backoff::default();
                }
                Err(error) => match H::fate(&error) {
                    Fate::Reject(class) => {
                        self.check_continues(batch)?;
                        if attempt.len() == 1 {
                            let reason = DeadLetterReason { class, text: error.to_string() };
                            parts.push(Part { messages: 1, result: Err(reason) });
                            rest = behind;
                        } else {
                            let messages = attempt.len();
                            tracing::debug!(messages, class, %error, "batch rejected, halving it");
                            attempt_len = messages / 2;
                        }
                        backoff = Backoff::default();
                    }
                    fate @ Fate::Retry(_) => {
                        self.wait_to_retry(&error, fate, attempt.len(), batch, &mut backoff)
                            .await?;
                        if backoff.failures().is_multiple_of(FAILURES_BEFORE_SPLIT) {
                            attempt_len = (attempt.len() / 2).max(1);
                        }
                    }
                },
            }
        }
        Ok(HandledParts { parts, deferred: pending })
    }

    /// The numbers in the batch of the messages that wait for their schema, ascending.
    fn pending(&self, span: &Span<'_, H::Decoded>) -> Vec<usize> {
        let decoded = span.numbers().zip(span.decoded);
        let pending = decoded.filter(|(_, decoded)| self.handler.is_pending(decoded));
        pending.map(|(number, _)| number).collect()
    }

    /// Reports a failure and waits before the next attempt. Logs the first, second, fourth, eighth
    /// … failure in a row.
    ///
    /// Fails with [`GivenUp`] where there is to be no further attempt.
    pub(super) async fn wait_to_retry(
        &self,
        error: &impl Display,
        fate: Fate,
        messages: usize,
        batch: &Batch<H::Decoded>,
        backoff: &mut Backoff,
    ) -> Result<(), GivenUp> {
        let delay = backoff.next_delay();
        if backoff.failures().is_power_of_two() {
            tracing::warn!(messages, failures = backoff.failures(), %error, ?delay, "batch failed");
        }
        if let Fate::Retry(dependency) = fate {
            self.metrics.retries.with_label_values(&[dependency]).inc();
            self.health.not_ready(error.to_string());
        }
        self.check_continues(batch)?;
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Fails with [`GivenUp`] if the process is to stop, or all partitions of the batch are
    /// revoked.
    pub(super) fn check_continues(&self, batch: &Batch<H::Decoded>) -> Result<(), GivenUp> {
        self.health.alive();
        if self.shutdown.is_requested() || !batch.is_owned() { Err(GivenUp) } else { Ok(()) }
    }
}
