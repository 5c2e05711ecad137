//! The compensator: brings outcomes back to the order store, and has the stock of orders released that failed after all.

use std::sync::Arc;

use chrono::Utc;
use rdkafka::{Message as _, message::OwnedMessage};

use crate::{
    crash_point::crash_point,
    domain::{OrderId, OrderState, OrderStatus},
    kafka::{DeadLetters, Handler},
    relay::{COMMITTER_LEASE, Relay},
    store::{OrderStore, StoreError},
    telemetry::Metrics,
    wire::{OrderStatusCodec, WireError, refused},
};

/// Why a batch was not done; all of them are outages, and the batch is repeated.
#[derive(Debug, thiserror::Error)]
pub enum CompensateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the broker did not take the dead letters: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
}

/// Applies batches of statuses. Whatever it does may be repeated without harm.
#[derive(Clone)]
pub struct Compensator {
    pub store: OrderStore,
    pub relay: Relay,
    pub dead_letters: DeadLetters,
    pub statuses: Arc<OrderStatusCodec>,
    pub metrics: Metrics,
}

impl Handler for Compensator {
    type Decoded = Result<OrderStatus, WireError>;
    type Handled = Vec<OrderId>;
    type Error = CompensateError;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded {
        self.statuses.decode(message.payload().unwrap_or_default())
    }

    /// Moves the orders in one transaction. Answers which of them the store does not know.
    async fn handle(&self, messages: &[Self::Decoded]) -> Result<Vec<OrderId>, CompensateError> {
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

    /// Sets poison aside, and statuses of unknown orders.
    async fn publish(
        &self,
        messages: &[&OwnedMessage],
        decoded: &[Self::Decoded],
        unknown: &Vec<OrderId>,
    ) -> Result<(), CompensateError> {
        let mut letters = refused(messages, decoded);
        for (message, status) in messages.iter().zip(decoded) {
            if let Some(id) = status.as_ref().ok().map(|status| status.order_id).filter(|id| unknown.contains(id)) {
                letters.push((message, "unknown_order", format!("no order has the id {id}")));
            }
        }
        Ok(self.dead_letters.set_aside(&letters).await?)
    }

    fn failed_dependency(error: &CompensateError) -> Option<&'static str> {
        match error {
            CompensateError::Store(_) => Some("order_store"),
            CompensateError::Kafka(_) => Some("kafka"),
        }
    }
}
