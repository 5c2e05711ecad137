use std::{collections::HashMap, sync::Arc};

use rdkafka::{Message, Offset, TopicPartitionList, message::OwnedMessage};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc::UnboundedReceiver},
    time::{Instant, sleep_until},
};

use super::{member::Member, partitions::Partitions};
use crate::{config::BatchConfig, lifecycle::Shutdown};

/// Messages that are decoded before other tasks of the thread may run.
const MAX_DECODED_AT_ONCE: usize = 64;

/// A message on its way through a lane. It holds a share of the lane's memory until it is dropped.
#[derive(Debug)]
pub(super) struct Received {
    pub(crate) message: OwnedMessage,
    /// The assignment of the partition when the message was polled.
    pub(super) assignment: u64,
    pub(super) _memory: OwnedSemaphorePermit,
}

/// Receives the messages of some of a consumer's partitions and makes batches of them.
/// [`Lane::run`] drives them through a [`Handler`](super::Handler).
pub struct Lane {
    pub(super) topic: String,
    pub(super) group_id: Arc<str>,
    pub(super) messages: UnboundedReceiver<Received>,
    pub(super) partitions: Arc<Partitions>,
    pub(super) offsets: Offsets,
    pub(super) shutdown: Shutdown,
    /// When the last batch was closed, or the lane was opened.
    pub(super) closed_at: Instant,
}

/// Messages that are handled together. The messages of a partition are in the order of their
/// offsets. A revocation waits until the batch is dropped, within its deadline.
pub struct Batch<D> {
    messages: Vec<Received>,
    decoded: Vec<D>,
    /// The assignment of each of its partitions.
    assignments: HashMap<i32, u64>,
    /// The first offset of each partition that was deferred.
    first_deferred: HashMap<i32, i64>,
    partitions: Arc<Partitions>,
}

/// Messages that a batch deferred, for the next batch.
pub(super) struct DeferredMessages<D> {
    messages: Vec<Received>,
    decoded: Vec<D>,
}

/// The last of a partition's messages that are done.
struct LastDone<'b> {
    topic: &'b str,
    partition: i32,
    offset: i64,
}

/// Stores the offsets of a lane's batches.
#[derive(Clone)]
pub struct Offsets {
    pub(super) lane: usize,
    pub(super) member: Arc<Member>,
    pub(super) partitions: Arc<Partitions>,
}

impl Lane {
    /// Collects and decodes messages until the next batch is closed.
    ///
    /// A batch is closed when it is demanded, and then as soon as
    /// - it has `max` messages, or
    /// - it has any, no message is waiting, and `linger` has passed since the batch before it was
    ///   closed.
    ///
    /// So a single message does not wait, and frequent messages come in batches. (Nagle's algorithm
    /// for TCP has the same idea, RFC 896.)
    ///
    /// Returns `None` once the process is to stop. Messages that were collected by then come again.
    pub async fn next_batch<D>(
        &mut self,
        BatchConfig { max, linger }: BatchConfig,
        decode: impl Fn(&OwnedMessage) -> D,
        demand: impl Future<Output = ()>,
    ) -> Option<Batch<D>> {
        let mut demand = std::pin::pin!(demand);
        let mut is_demanded = false;
        let (mut messages, mut decoded) = (Vec::new(), Vec::new());
        let closes_at = self.closed_at + linger;
        loop {
            let fresh = messages.len();
            let room = (max - fresh).min(MAX_DECODED_AT_ONCE);
            let is_due = tokio::select! {
                biased;
                () = self.shutdown.requested() => return None,
                () = &mut demand, if !is_demanded => {
                    is_demanded = true;
                    false
                }
                received = self.messages.recv_many(&mut messages, room), if room > 0 => {
                    if received == 0 {
                        return None;
                    }
                    let fresh = messages[fresh..].iter();
                    decoded.extend(fresh.map(|received| decode(&received.message)));
                    false
                }
                () = sleep_until(closes_at), if is_demanded && !messages.is_empty() => true,
            };
            if is_due || is_demanded && messages.len() == max {
                self.closed_at = Instant::now();
                let batch = Batch::begin(
                    std::mem::take(&mut messages),
                    std::mem::take(&mut decoded),
                    &self.partitions,
                );
                if !batch.is_empty() {
                    return Some(batch);
                }
            }
        }
    }

    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }
}

