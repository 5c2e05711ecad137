//! The compensator: brings outcomes back to the order store, and has the stock of orders released that failed after all.

use std::sync::Arc;

use chrono::Utc;
use rdkafka::{Message as _, message::OwnedMessage};

use crate::{
    crash_point::crash_point,
    domain::OrderState,
    kafka::{DeadLetters, Handler},
    relay::{COMMITTER_LEASE, Relay},
    store::{OrderStore, StoreError},
    telemetry::Metrics,
    wire::OrderStatusCodec,
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
    type Error = CompensateError;

    async fn handle(&self, messages: &[&OwnedMessage]) -> Result<(), CompensateError> {
        self.step(messages).await?;
        self.store.database().observe_pool();
        Ok(())
    }

    fn failed_dependency(error: &CompensateError) -> Option<&'static str> {
        match error {
            CompensateError::Store(_) => Some("order_store"),
            CompensateError::Kafka(_) => Some("kafka"),
        }
    }
}

impl Compensator {
    /// Does one batch: poison is set aside, the others move their orders in one transaction.
    pub async fn step(&self, messages: &[&OwnedMessage]) -> Result<(), CompensateError> {
        let (mut found, mut statuses, mut poison) = (Vec::new(), Vec::with_capacity(messages.len()), Vec::new());
        for message in messages {
            match self.statuses.decode(message.payload().unwrap_or_default()) {
                Ok(status) => {
                    statuses.push(status);
                    found.push(*message);
                }
                Err(error) => poison.push((*message, error.class(), error.to_string())),
            }
        }
        if !statuses.is_empty() {
            let applied = self.store.apply(&statuses, Utc::now(), COMMITTER_LEASE).await?;
            crash_point("compensate.committed");
            for index in applied.unknown {
                let text = format!("no order has the id {}", statuses[index].order_id);
                poison.push((found[index], "unknown_order", text));
            }
            for (state, count) in applied.moved {
                let kind = if state == OrderState::Completed { "completed" } else { "failed" };
                self.metrics.compensations.with_label_values(&[kind]).inc_by(count as u64);
            }
            self.metrics.compensations.with_label_values(&["released"]).inc_by(applied.events.len() as u64);
            self.relay.publish_in_background(applied.events);
        }
        if !poison.is_empty() {
            self.dead_letters.set_aside(&poison).await?;
        }
        Ok(())
    }
}
