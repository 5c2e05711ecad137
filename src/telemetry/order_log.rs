//! A log line for each step of each order, so that one order is followed through all roles.
//!
//! The lines have the target [`TARGET`], the level `debug` and the field `order_id`. While the
//! filter drops them, a step costs a look at a flag: callers that loop over a batch ask [`is_on`]
//! first.

use rdkafka::{Message as _, message::OwnedMessage};
use tracing::Level;

use crate::domain::{Effect, OrderId, OrderState, OrderStatus, Reason};

/// The target of the lines. It is a name for operators, and no module.
pub(crate) const TARGET: &str = "stocklock::order";

/// Whether the lines are written.
pub(crate) fn is_on() -> bool {
    tracing::enabled!(target: TARGET, Level::DEBUG)
}

/// Ingest has checked the order, and saves it next.
pub(crate) fn accepted(order_id: OrderId, lines: usize, hold_seconds: Option<u32>) {
    tracing::debug!(target: TARGET, %order_id, lines, hold_seconds, "order accepted");
}

/// The order is durable.
pub(crate) fn saved(order_id: OrderId) {
    tracing::debug!(target: TARGET, %order_id, "order saved");
}

/// The broker has acknowledged a message about an order, whose id is its key. Other keys have no
/// line.
pub(crate) fn published(key: Option<&[u8]>, topic: &str, partition: i32, offset: i64) {
    if !is_on() {
        return;
    }
    if let Some(order_id) = order_of(key) {
        tracing::debug!(
            target: TARGET, %order_id, topic, partition, offset, "message published"
        );
    }
}

/// A worker or a compensator has decoded a message. `what` is the kind of the event, or the status.
pub(crate) fn received(message: &OwnedMessage, order_id: OrderId, what: &str) {
    tracing::debug!(
        target: TARGET,
        %order_id,
        what,
        topic = message.topic(),
        partition = message.partition(),
        offset = message.offset(),
        "message received"
    );
}

/// Other workers hold products of the order, so it waits for a later batch.
pub(crate) fn deferred(order_id: OrderId) {
    tracing::debug!(target: TARGET, %order_id, "order deferred");
}

/// A worker has committed a decision, or has found an earlier one.
pub(crate) fn decided(status: &OrderStatus, is_repeated: bool) {
    tracing::debug!(
        target: TARGET,
        order_id = %status.order_id,
        outcome = status.status.as_str(),
        reason = status.status.reason().map(Reason::as_str),
        is_repeated,
        "order decided"
    );
}

/// An event was applied to an order in the order store. `state` is the order's state after it.
pub(crate) fn applied(order_id: OrderId, effect: &str, state: Option<OrderState>) {
    let state = state.map(OrderState::as_str);
    tracing::debug!(target: TARGET, %order_id, effect, state, "change applied");
}

/// The message is dead-lettered next. A key that is no order's id has no line.
pub(crate) fn dead_lettered(message: &OwnedMessage, class: &str) {
    if !is_on() {
        return;
    }
    if let Some(order_id) = order_of(message.key()) {
        tracing::debug!(
            target: TARGET,
            %order_id,
            class,
            topic = message.topic(),
            partition = message.partition(),
            offset = message.offset(),
            "message dead-lettered"
        );
    }
}

/// An effect in a word or two.
pub(crate) fn word(effect: Effect) -> &'static str {
    match effect {
        Effect::Nothing => "nothing",
        Effect::Move { .. } => "moved",
        Effect::Expire => "expired",
        Effect::ConfirmHold => "hold confirmed",
        Effect::ExtendHold => "hold extended",
        Effect::OweRelease => "release owed",
        Effect::EndRelease => "release done",
        Effect::TooOld => "too old",
        Effect::Refused => "refused",
        Effect::UnknownOrder => "unknown order",
    }
}

/// The order that a key names: its id as text with hyphens.
fn order_of(key: Option<&[u8]>) -> Option<OrderId> {
    str::from_utf8(key?).ok()?.parse().ok()
}
