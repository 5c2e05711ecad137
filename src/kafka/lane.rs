use std::{collections::HashMap, sync::Arc};

use rdkafka::{Message, Offset, TopicPartitionList, message::OwnedMessage};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc::UnboundedReceiver},
    time::{Instant, sleep_until},
};

use super::{member::Member, partitions::Partitions};
use crate::{config::BatchConfig, lifecycle::Shutdown};

/// Messages that are decoded before anyone else gets a turn.
const DECODED_AT_ONCE: usize = 64;

/// A message on its way through a lane; it gives its share of the lane's memory back when it is dropped.
#[derive(Debug)]
pub(super) struct Received {
    pub(crate) message: OwnedMessage,
    pub(super) assignment: u64,
    pub(super) _memory: OwnedSemaphorePermit,
}

/// The receiving end of some of a consumer's partitions, whose messages become batches.
pub struct Lane {
    pub(super) topic: String,
    pub(super) messages: UnboundedReceiver<Received>,
    pub(super) partitions: Arc<Partitions>,
    pub(super) offsets: Offsets,
    pub(super) shutdown: Shutdown,
    /// When the last batch was closed, or the lane was opened.
    pub(super) closed_at: Instant,
}

/// Messages that are handled together, those of a partition in the order of their offsets. Until it is dropped, its partitions are not
/// given up.
pub struct Batch<D> {
    messages: Vec<Received>,
    decoded: Vec<D>,
    taken: HashMap<i32, u64>,
    /// The first offset of each partition that was left behind.
    left_behind: HashMap<i32, i64>,
    partitions: Arc<Partitions>,
}

/// Messages of a batch that are to be in the next one.
pub(super) struct LeftBehind<D> {
    messages: Vec<Received>,
    decoded: Vec<D>,
}

/// Where the offsets of a lane's batches are stored that are done with.
#[derive(Clone)]
pub struct Offsets {
    pub(super) lane: usize,
    pub(super) member: Arc<Member>,
    pub(super) partitions: Arc<Partitions>,
}

impl Lane {
    /// Waits for messages and decodes them; closes the batch when it is in demand, and then as soon as it is full, or no more messages
    /// are at hand and `linger` has passed since the batch before: what comes alone does not wait, and what comes often comes in
    /// batches (as Nagle's algorithm does it, RFC 896). `None` once the process is to stop; what was collected then comes again.
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
            let room = (max - fresh).min(DECODED_AT_ONCE);
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
                    decoded.extend(messages[fresh..].iter().map(|received| decode(&received.message)));
                    false
                }
                () = sleep_until(closes_at), if is_demanded && !messages.is_empty() => true,
            };
            if is_due || is_demanded && messages.len() == max {
                self.closed_at = Instant::now();
                let batch = Batch::take(
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

    /// Where the offsets of this lane's batches are stored.
    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }
}

