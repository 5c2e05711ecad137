use std::{collections::VecDeque, sync::Arc, time::Duration};

use rdkafka::{
    Message as _,
    message::{Headers, OwnedMessage},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::kafka::lane::Received;

/// Memory of the messages that a lane holds, bytes.
const MAX_LANE_BYTES: usize = 8 << 20;
/// Memory of a message besides its key, payload and headers, bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// The poll thread's end of a lane.
pub(super) struct Inlet {
    sender: mpsc::UnboundedSender<Received>,
    memory: Arc<Semaphore>,
    /// Messages that came while the lane was full. While there are any, the lane's partitions are
    /// paused. There may be several, since partitions that are assigned meanwhile are not paused.
    undelivered: VecDeque<UndeliveredMessage>,
}

/// A polled message that its lane has no room for.
struct UndeliveredMessage {
    message: OwnedMessage,
    assignment: u64,
}

impl Inlet {
    /// Makes both ends of a lane.
    pub(super) fn open() -> (Self, mpsc::UnboundedReceiver<Received>) {
        let (sender, messages) = mpsc::unbounded_channel();
        let memory = Arc::new(Semaphore::new(MAX_LANE_BYTES));
        (Self { sender, memory, undelivered: VecDeque::new() }, messages)
    }

    /// Whether the lane is full, so that its partitions are paused.
    pub(super) fn is_full(&self) -> bool {
        !self.undelivered.is_empty()
    }

    /// Gives a message to the lane. If the lane is full, waits for `patience` at most, and then
    /// keeps the message. Returns whether the lane is full.
    pub(super) fn deliver(
        &mut self,
        message: OwnedMessage,
        assignment: u64,
        patience: Duration,
        runtime: &tokio::runtime::Handle,
    ) -> bool {
        if !self.is_full()
            && let Some(memory) = self.wait_for_memory(cost(&message), patience, runtime)
        {
            self.send(message, assignment, memory);
            return false;
        }
        self.undelivered.push_back(UndeliveredMessage { message, assignment });
        true
    }

    /// Gives kept messages to the lane, as far as it has room.
    pub(super) fn retry(&mut self) {
        while let Some(next) = self.undelivered.front() {
            let cost = cost(&next.message);
            let Ok(memory) = Arc::clone(&self.memory).try_acquire_many_owned(cost) else { return };
            if let Some(UndeliveredMessage { message, assignment }) = self.undelivered.pop_front() {
                self.send(message, assignment, memory);
            }
        }
    }

    /// Drops the kept messages.
    pub(super) fn clear(&mut self) {
        self.undelivered.clear();
    }

    /// Waits until the lane has memory for a message, for `patience` at most.
    fn wait_for_memory(
        &self,
        cost: u32,
        patience: Duration,
        runtime: &tokio::runtime::Handle,
    ) -> Option<OwnedSemaphorePermit> {
        if let Ok(memory) = Arc::clone(&self.memory).try_acquire_many_owned(cost) {
            return Some(memory);
        }
        let memory = Arc::clone(&self.memory).acquire_many_owned(cost);
        runtime.block_on(async { tokio::time::timeout(patience, memory).await }).ok()?.ok()
    }

    fn send(&self, message: OwnedMessage, assignment: u64, memory: OwnedSemaphorePermit) {
        let received = Received { message, assignment, _memory: memory };
        if self.sender.send(received).is_err() {
            tracing::debug!("message dropped, its lane has ended");
        }
    }
}

/// A message's share of its lane's memory, bytes. A message that is larger than the lane gets all
/// of the memory.
fn cost(message: &OwnedMessage) -> u32 {
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    let headers: usize = headers.map(|h| h.key.len() + h.value.map_or(0, <[u8]>::len)).sum();
    let bytes = MESSAGE_OVERHEAD_BYTES
        + message.payload().map_or(0, <[u8]>::len)
        + message.key().map_or(0, <[u8]>::len)
        + headers;
    u32::try_from(bytes.min(MAX_LANE_BYTES)).unwrap_or(u32::MAX)
}
