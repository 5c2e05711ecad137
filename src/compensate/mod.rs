//! The compensator: brings outcomes back to the order store, and has the stock of orders released that failed after all.

use std::sync::Arc;

use chrono::Utc;
use rdkafka::{Message as _, message::OwnedMessage};

use crate::{
    crash_point::crash_point,
    domain::{OrderId, OrderState, OrderStatus},
    kafka::{Fate, Handler, Refusal},
    relay::{COMMITTER_LEASE, Relay},
    store::{OrderStore, StoreError},
    telemetry::Metrics,
    wire::{OrderStatusCodec, WireError},
};

/// Applies batches of statuses. Whatever it does may be repeated without harm.
#[derive(Clone)]
pub struct Compensator {
    pub store: OrderStore,
    pub relay: Relay,
    pub statuses: Arc<OrderStatusCodec>,
    pub metrics: Metrics,
}

impl Handler for Compensator {
    type Decoded = Result<OrderStatus, WireError>;
    type Handled = Vec<OrderId>;
    type Error = StoreError;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded {
        self.statuses.decode(message.payload().unwrap_or_default())
    }

    /// Moves the orders in one transaction. Answers which of them the store does not know.
    async fn handle(&self, messages: &[Self::Decoded]) -> Result<Vec<OrderId>, StoreError> {
        let statuses: Vec<_> = messages.iter().flatten().collect();
        if statuses.is_empty() {
            return Ok(Vec::new());
        }
        let applied = self.store.apply(&statuses, Utc::now(), COMMITTER_LEASE).await?;
        crash_point("compensate.committed");
        for (state, count) in applied.moved {
            let kind = if state == OrderState::Completed { "completed" } else { "failed" };
            self.metrics.compensations.with_label_values(&[kind]).inc_by(count as u64);
        }
        self.metrics.compensations.with_label_values(&["released"]).inc_by(applied.events.len() as u64);
        self.relay.publish_in_background(applied.events);
        self.store.database().observe_pool();
        Ok(applied.unknown)
    }

    /// Besides poison, statuses of unknown orders are set aside.
    fn refusal(&self, status: &Self::Decoded, unknown: &Vec<OrderId>) -> Option<Refusal> {
        match status {
            Err(error) => Some(Refusal { class: error.class(), text: error.to_string() }),
            Ok(OrderStatus { order_id, .. }) if unknown.contains(order_id) => {
                Some(Refusal { class: "unknown_order", text: format!("no order has the id {order_id}") })
            }
            Ok(_) => None,
        }
    }

    /// Releases are on their way already, by the outbox.
    async fn publish(&self, _: &[Self::Decoded], _: &Vec<OrderId>) -> Result<(), StoreError> {
        Ok(())
    }

    fn fate(error: &StoreError) -> Fate {
        match error {
            StoreError::Refused(_) => Fate::Refused("refused"),
            StoreError::Damaged(_) => Fate::Refused("damaged"),
            _ => Fate::Unavailable("order_store"),
        }
    }
}
