//! The compensator: brings outcomes back to the order store, and has the stock of orders released that failed after all.

use std::sync::Arc;

use chrono::Utc;
use rdkafka::{Message as _, message::OwnedMessage};

use crate::{
    backoff::Backoff,
    config,
    crash_point::crash_point,
    domain::OrderState,
    kafka::{DeadLetters, Lane},
    lifecycle::Shutdown,
    relay::{COMMITTER_LEASE, Relay},
    store::{OrderStore, StoreError},
    telemetry::{Component, Metrics},
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

impl CompensateError {
    fn dependency(&self) -> &'static str {
        match self {
            Self::Store(_) => "order_store",
            Self::Kafka(_) => "kafka",
        }
    }
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

impl Compensator {
    /// Handles a lane's batches in turn until its consumer stops. A batch is repeated until it is done; its offsets are stored
    /// only then.
    pub async fn run(self, mut lane: Lane, limits: config::Compensator, health: Component, shutdown: Shutdown) {
        while let Some(batch) = health.waiting(lane.next_batch(limits.batch_max, limits.linger)).await {
            let messages: Vec<_> = batch.messages().collect();
            let mut failures = Backoff::default();
            while let Err(error) = self.step(&messages).await {
                if shutdown.is_requested() {
                    tracing::warn!(statuses = batch.len(), %error, "stopping, the batch is left to the next compensator");
                    return;
                }
                self.metrics.retries.with_label_values(&[error.dependency()]).inc();
                let delay = failures.next_delay();
                tracing::warn!(statuses = batch.len(), failures = failures.failures(), %error, ?delay, "batch failed, repeating it");
                health.not_ready(error.to_string());
                tokio::time::sleep(delay).await;
            }
            health.ready();
            lane.done(&batch);
            self.store.database().observe_pool();
        }
        self.relay.drain().await;
    }

    /// Does one batch: poison is set aside, the others move their orders in one transaction.
    pub async fn step(&self, messages: &[&OwnedMessage]) -> Result<(), CompensateError> {
        let (mut statuses, mut found, mut poison) = (Vec::with_capacity(messages.len()), Vec::new(), Vec::new());
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
