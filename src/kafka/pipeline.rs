use std::sync::Arc;

use rdkafka::message::OwnedMessage;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use super::{
    Lane,
    lane::{Batch, Offsets},
};
use crate::{
    backoff::Backoff,
    config::Batches,
    lifecycle::Shutdown,
    telemetry::{Component, Metrics},
};

/// How often a batch, or a part of one, is repeated as it is before it is halved.
const FAILURES_BEFORE_SPLIT: u32 = 3;

/// What a lane's batches are for, in three steps. Those that fail are repeated, which must do no harm.
pub trait Handler: Send + Sync + 'static {
    /// A message as it was understood, or why it was not.
    type Decoded: Send + Sync;
    /// What came of a batch, to be published.
    type Handled: Send + Sync;
    type Error: std::error::Error + Send + Sync;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded;

    /// Does the messages of a batch, or of a part of one, in one transaction.
    fn handle(&self, messages: &[Self::Decoded]) -> impl Future<Output = Result<Self::Handled, Self::Error>> + Send;

    /// Tells others what came of these messages. Their offsets are stored when all of their batch is published.
    fn publish(
        &self,
        messages: &[&OwnedMessage],
        decoded: &[Self::Decoded],
        handled: &Self::Handled,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// What failed, as a bounded label. `None` where nothing did and a rival was merely first.
    fn failed_dependency(error: &Self::Error) -> Option<&'static str>;
}

/// A batch that is handled, part by part, and not yet published.
struct HandledBatch<H: Handler> {
    batch: Batch<H::Decoded>,
    /// The end of each part, and what came of it.
    parts: Vec<(usize, H::Handled)>,
}

impl Lane {
    /// Has batches handled in turn until the process is to stop. The three steps work on a batch each: while one is in its transaction, the
    /// next is collected and decoded, and the last is published. Only then are its offsets stored, in the order of the batches.
    ///
    /// A batch that still fails when its partitions have gone is left to their next owner. One that still fails at the stop ends its step:
    /// the offsets of a later batch would pass those of this one.
    pub async fn run<H: Handler>(mut self, handler: H, batches: Batches, metrics: &Metrics, health: [Component; 2]) {
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
        let offsets = self.offsets.clone();
        let mut steps = JoinSet::new();
        steps.spawn(handling.handle(Arc::clone(&demand), to_handle, done));
        steps.spawn(publishing.publish(to_publish, offsets));
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

/// One of a lane's steps.
struct Step<H> {
    handler: Arc<H>,
    metrics: Metrics,
    health: Component,
    shutdown: Shutdown,
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
                if handled.send(HandledBatch { batch, parts }).await.is_err() {
                    return;
                }
            } else if self.shutdown.is_requested() {
                return;
            }
        }
    }

    /// Repeats what fails, with growing delays and in ever smaller parts: a batch may be too large for the database, in bytes or in
    /// time, and a part that is refused for its data should not keep others waiting. `None` where it is given up.
    async fn handle_all(&self, batch: &Batch<H::Decoded>) -> Option<Vec<(usize, H::Handled)>> {
        let messages = batch.decoded();
        let (mut done, mut size) = (0, messages.len());
        let mut parts = Vec::with_capacity(1);
        let mut backoff = Backoff::default();
        while done < messages.len() {
            let end = messages.len().min(done + size);
            match self.handler.handle(&messages[done..end]).await {
                Ok(handled) => {
                    parts.push((end, handled));
                    (done, size) = (end, size * 2);
                    backoff = Backoff::default();
                }
                Err(error) => {
                    self.failed(&error, end - done, batch, &mut backoff).await?;
                    if backoff.failures().is_multiple_of(FAILURES_BEFORE_SPLIT) {
                        size = (size / 2).max(1);
                    }
                }
            }
        }
        Some(parts)
    }

    async fn publish(self, mut batches: mpsc::Receiver<HandledBatch<H>>, offsets: Offsets) {
        self.health.ready();
        while let Some(HandledBatch { batch, parts }) = self.health.waiting(batches.recv()).await {
            if self.publish_all(&batch, &parts).await.is_some() {
                self.health.ready();
                offsets.store(&batch);
            } else if self.shutdown.is_requested() {
                return;
            }
        }
    }

    async fn publish_all(&self, batch: &Batch<H::Decoded>, parts: &[(usize, H::Handled)]) -> Option<()> {
        let messages: Vec<_> = batch.messages().collect();
        let mut done = 0;
        for (end, handled) in parts {
            let mut backoff = Backoff::default();
            let (messages, decoded) = (&messages[done..*end], &batch.decoded()[done..*end]);
            while let Err(error) = self.handler.publish(messages, decoded, handled).await {
                self.failed(&error, messages.len(), batch, &mut backoff).await?;
            }
            done = *end;
        }
        Some(())
    }

    /// Waits before the next attempt. `None` where there is to be none.
    async fn failed(
        &self,
        error: &H::Error,
        messages: usize,
        batch: &Batch<H::Decoded>,
        backoff: &mut Backoff,
    ) -> Option<()> {
        let delay = backoff.next_delay();
        tracing::warn!(messages, failures = backoff.failures(), %error, ?delay, "batch failed");
        if let Some(dependency) = H::failed_dependency(error) {
            self.metrics.retries.with_label_values(&[dependency]).inc();
            self.health.not_ready(error.to_string());
        }
        if self.shutdown.is_requested() || !batch.is_owned() {
            return None;
        }
        tokio::time::sleep(delay).await;
        Some(())
    }
}
