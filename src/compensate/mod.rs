//! The compensator: brings outcomes back to the order store, and has the stock of orders released that failed after all.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use rdkafka::{Message as _, message::OwnedMessage};

use crate::{
    crash_point::crash_point,
    domain::{Effect, Horizon, OrderId, OrderState, OrderStatus},
    kafka::{Blame, DeadLetterReason, Done, Fate, Handler},
    relay::{COMMITTER_LEASE, Relay},
    store::{Applied, OrderStore, StoreError},
    telemetry::Metrics,
    wire::{OrderStatusCodec, WireError},
};

/// Applies batches of statuses. Whatever it does may be repeated without harm.
#[derive(Clone)]
pub struct Compensator {
    pub store: OrderStore,
    pub relay: Relay,
    pub statuses: Arc<OrderStatusCodec>,
    pub horizon: Horizon,
    pub metrics: Metrics,
}

impl Handler for Compensator {
    /// `None` is a tombstone: a message without a value.
    type Decoded = Result<Option<OrderStatus>, WireError>;
    type Handled = Applied;
    type Error = StoreError;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded {
        let Some(payload) = message.payload() else {
            self.metrics.compensations.with_label_values(&["tombstone"]).inc();
            return Ok(None);
        };
        let written_at = message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis);
        self.statuses.decode(payload, written_at.unwrap_or_else(Utc::now)).map(Some)
    }

    /// Moves the orders in one transaction.
    async fn handle(&self, messages: &[Self::Decoded]) -> Result<Done<Applied>, StoreError> {
        let statuses: Vec<_> = messages.iter().flatten().flatten().collect();
        if statuses.is_empty() {
            return Ok(Done::default());
        }
        let now = Utc::now();
        let mut applied = self
            .store
            .apply(&statuses, now, self.horizon.releasable_from(now), COMMITTER_LEASE)
            .await?;
        crash_point("compensate.committed");
        for (state, count) in &applied.moved {
            let kind = match state {
                OrderState::Completed => "completed",
                OrderState::Cancelled => "cancelled",
                OrderState::Failed | OrderState::Pending => "failed",
            };
            self.metrics.compensations.with_label_values(&[kind]).inc_by(*count as u64);
        }
        let mut releases = std::mem::take(&mut applied.events);
        self.metrics.compensations.with_label_values(&["released"]).inc_by(releases.len() as u64);
        self.metrics
            .compensations
            .with_label_values(&["release_done"])
            .inc_by(applied.released as u64);
        // A release beyond the horizon would be a dead letter: the watch of owed releases counts
        // it.
        releases.retain(|event| event.order_id >= self.horizon.decidable(now).start);
        self.relay.release_in_background(releases);
        self.store.database().observe_pool();
        Ok(Done { handled: applied, deferred: Vec::new() })
    }

    /// Besides poison, statuses of unknown orders are dead-lettered, and failures that come too
    /// late.
    fn dead_letter_reason(
        &self,
        status: &Self::Decoded,
        applied: &Applied,
    ) -> Option<DeadLetterReason> {
        let is = |status: &OrderStatus, state, effect, orders: &[OrderId]| {
            orders.contains(&status.order_id) && status.effect_on(state, false) == effect
        };
        match status {
            Err(error) => Some(DeadLetterReason { class: error.class(), text: error.to_string() }),
            Ok(Some(status)) if is(status, None, Effect::UnknownOrder, &applied.unknown) => {
                Some(DeadLetterReason {
                    class: "unknown_order",
                    text: format!("no order has the id {}", status.order_id),
                })
            }
            Ok(Some(status))
                if is(status, Some(OrderState::Completed), Effect::TooLate, &applied.too_late) =>
            {
                let text = format!(
                    "order {} is completed, and too old for its stock to be released",
                    status.order_id
                );
                Some(DeadLetterReason { class: "expired", text })
            }
            Ok(_) => None,
        }
    }

    fn source<'m>(&self, status: &'m Self::Decoded) -> Option<&'m str> {
        Some(status.as_ref().ok()?.as_ref()?.source.as_str())
    }

    /// A worker that reports an unknown order may be right: a failover may have lost it.
    fn blame<'m>(&self, status: &'m Self::Decoded, refusal: &DeadLetterReason) -> Blame<'m> {
        match (status, refusal.class) {
            (Err(_), "undecodable" | "invalid") => Blame::Writer,
            (Err(_) | Ok(None), _) => Blame::Partition,
            (Ok(Some(status)), "unknown_order") if !status.is_from_worker() => Blame::Writer,
            (Ok(Some(status)), _) => Blame::Source(&status.source),
        }
    }

    /// Releases are on their way already.
    async fn publish(&self, _: &Applied) -> Result<(), StoreError> {
        Ok(())
    }

    fn fate(error: &StoreError) -> Fate {
        match error {
            StoreError::Refused(_) => Fate::Reject("refused"),
            StoreError::Damaged(_) => Fate::Reject("damaged"),
            _ => Fate::Retry("order_store"),
        }
    }
}
