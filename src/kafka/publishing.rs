use std::ops::Range;

use prometheus::IntGauge;
use rdkafka::message::OwnedMessage;
use tokio::sync::mpsc;

use super::{
    DeadLetters, Done, Fate, Handler, Refusal,
    breaker::{Breaker, MOST_SET_ASIDE, WINDOW},
    lane::{Batch, Offsets},
    partitions::Partitions,
    pipeline::{HandledBatch, Part, Step},
};
use crate::backoff::Backoff;

/// The last of a lane's steps: tells what came of its messages, sets aside those that are refused, and stores the offsets.
pub(super) struct Publishing<H> {
    pub step: Step<H>,
    pub dead_letters: DeadLetters,
    pub offsets: Offsets,
    pub breaker: Breaker,
    /// How many lanes of the topic stand still.
    pub stopped: IntGauge,
}

impl<H: Handler> Publishing<H> {
    pub async fn run(mut self, mut batches: mpsc::Receiver<HandledBatch<H>>) {
        self.step.health.ready();
        while let Some(HandledBatch { batch, parts }) = self.step.health.waiting(batches.recv()).await {
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
            if let Ok(handled) = result {
                self.report(batch, handled).await?;
            }
            self.set_aside(batch, done..*end, result).await?;
            done = *end;
        }
        Some(())
    }

    async fn report(&self, batch: &Batch<H::Decoded>, handled: &H::Handled) -> Option<()> {
        let mut backoff = Backoff::default();
        while let Err(error) = self.step.handler.publish(handled).await {
            self.step.failed(&error, H::fate(&error), batch.len(), batch, &mut backoff).await?;
        }
        Some(())
    }

    /// Sets aside those messages of a part that are refused, up to the one at which the breaker opens; that one, and all behind it, wait.
    async fn set_aside(
        &mut self,
        batch: &Batch<H::Decoded>,
        part: Range<usize>,
        result: &Result<H::Handled, Refusal>,
    ) -> Option<()> {
        let mut letters = Vec::new();
        for index in part {
            let refusal = match result {
                Ok(handled) => self.step.handler.refusal(&batch.decoded()[index], handled),
                Err(refusal) => Some(refusal.clone()),
            };
            let is_set_aside = match refusal {
                None => false,
                Some(refusal) if self.breaker.is_closed() => {
                    letters.push((batch.message(index), refusal));
                    true
                }
                Some(refusal) => {
                    self.deliver(batch, std::mem::take(&mut letters)).await?;
                    self.offsets.store(batch, index);
                    self.stand_still(batch, index, &refusal).await?;
                    false
                }
            };
            self.breaker.count(is_set_aside);
        }
        self.deliver(batch, letters).await
    }

    async fn deliver(&self, batch: &Batch<H::Decoded>, letters: Vec<(&OwnedMessage, Refusal)>) -> Option<()> {
        let mut backoff = Backoff::default();
        while let Err(error) = self.dead_letters.set_aside(&letters).await {
            self.step.failed(&error, Fate::Unavailable("kafka"), letters.len(), batch, &mut backoff).await?;
        }
        Some(())
    }

    /// The breaker is open: waits until the message at which it opened is accepted after all, or its partition is gone. `None` where
    /// the batch is given up.
    async fn stand_still(&self, batch: &Batch<H::Decoded>, index: usize, refusal: &Refusal) -> Option<()> {
        if !batch.owns(index) || self.is_accepted(batch, index).await {
            return Some(());
        }
        let Refusal { class, text } = refusal;
        let why =
            format!("stopped at the {MOST_SET_ASIDE} dead letters of {WINDOW} messages; the next: {class}: {text}");
        tracing::error!(class, error = text, "too many dead letters, the lane stands still");
        self.step.health.not_ready(&*why);
        let standing = StandingStill::new(&self.offsets.partitions, self.offsets.lane, &self.stopped);
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
            Ok(Done { handled, left_behind })
                if left_behind.is_empty() && self.step.handler.refusal(&batch.decoded()[index], &handled).is_none() =>
            {
                self.report(batch, &handled).await.is_some()
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!(%error, "refused again");
                false
            }
        }
    }
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
