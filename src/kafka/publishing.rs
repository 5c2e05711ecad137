use std::{collections::HashMap, ops::Range, time::Instant};

use prometheus::IntGauge;
use rdkafka::{Message as _, message::OwnedMessage};
use tokio::sync::mpsc;

use super::{
    Blame, DeadLetterReason, DeadLetters, Done, Fate, Handler, Unpublished,
    breaker::{Breaker, MOST_SET_ASIDE, WINDOW},
    lane::{Batch, Offsets},
    partitions::Partitions,
    pipeline::{HandledBatch, Part, Step},
};
use crate::backoff::Backoff;

/// The last of a lane's steps: tells what came of its messages, sets aside those that are refused, and stores the offsets.
pub(super) struct Publishing<H> {
    pub(crate) step: Step<H>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) offsets: Offsets,
    pub(crate) breaker: Breaker,
    /// How many lanes of the topic stand still.
    pub(crate) stopped: IntGauge,
}

impl<H: Handler> Publishing<H> {
    pub(super) async fn run(mut self, mut batches: mpsc::Receiver<HandledBatch<H>>) {
        self.step.health.ready();
        while let Some(HandledBatch { batch, parts }) =
            self.step.health.waiting(batches.recv()).await
        {
            if self.publish(&batch, &parts).await.is_some() {
                self.step.health.ready();
                self.offsets.store(&batch, batch.len());
            } else if self.step.shutdown.is_requested() {
                return;
            }
        }
    }

    async fn publish(&mut self, batch: &Batch<H::Decoded>, parts: &[Part<H>]) -> Option<()> {
        let mut done = 0;
        for Part { end, result } in parts {
            let unpublished = match result {
                Ok(handled) => self.report(batch, handled).await?,
                Err(_) => Unpublished::new(),
            };
            self.set_aside(batch, done..*end, result, &unpublished).await?;
            done = *end;
        }
        Some(())
    }

    async fn report(&self, batch: &Batch<H::Decoded>, handled: &H::Handled) -> Option<Unpublished> {
        let mut backoff = Backoff::default();
        while let Err(error) = self.step.handler.publish(handled).await {
            if let Some(unpublished) = H::unpublished(&error) {
                return Some(unpublished.clone());
            }
            self.step.failed(&error, H::fate(&error), batch.len(), batch, &mut backoff).await?;
        }
        Some(Unpublished::new())
    }

    /// Dead-letters those messages of a part that are refused, up to the one at which the breaker
    /// opens; that one, and all behind it, wait. The throttle gets the letters of bad writers.
    async fn set_aside(
        &mut self,
        batch: &Batch<H::Decoded>,
        part: Range<usize>,
        result: &Result<H::Handled, DeadLetterReason>,
        unpublished: &Unpublished,
    ) -> Option<()> {
        let (mut letters, mut writers) = (Vec::new(), HashMap::new());
        for index in part {
            let (message, decoded) = (batch.message(index), &batch.decoded()[index]);
            let refusal = match result {
                Ok(handled) => {
                    let refusal = self.step.handler.dead_letter_reason(decoded, handled);
                    refusal.or_else(|| is_among(unpublished, message).then(too_large))
                }
                Err(refusal) => Some(refusal.clone()),
            };
            let partition = message.partition();
            let mut letter =
                refusal.as_ref().map(|refusal| self.step.handler.blame(decoded, refusal));
            if let (Some(refusal), Some(blame)) = (refusal, letter) {
                if self.breaker.is_closed(partition, blame) {
                    if blame == Blame::Writer {
                        *writers.entry(partition).or_insert(0) += 1;
                    }
                    letters.push((message, refusal));
                } else {
                    self.deliver(batch, std::mem::take(&mut letters)).await?;
                    self.offsets.store(batch, index);
                    self.stand_still(batch, index, &refusal, blame).await?;
                    letter = None;
                }
            }
            self.breaker.count(partition, self.step.handler.source(decoded), letter);
        }
        self.deliver(batch, letters).await?;
        for (partition, letters) in writers {
            self.offsets.partitions.add_letters(
                partition,
                batch.assignment(partition),
                letters,
                Instant::now(),
            );
        }
        Some(())
    }

