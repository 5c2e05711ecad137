use std::collections::HashSet;

use rdkafka::message::OwnedMessage;

/// The keys of messages whose outcomes the topic does not take, for their size. The others are
/// told.
pub(crate) type Unpublished = HashSet<Vec<u8>>;

/// What a lane's batches are for, in three steps. Those that fail are repeated, which must do no harm.
pub trait Handler: Send + Sync + 'static {
    /// A message as it was understood, or why it was not.
    type Decoded: Send + Sync;
    /// What came of a batch, to be published.
    type Handled: Send + Sync;
    type Error: std::error::Error + Send + Sync;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded;

    /// Does the messages of a batch, or of a part of one, in one transaction, but for those that have to be left behind for now, which
    /// are in the next batch again.
    fn handle(
        &self,
        messages: &[Self::Decoded],
    ) -> impl Future<Output = Result<Done<Self::Handled>, Self::Error>> + Send;

    /// Why one of the messages that were handled is to be set aside all the same.
    fn dead_letter_reason(
        &self,
        message: &Self::Decoded,
        handled: &Self::Handled,
    ) -> Option<DeadLetterReason>;

    /// Whose word the message is, where it says so; letters that are blamed on a source are counted
    /// among its messages.
    fn source<'m>(&self, _message: &'m Self::Decoded) -> Option<&'m str> {
        None
    }

    /// What the dead letter of a message that is refused is blamed on. The lane, unless the handler
    /// knows better.
    fn blame<'m>(&self, _message: &'m Self::Decoded, _refusal: &DeadLetterReason) -> Blame<'m> {
        Blame::Lane
    }

    /// Tells others what came of the messages. Their offsets are stored when all of their batch is published.
    fn publish(
        &self,
        handled: &Self::Handled,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// The messages whose outcomes are too large to be published, where a publication failed for
    /// that alone.
    fn unpublished(_error: &Self::Error) -> Option<&Unpublished> {
        None
    }

    fn fate(error: &Self::Error) -> Fate;
}

/// What came of messages.
#[derive(Debug, Default)]
pub struct Done<H> {
    pub handled: H,
    /// The numbers of those that are left behind, in their order.
    pub deferred: Vec<usize>,
}

/// What an error means for the messages that met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// A dependency, a bounded label, cannot do them at present: they are repeated, as long as it takes.
    Retry(&'static str),
    /// One of them will not be accepted, whatever is repeated: the batch is halved until it is alone, and it is set aside under
    /// this class, a bounded label.
    Reject(&'static str),
}

/// What a dead letter is blamed on, which says what happens when there are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame<'m> {
    /// Its writer alone, and no repetition mends it: such letters pass at a bounded rate.
    Writer,
    /// This source, or ourselves: too many of them among its messages stop the lane.
    Source(&'m str),
    /// Some writer of its partition, or ourselves: too many among the partition's messages stop the
    /// lane.
    Partition,
    /// Ourselves: too many among the lane's messages stop it.
    Lane,
}

/// Why a message is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterReason {
    /// A bounded label.
    pub(crate) class: &'static str,
    pub(crate) text: String,
}
