use std::{collections::HashMap, sync::Arc};

use rdkafka::{
    Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::OwnedMessage,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc::UnboundedReceiver},
    time::{Instant, timeout_at},
};

use super::{consumer::Context, partitions::Partitions};
use crate::{
    backoff::Backoff,
    config::Batches,
    lifecycle::Shutdown,
    telemetry::{Component, Metrics},
};

/// How often a batch, or a part of one, is repeated as it is before it is halved.
const FAILURES_BEFORE_SPLIT: u32 = 3;

/// What a lane's batches are for.
pub trait Handler: Send + Sync {
    type Error: std::error::Error + Send;

    /// Does one batch. Fails only where it may help to repeat the whole of it, which must do no harm.
    fn handle(&self, messages: &[&OwnedMessage]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// What failed, as a bounded label. `None` where nothing did and a rival was merely first.
    fn failed_dependency(error: &Self::Error) -> Option<&'static str>;
}

/// A message on its way through a lane; it gives its share of the lane's memory back when it is dropped.
#[derive(Debug)]
pub struct Received {
    pub message: OwnedMessage,
    pub(super) assignment: u64,
    pub(super) _memory: OwnedSemaphorePermit,
}

/// The receiving end of some of a consumer's partitions: one task takes its batches in turn.
pub struct Lane {
    pub(super) messages: UnboundedReceiver<Received>,
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) partitions: Arc<Partitions>,
    pub(super) shutdown: Shutdown,
}

/// Messages that are handled together, in the order of their offsets. Until it is dropped, its partitions are not given up.
pub struct Batch {
    messages: Vec<Received>,
    taken: HashMap<i32, u64>,
    partitions: Arc<Partitions>,
}

impl Lane {
    /// Has batches handled in turn until the process is to stop; the offsets of a batch are stored when all of it is done. One that
    /// still fails at the stop, or when its partitions have gone, is left to their next owner.
    pub async fn run<H: Handler>(mut self, handler: H, batches: Batches, metrics: &Metrics, health: &Component) {
        while let Some(batch) = health.waiting(self.next_batch(batches)).await {
            if self.handle_all(&handler, &batch, metrics, health).await {
                health.ready();
                self.done(&batch);
            }
        }
    }

    /// Repeats what fails, with growing delays and in ever smaller parts: a batch may be too large for the database, in bytes or in
    /// time, and a part that is refused for its data should not keep others waiting. Answers whether all of it was done.
    async fn handle_all<H: Handler>(&self, handler: &H, batch: &Batch, metrics: &Metrics, health: &Component) -> bool {
        let messages: Vec<_> = batch.messages().collect();
        let (mut done, mut part) = (0, messages.len());
        let mut backoff = Backoff::default();
        while done < messages.len() {
            let end = messages.len().min(done + part);
            let Err(error) = handler.handle(&messages[done..end]).await else {
                (done, part) = (end, part * 2);
                backoff = Backoff::default();
                continue;
            };
            let delay = backoff.next_delay();
            tracing::warn!(messages = end - done, failures = backoff.failures(), %error, ?delay, "batch failed");
            if let Some(dependency) = H::failed_dependency(&error) {
                metrics.retries.with_label_values(&[dependency]).inc();
                health.not_ready(error.to_string());
            }
            if self.shutdown.is_requested() || !self.owns_any_of(batch) {
                return false;
            }
            tokio::time::sleep(delay).await;
            if backoff.failures().is_multiple_of(FAILURES_BEFORE_SPLIT) {
                part = (part / 2).max(1);
            }
        }
        true
    }

    fn owns_any_of(&self, batch: &Batch) -> bool {
        batch.taken.iter().any(|(partition, assignment)| self.partitions.is_owned(*partition, *assignment))
    }

    /// Waits for messages; closes the batch when it is full or old enough. `None` once the
    /// process is to stop; what still waits then comes again.
    pub async fn next_batch(&mut self, Batches { max, linger }: Batches) -> Option<Batch> {
        loop {
            let mut messages = Vec::with_capacity(max.min(256));
            let received = tokio::select! {
                biased;
                () = self.shutdown.requested() => 0,
                received = self.messages.recv_many(&mut messages, max) => received,
            };
            if received == 0 {
                return None;
            }
            let deadline = Instant::now() + linger;
            while messages.len() < max {
                let room = max - messages.len();
                match timeout_at(deadline, self.messages.recv_many(&mut messages, room)).await {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
            let batch = Batch::take(messages, &self.partitions);
            if !batch.messages.is_empty() {
                return Some(batch);
            }
        }
    }

    /// All of the batch is done: its offsets are stored, to be committed soon. Those of partitions that were taken away are
    /// dropped; their next owner repeats what was done.
    pub fn done(&self, batch: &Batch) {
        let mut offsets = TopicPartitionList::new();
        for (topic, partition, offset) in batch.last_offsets() {
            let is_owned = self.partitions.is_owned(partition, batch.taken[&partition]);
            let added = is_owned.then(|| offsets.add_partition_offset(topic, partition, Offset::Offset(offset + 1)));
            if let Some(Err(error)) = added {
                tracing::error!(topic, partition, offset, %error, "offset not stored");
            }
        }
        if offsets.count() == 0 {
            return;
        }
        if let Err(error) = self.consumer.store_offsets(&offsets) {
            tracing::warn!(%error, "offsets not stored, their messages will come again");
        }
    }
}

impl Batch {
    fn take(messages: Vec<Received>, partitions: &Arc<Partitions>) -> Self {
        let mut wanted = HashMap::new();
        for received in &messages {
            wanted.insert(received.message.partition(), received.assignment);
        }
        let allowed = partitions.take(&wanted);
        wanted.retain(|partition, _| allowed.contains(partition));
        let is_current = |received: &Received| wanted.get(&received.message.partition()) == Some(&received.assignment);
        let messages = messages.into_iter().filter(is_current).collect();
        Self { messages, taken: wanted, partitions: Arc::clone(partitions) }
    }

    pub fn messages(&self) -> impl ExactSizeIterator<Item = &OwnedMessage> {
        self.messages.iter().map(|received| &received.message)
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn last_offsets(&self) -> impl Iterator<Item = (&str, i32, i64)> {
        let mut last = HashMap::new();
        for message in self.messages() {
            last.insert(message.partition(), (message.topic(), message.offset()));
        }
        last.into_iter().map(|(partition, (topic, offset))| (topic, partition, offset))
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.partitions.put_back(&self.taken);
    }
}