    async fn deliver(
        &self,
        batch: &Batch<H::Decoded>,
        letters: Vec<(&OwnedMessage, DeadLetterReason)>,
    ) -> Option<()> {
        if letters.is_empty() {
            return Some(());
        }
        let mut backoff = Backoff::default();
        while let Err(error) = self.dead_letters.set_aside(&letters).await {
            self.step
                .failed(&error, Fate::Retry("kafka"), letters.len(), batch, &mut backoff)
                .await?;
        }
        Some(())
    }

    /// The breaker is open: waits until the message at which it opened is accepted after all, or its partition is gone. `None` where
    /// the batch is given up.
    async fn stand_still(
        &self,
        batch: &Batch<H::Decoded>,
        index: usize,
        refusal: &DeadLetterReason,
        blame: Blame<'_>,
    ) -> Option<()> {
        if !batch.owns(index) || self.is_accepted(batch, index).await {
            return Some(());
        }
        let DeadLetterReason { class, text } = refusal;
        let of = match blame {
            Blame::Source(source) => format!(" of source {source:?}"),
            Blame::Partition => format!(" of partition {}", batch.message(index).partition()),
            Blame::Lane | Blame::Writer => String::new(),
        };
        let why = format!(
            "stopped at the {MOST_SET_ASIDE} dead letters of {WINDOW} messages{of}; the next: {class}: {text}"
        );
        tracing::error!(class, error = text, "too many dead letters, the lane stands still");
        self.step.health.not_ready(&*why);
        let standing =
            StandingStill::new(&self.offsets.partitions, self.offsets.lane, &self.stopped);
        let mut backoff = Backoff::default();
        loop {
            self.step.health.not_ready(&*why);
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = self.step.shutdown.requested() => {}
            }
            self.step.goes_on(batch)?;
            if !batch.owns(index) || self.is_accepted(batch, index).await {
                break;
            }
        }
        drop(standing);
        tracing::info!("the lane goes on");
        self.step.health.ready();
        Some(())
    }

    /// Handles a message that was refused once more, and publishes what came of it if it is refused no longer.
    async fn is_accepted(&self, batch: &Batch<H::Decoded>, index: usize) -> bool {
        match self.step.handler.handle(&batch.decoded()[index..=index]).await {
            Ok(Done { handled, deferred })
                if deferred.is_empty()
                    && self
                        .step
                        .handler
                        .dead_letter_reason(&batch.decoded()[index], &handled)
                        .is_none() =>
            {
                let unpublished = self.report(batch, &handled).await;
                unpublished.is_some_and(|unpublished| !is_among(&unpublished, batch.message(index)))
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!(%error, "refused again");
                false
            }
        }
    }
}

fn is_among(unpublished: &Unpublished, message: &OwnedMessage) -> bool {
    !unpublished.is_empty() && message.key().is_some_and(|key| unpublished.contains(key))
}

fn too_large() -> DeadLetterReason {
    let text = "its outcome is too large for the topic: raise the topic's max.message.bytes";
    DeadLetterReason { class: "too_large", text: text.to_owned() }
}

/// Shows that a lane stands still, until it is dropped. Nobody waits for its batches meanwhile.
struct StandingStill<'a> {
    partitions: &'a Partitions,
    lane: usize,
    stopped: &'a IntGauge,
}

impl<'a> StandingStill<'a> {
    fn new(partitions: &'a Partitions, lane: usize, stopped: &'a IntGauge) -> Self {
        partitions.set_standing_still(lane, true);
        stopped.inc();
        Self { partitions, lane, stopped }
    }
}

impl Drop for StandingStill<'_> {
    fn drop(&mut self) {
        self.partitions.set_standing_still(self.lane, false);
        self.stopped.dec();
    }
}