impl Offsets {
    /// The first messages of the batch, so many, are done: their offsets are stored, to be committed soon, up to the first that is not. Those
    /// of partitions that were taken away are dropped; their next owner repeats what was done.
    pub fn store<D>(&self, batch: &Batch<D>, done: usize) {
        let stored = self.member.store_offsets(|| {
            let mut offsets = TopicPartitionList::new();
            for (topic, partition, last) in batch.last_offsets(done) {
                let first_undone = batch.first_undone(partition, done);
                let stored = self.partitions.done(
                    partition,
                    batch.taken[&partition],
                    last + 1,
                    first_undone,
                );
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
    fn take(messages: Vec<Received>, decoded: Vec<D>, partitions: &Arc<Partitions>) -> Self {
        let mut wanted = HashMap::new();
        for received in &messages {
            wanted.insert(received.message.partition(), received.assignment);
        }
        let allowed = partitions.take(&wanted);
        wanted.retain(|partition, _| allowed.contains(partition));
        let is_current = |received: &Received| {
            wanted.get(&received.message.partition()) == Some(&received.assignment)
        };
        let (messages, decoded) =
            messages.into_iter().zip(decoded).filter(|(received, _)| is_current(received)).unzip();
        let partitions = Arc::clone(partitions);
        Self { messages, decoded, taken: wanted, left_behind: HashMap::new(), partitions }
    }

    /// A batch of what was left behind and of the batch after it, without the partitions that are on their way to other owners: what
    /// comes later in them must not pass what was left behind.
    pub(super) fn again(
        left: LeftBehind<D>,
        partitions: &Arc<Partitions>,
        mut next: Option<Self>,
    ) -> Self {
        let LeftBehind { mut messages, mut decoded } = left;
        if let Some(next) = &mut next {
            messages.append(&mut next.messages);
            decoded.append(&mut next.decoded);
        }
        Self::take(messages, decoded, partitions)
    }

    /// Takes out the messages with these numbers, which ascend.
    pub(super) fn leave_behind(&mut self, numbers: &[usize]) -> LeftBehind<D> {
        let mut left = LeftBehind::default();
        let mut numbers = numbers.iter().copied().peekable();
        let all =
            std::mem::take(&mut self.messages).into_iter().zip(std::mem::take(&mut self.decoded));
        for (number, (received, decoded)) in all.enumerate() {
            if numbers.next_if_eq(&number).is_some() {
                self.left_behind
                    .entry(received.message.partition())
                    .or_insert(received.message.offset());
                left.messages.push(received);
                left.decoded.push(decoded);
            } else {
                self.messages.push(received);
                self.decoded.push(decoded);
            }
        }
        left
    }

    pub fn messages(&self) -> impl ExactSizeIterator<Item = &OwnedMessage> {
        self.messages.iter().map(|received| &received.message)
    }

    pub(super) fn message(&self, index: usize) -> &OwnedMessage {
        &self.messages[index].message
    }

    /// Each message as it was decoded, in the same order.
    pub(crate) fn decoded(&self) -> &[D] {
        &self.decoded
    }

    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether any of its partitions is still this consumer's.
    pub(crate) fn is_owned(&self) -> bool {
        self.taken
            .iter()
            .any(|(partition, assignment)| self.partitions.is_owned(*partition, *assignment))
    }

    /// Whether the partition of one of its messages is.
    pub(super) fn owns(&self, index: usize) -> bool {
        let partition = self.message(index).partition();
        self.partitions.is_owned(partition, self.taken[&partition])
    }

    /// The assignment since which the batch has messages of a partition of its own.
    pub(super) fn assignment(&self, partition: i32) -> u64 {
        self.taken[&partition]
    }

    /// Of each partition that is among the first messages, so many.
    fn last_offsets(&self, first: usize) -> impl Iterator<Item = (&str, i32, i64)> {
        let mut last = HashMap::new();
        for message in self.messages().take(first) {
            last.insert(message.partition(), (message.topic(), message.offset()));
        }
        last.into_iter().map(|(partition, (topic, offset))| (topic, partition, offset))
    }

    /// The first offset of a partition that was left behind, or is not among the first messages, so many.
    fn first_undone(&self, partition: i32, first: usize) -> Option<i64> {
        let mut undone =
            self.messages().skip(first).filter(|message| message.partition() == partition);
        let undone = undone.next().map(Message::offset);
        undone.into_iter().chain(self.left_behind.get(&partition).copied()).min()
    }
}

impl<D> LeftBehind<D> {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }
}

impl<D> Default for LeftBehind<D> {
    fn default() -> Self {
        Self { messages: Vec::new(), decoded: Vec::new() }
    }
}

impl<D> Drop for Batch<D> {
    fn drop(&mut self) {
        self.partitions.put_back(&self.taken);
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
    fn what_comes_after_a_message_left_behind_goes_with_it_when_its_partition_is_taken_away() {
        let partitions = Arc::new(Partitions::new(1));
        partitions.assign(&[0, 1]);
        let assignment = partitions.assignment(0).unwrap();
        let take = |messages: &[(i32, i64)]| {
            let messages: Vec<_> =
                messages.iter().map(|(p, offset)| received(*p, *offset, assignment)).collect();
            let decoded = vec![(); messages.len()];
            Batch::take(messages, decoded, &partitions)
        };
        let left = take(&[(0, 5), (1, 7)]).leave_behind(&[0, 1]);
        let next = take(&[(0, 6), (1, 8)]);
        thread::scope(|scope| {
            let revoked = scope.spawn(|| partitions.revoke(&[0], Duration::from_secs(10)));
            while !partitions.take(&HashMap::from([(0, assignment)])).is_empty() {
                partitions.put_back(&HashMap::from([(0, assignment)]));
                thread::yield_now();
            }
            let batch = Batch::again(left, &partitions, Some(next));
            let offsets: Vec<_> =
                batch.messages().map(|message| (message.partition(), message.offset())).collect();
            assert_eq!(offsets, [(1, 7), (1, 8)]);
            assert!(revoked.join().unwrap(), "nothing of it is in hand any more");
        });
    }
}
