use std::{collections::HashMap, time::Instant};

use prometheus::IntGauge;
use rdkafka::{Message as _, message::OwnedMessage};
use tokio::sync::mpsc;

use super::{
    Blame, DeadLetterReason, DeadLetters, Done, Fate, Handler, Unpublished,
    breaker::{Breaker, MAX_DEAD_LETTERS, WINDOW_MESSAGES},
    dead_letters::DeadLetter,
    lane::{Batch, Offsets},
    partitions::Partitions,
    pipeline::{GivenUp, HandledBatch, Part, Step},
};
use crate::{backoff::Backoff, telemetry::order_log};

/// The last of a lane's steps: publishes the outcomes of each batch, dead-letters its bad messages,
/// and stores its offsets.
pub(super) struct Publishing<H> {
    pub(crate) step: Step<H>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) offsets: Offsets,
    pub(crate) breaker: Breaker,
    /// How many lanes of the topic are halted.
    pub(crate) halted_lanes: IntGauge,
}

impl<H: Handler> Publishing<H> {
    /// Publishes batches until the handling step ends. A batch that is given up since its
    /// partitions are revoked is passed over; one that is given up at the stop ends the step.
    pub(super) async fn run(mut self, mut batches: mpsc::Receiver<HandledBatch<H>>) {
        self.step.health.ready();
        while let Some(HandledBatch { batch, parts }) =
            self.step.health.waiting(batches.recv()).await
        {
            if self.publish(&batch, &parts).await.is_ok() {
                self.step.health.ready();
                self.offsets.store(&batch, batch.len());
            } else if self.step.shutdown.is_requested() {
                return;
            }
        }
    }

    async fn publish(
        &mut self,
        batch: &Batch<H::Decoded>,
        parts: &[Part<H>],
    ) -> Result<(), GivenUp> {
        let mut indexes = 0..batch.len();
        for Part { messages, result } in parts {
            let unpublished = match result {
                Ok(handled) => self.publish_outcomes(batch, handled).await?,
                Err(_) => Unpublished::new(),
            };
            let part = indexes.by_ref().take(*messages);
            self.dead_letter(batch, part, result, &unpublished).await?;
        }
        Ok(())
    }

    /// Publishes the outcomes of a part, and repeats that as long as it takes. Returns the messages
    /// whose outcomes are too large.
    async fn publish_outcomes(
        &self,
        batch: &Batch<H::Decoded>,
        handled: &H::Handled,
    ) -> Result<Unpublished, GivenUp> {
        let mut backoff = Backoff::default();
        while let Err(error) = self.step.handler.publish(handled).await {
            if let Some(unpublished) = H::unpublished(&error) {
                return Ok(unpublished.clone());
            }
            let fate = H::fate(&error);
            self.step.wait_to_retry(&error, fate, batch.len(), batch, &mut backoff).await?;
        }
        Ok(Unpublished::new())
    }

    /// Dead-letters the bad messages of a part. At the message at which the breaker opens it halts:
    /// that message and all messages behind it wait. The throttle counts the letters that are
    /// blamed on their writers.
    async fn dead_letter(
        &mut self,
        batch: &Batch<H::Decoded>,
        part: impl Iterator<Item = usize>,
        result: &Result<H::Handled, DeadLetterReason>,
        unpublished: &Unpublished,
    ) -> Result<(), GivenUp> {
        let (mut letters, mut writers_letters) = (Vec::new(), HashMap::new());
        for index in part {
            let (message, decoded) = (batch.message(index), &batch.decoded()[index]);
            let (partition, source) = (message.partition(), self.step.handler.source(decoded));
            let Some(reason) = self.reason(message, decoded, result, unpublished) else {
                self.breaker.count(partition, source, None);
                continue;
            };
            let blame = self.step.handler.blame(decoded, &reason);
            if !self.breaker.is_closed(partition, blame) {
                self.publish_letters(batch, std::mem::take(&mut letters)).await?;
                self.offsets.store(batch, index);
                self.halt(batch, index, &reason, blame).await?;
                // The message is no dead letter: it was accepted, or belongs to the next owner.
                self.breaker.count(partition, source, None);
                continue;
            }
            if blame == Blame::Writer {
                *writers_letters.entry(partition).or_insert(0) += 1;
            }
            order_log::dead_lettered(message, reason.class);
            letters.push(DeadLetter { message, reason });
            self.breaker.count(partition, source, Some(blame));
        }
        self.publish_letters(batch, letters).await?;
        for (partition, letters) in writers_letters {
            let assignment = batch.assignment(partition);
            self.offsets.partitions.add_letters(partition, assignment, letters, Instant::now());
        }
        Ok(())
    }

