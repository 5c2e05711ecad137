use std::collections::HashSet;

use rdkafka::message::OwnedMessage;

/// Keys of messages whose outcomes were not published, since they are too large for the topic. All
/// other outcomes of the same call were acknowledged.
pub(crate) type Unpublished = HashSet<Vec<u8>>;

/// What a role does with the messages of a lane.
///
/// A [`Lane`](super::Lane) decodes each message, handles them in batches, publishes the outcomes
/// and asks for reasons to dead-letter. A step that fails is repeated with the same messages, so
/// each method must be safe to repeat.
pub trait Handler: Send + Sync + 'static {
    /// A decoded message, or the reason why it cannot be decoded.
    type Decoded: Send + Sync;
    /// What [`Handler::handle`] did, as [`Handler::publish`] needs it.
    type Handled: Send + Sync;
    type Error: std::error::Error + Send + Sync;

    /// Decodes a message. Must not block: it runs on the async runtime.
    fn decode(&self, message: &OwnedMessage) -> Self::Decoded;

    /// Whether the message waits until its schema is looked up. Then the lane defers it, whatever
    /// [`Handler::handle`] does, and decodes it again. Later messages may overtake it.
    fn is_pending(&self, _decoded: &Self::Decoded) -> bool {
        false
    }

    /// Handles the messages of a batch, or of a part of one, in one transaction.
    ///
    /// May defer messages. The lane puts a deferred message at the front of its next batch, and
    /// stores no offset behind it before it is handled. A deferred message must not be overtaken by
    /// a later one that depends on it: the handler defers both.
    ///
    /// Fails with an error that [`Handler::fate`] explains. The transaction may have been committed
    /// all the same, so the repetition must do no harm.
    fn handle(
        &self,
        messages: &[Self::Decoded],
    ) -> impl Future<Output = Result<Done<Self::Handled>, Self::Error>> + Send;

    /// The reason to dead-letter a message that was handled, or `None` for a good message.
    fn dead_letter_reason(
        &self,
        message: &Self::Decoded,
        handled: &Self::Handled,
    ) -> Option<DeadLetterReason>;

    /// The source that the message names, if it names one. The breaker counts each source's
    /// messages apart.
    fn source<'m>(&self, _message: &'m Self::Decoded) -> Option<&'m str> {
        None
    }

    /// What a dead letter is blamed on. The default is the lane.
    fn blame<'m>(&self, _message: &'m Self::Decoded, _reason: &DeadLetterReason) -> Blame<'m> {
        Blame::Lane
    }

    /// Publishes the outcomes of handled messages, and returns when the broker has acknowledged
    /// them. The lane stores the offsets of a batch only when all of the batch is published.
    ///
    /// Fails if an outcome was not acknowledged. If all failures are of outcomes that are too
    /// large, [`Handler::unpublished`] names them, and the lane does not repeat.
    fn publish(
        &self,
        handled: &Self::Handled,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// The messages whose outcomes are too large to be published, or `None` if the publication
    /// failed for another cause.
    fn unpublished(_error: &Self::Error) -> Option<&Unpublished> {
        None
    }

    /// What an error of [`Handler::handle`] or [`Handler::publish`] means for its messages.
    fn fate(error: &Self::Error) -> Fate;
}

/// What [`Handler::handle`] did with the messages that it was given.
#[derive(Debug, Default)]
pub struct Done<H> {
    /// The outcome of all messages that are not deferred.
    pub handled: H,
    /// Indexes of the deferred messages in the slice that was given, ascending.
    pub deferred: Vec<usize>,
}

/// What an error means for the messages that met it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// A dependency is not available: repeat the messages until it is. The label of the dependency
    /// is bounded.
    Retry(&'static str),
    /// No repetition helps one of the messages: halve the batch until that message is alone, and
    /// dead-letter it under this class. The class is a bounded label.
    Reject(&'static str),
}

/// What a dead letter is blamed on. It decides what happens when there are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame<'m> {
    /// The writer of the message alone, and no repetition helps: such letters pass at a bounded
    /// rate (`throttle.rs`).
    Writer,
    /// This source, or stocklock: too many letters among the source's messages halt the lane.
    Source(&'m str),
    /// Some writer of the partition, or stocklock: too many letters among the partition's messages
    /// halt the lane.
    Partition,
    /// Stocklock: too many letters among the lane's messages halt it.
    Lane,
}

/// Why a message is dead-lettered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterReason {
    /// One of the documented classes of dead letters: a bounded label.
    pub(crate) class: &'static str,
    /// What was expected, and what was found.
    pub(crate) text: String,
}