impl Offsets {
    /// Stores the offsets of the first `done` messages of the batch; the client commits them within
    /// a second. No offset passes a message of its partition that is deferred or not done. Offsets
    /// of revoked partitions are dropped: the next owner repeats those messages.
    ///
    /// Call it only when the outcomes of these messages are acknowledged.
    pub fn store<D>(&self, batch: &Batch<D>, done: usize) {
        let stored = self.member.store_offsets(|| {
            let mut offsets = TopicPartitionList::new();
            for LastDone { topic, partition, offset } in batch.last_done(done) {
                let first_undone = batch.first_undone(partition, done);
                let assignment = batch.assignment(partition);
                let stored = self.partitions.done(partition, assignment, offset + 1, first_undone);
                let Some(offset) = stored else { continue };
                if let Err(error) =
                    offsets.add_partition_offset(topic, partition, Offset::Offset(offset))
                {
                    tracing::error!(topic, partition, offset, %error, "offset not stored");
                }
            }
            offsets
        });
        if let Err(error) = stored {
            tracing::warn!(%error, "offsets not stored, their messages will come again");
        }
    }
}

impl<D> Batch<D> {
    /// Begins a batch of the messages whose partitions are owned since the same assignment and are
    /// not being revoked. Drops the other messages.
    fn begin(messages: Vec<Received>, decoded: Vec<D>, partitions: &Arc<Partitions>) -> Self {
        let mut assignments = HashMap::new();
        for received in &messages {
            assignments.insert(received.message.partition(), received.assignment);
        }
        let allowed = partitions.begin_batch(&assignments);
        assignments.retain(|partition, _| allowed.contains(partition));
        let is_current = |received: &Received| {
            assignments.get(&received.message.partition()) == Some(&received.assignment)
        };
        let (messages, decoded) =
            messages.into_iter().zip(decoded).filter(|(received, _)| is_current(received)).unzip();
        let partitions = Arc::clone(partitions);
        Self { messages, decoded, assignments, first_deferred: HashMap::new(), partitions }
    }

    /// Begins a batch of deferred messages and of the messages of `next` behind them.
    ///
    /// Drops the messages of partitions that are being revoked, also those of `next`: they must not
    /// overtake a deferred message of their partition.
    pub(super) fn resume(
        deferred: DeferredMessages<D>,
        partitions: &Arc<Partitions>,
        mut next: Option<Self>,
    ) -> Self {
        let DeferredMessages { mut messages, mut decoded } = deferred;
        if let Some(next) = &mut next {
            messages.append(&mut next.messages);
            decoded.append(&mut next.decoded);
        }
        Self::begin(messages, decoded, partitions)
    }

    /// Takes the messages with these numbers out of the batch. The numbers ascend.
    pub(super) fn defer(&mut self, numbers: &[usize]) -> DeferredMessages<D> {
        let mut deferred = DeferredMessages::default();
        let mut numbers = numbers.iter().copied().peekable();
        let all =
            std::mem::take(&mut self.messages).into_iter().zip(std::mem::take(&mut self.decoded));
        for (number, (received, decoded)) in all.enumerate() {
            if numbers.next_if_eq(&number).is_some() {
                self.first_deferred
                    .entry(received.message.partition())
                    .or_insert(received.message.offset());
                deferred.messages.push(received);
                deferred.decoded.push(decoded);
            } else {
                self.messages.push(received);
                self.decoded.push(decoded);
            }
        }
        deferred
    }

    /// Decodes messages again: those that `is_pending` says.
    pub(super) fn decode_again(
        &mut self,
        is_pending: impl Fn(&D) -> bool,
        decode: impl Fn(&OwnedMessage) -> D,
    ) {
        for (received, decoded) in self.messages.iter().zip(&mut self.decoded) {
            if is_pending(decoded) {
                *decoded = decode(&received.message);
            }
        }
    }