    /// Why a message is to be dead-lettered, or `None` for a good message.
    fn reason(
        &self,
        message: &OwnedMessage,
        decoded: &H::Decoded,
        result: &Result<H::Handled, DeadLetterReason>,
        unpublished: &Unpublished,
    ) -> Option<DeadLetterReason> {
        match result {
            Ok(handled) => {
                let reason = self.step.handler.dead_letter_reason(decoded, handled);
                reason.or_else(|| is_among(unpublished, message).then(too_large))
            }
            Err(reason) => Some(reason.clone()),
        }
    }

    /// Publishes dead letters, and repeats that as long as it takes.
    async fn publish_letters(
        &self,
        batch: &Batch<H::Decoded>,
        letters: Vec<DeadLetter<'_>>,
    ) -> Result<(), GivenUp> {
        if letters.is_empty() {
            return Ok(());
        }
        let mut backoff = Backoff::default();
        while let Err(error) = self.dead_letters.publish(&letters).await {
            let fate = Fate::Retry("kafka");
            self.step.wait_to_retry(&error, fate, letters.len(), batch, &mut backoff).await?;
        }
        Ok(())
    }

    /// Halts the lane, as the breaker is open. Tries the message again and again, until it is
    /// accepted or its partition is revoked.
    async fn halt(
        &self,
        batch: &Batch<H::Decoded>,
        index: usize,
        reason: &DeadLetterReason,
        blame: Blame<'_>,
    ) -> Result<(), GivenUp> {
        if !batch.owns(index) || self.is_accepted(batch, index).await {
            return Ok(());
        }
        let DeadLetterReason { class, text } = reason;
        let of = match blame {
            Blame::Source(source) => format!(" of source {source:?}"),
            Blame::Partition => format!(" of partition {}", batch.message(index).partition()),
            Blame::Lane | Blame::Writer => String::new(),
        };
        let why = format!(
            "halted: {MAX_DEAD_LETTERS} dead letters among {WINDOW_MESSAGES} messages{of}; \
             the next would be {class}: {text}"
        );
        tracing::error!(class, error = text, "too many dead letters, the lane is halted");
        self.step.health.not_ready(&*why);
        let halted =
            HaltedLane::new(&self.offsets.partitions, self.offsets.lane, &self.halted_lanes);
        let mut backoff = Backoff::default();
        loop {
            self.step.health.not_ready(&*why);
            // A stop ends the sleep; the check after it then fails.
            let _stopped = self.step.shutdown.sleep(backoff.next_delay()).await;
            self.step.check_continues(batch)?;
            if !batch.owns(index) || self.is_accepted(batch, index).await {
                break;
            }
        }
        drop(halted);
        tracing::info!("the lane continues");
        self.step.health.ready();
        Ok(())
    }

    /// Handles a bad message once more. If it is accepted now, publishes its outcome and returns
    /// `true`.
    async fn is_accepted(&self, batch: &Batch<H::Decoded>, index: usize) -> bool {
        // Its schema may have been registered meanwhile.
        let decoded = &self.step.handler.decode(batch.message(index));
        match self.step.handler.handle(std::slice::from_ref(decoded)).await {
            Ok(Done { handled, deferred })
                if deferred.is_empty()
                    && self.step.handler.dead_letter_reason(decoded, &handled).is_none() =>
            {
                let unpublished = self.publish_outcomes(batch, &handled).await;
                unpublished.is_ok_and(|unpublished| !is_among(&unpublished, batch.message(index)))
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!(%error, "message rejected again");
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

/// Shows that a lane is halted, until it is dropped. A revocation does not wait for the batches of
/// a halted lane.
struct HaltedLane<'a> {
    partitions: &'a Partitions,
    lane: usize,
    halted_lanes: &'a IntGauge,
}

impl<'a> HaltedLane<'a> {
    fn new(partitions: &'a Partitions, lane: usize, halted_lanes: &'a IntGauge) -> Self {
        partitions.set_halted(lane, true);
        halted_lanes.inc();
        Self { partitions, lane, halted_lanes }
    }
}

impl Drop for HaltedLane<'_> {
    fn drop(&mut self) {
        self.partitions.set_halted(self.lane, false);
        self.halted_lanes.dec();
    }
}