    pub fn messages(&self) -> impl ExactSizeIterator<Item = &OwnedMessage> {
        self.messages.iter().map(|received| &received.message)
    }

    pub(super) fn message(&self, index: usize) -> &OwnedMessage {
        &self.messages[index].message
    }

    /// The decoded messages, in the order of the messages.
    pub(crate) fn decoded(&self) -> &[D] {
        &self.decoded
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether this consumer still owns any of the batch's partitions.
    pub(crate) fn is_owned(&self) -> bool {
        self.assignments
            .iter()
            .any(|(partition, assignment)| self.partitions.is_owned(*partition, *assignment))
    }

    /// Whether this consumer still owns the partition of a message.
    pub(super) fn owns(&self, index: usize) -> bool {
        let partition = self.message(index).partition();
        self.partitions.is_owned(partition, self.assignment(partition))
    }

    /// The assignment by which a partition of the batch is owned.
    pub(super) fn assignment(&self, partition: i32) -> u64 {
        self.assignments[&partition]
    }

    /// The last of the first `done` messages, for each of their partitions.
    fn last_done(&self, done: usize) -> impl Iterator<Item = LastDone<'_>> {
        let mut last = HashMap::new();
        for message in self.messages().take(done) {
            let (topic, partition, offset) =
                (message.topic(), message.partition(), message.offset());
            last.insert(partition, LastDone { topic, partition, offset });
        }
        last.into_values()
    }

    /// The first offset of a partition that is deferred or not among the first `done` messages.
    fn first_undone(&self, partition: i32, done: usize) -> Option<i64> {
        let mut undone =
            self.messages().skip(done).filter(|message| message.partition() == partition);
        let undone = undone.next().map(Message::offset);
        undone.into_iter().chain(self.first_deferred.get(&partition).copied()).min()
    }
}

impl<D> DeferredMessages<D> {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether any message waits for its schema.
    pub(super) fn is_pending(&self, is_pending: impl Fn(&D) -> bool) -> bool {
        self.decoded.iter().any(is_pending)
    }
}

impl<D> Default for DeferredMessages<D> {
    fn default() -> Self {
        Self { messages: Vec::new(), decoded: Vec::new() }
    }
}

impl<D> Drop for Batch<D> {
    fn drop(&mut self) {
        self.partitions.end_batch(&self.assignments);
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use rdkafka::Timestamp;
    use tokio::sync::Semaphore;

    use super::*;

    fn received(partition: i32, offset: i64, assignment: u64) -> Received {
        let message = OwnedMessage::new(
            None,
            None,
            "orders".to_owned(),
            Timestamp::NotAvailable,
            partition,
            offset,
            None,
        );
        let memory = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Received { message, assignment, _memory: memory }
    }

    #[test]
    fn messages_behind_a_deferred_one_are_dropped_with_it_on_a_revocation() {
        let partitions = Arc::new(Partitions::new(1));
        partitions.assign(&[0, 1]);
        let assignment = partitions.assignment(0).unwrap();
        let begin = |messages: &[(i32, i64)]| {
            let messages: Vec<_> =
                messages.iter().map(|(p, offset)| received(*p, *offset, assignment)).collect();
            let decoded = vec![(); messages.len()];
            Batch::begin(messages, decoded, &partitions)
        };
        let deferred = begin(&[(0, 5), (1, 7)]).defer(&[0, 1]);
        let next = begin(&[(0, 6), (1, 8)]);

        thread::scope(|scope| {
            let revoked = scope.spawn(|| partitions.revoke(&[0], Duration::from_secs(10)));
            while !partitions.begin_batch(&HashMap::from([(0, assignment)])).is_empty() {
                partitions.end_batch(&HashMap::from([(0, assignment)]));
                thread::yield_now();
            }
            let batch = Batch::resume(deferred, &partitions, Some(next));
            let offsets: Vec<_> =
                batch.messages().map(|message| (message.partition(), message.offset())).collect();
            assert_eq!(offsets, [(1, 7), (1, 8)]);
            assert!(revoked.join().unwrap(), "no batch of it is in flight any more");
        });
    }
}
