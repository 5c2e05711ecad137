//! The worker: orders in, stock deducted, outcomes out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use chrono::{DateTime, Utc};
use rdkafka::{Message as _, message::OwnedMessage};

use crate::{
    crash_point::crash_point,
    domain::{
        OrderEvent, OrderId, OrderStatus, ReportedStatus, WORKER_SOURCE,
        fold::{Decisions, Outcome},
    },
    kafka::{DeadLetters, Handler, Message, Producer},
    lock::{LockError, Locks},
    store::{StockStore, StoreError},
    telemetry::Metrics,
    wire::{OrderEventCodec, OrderStatusCodec, WireError},
};

/// Why a batch was not done; all of them are outages or rivals, and the batch is repeated.
#[derive(Debug, thiserror::Error)]
pub enum DeductError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("the locks were lost before the transaction")]
    LockLost,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the broker did not take the outcomes: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    #[error("an outcome does not encode: {0}")]
    Wire(#[from] WireError),
}

/// Decides batches of order events. Whatever it does may be repeated without harm.
#[derive(Clone)]
pub struct Worker {
    pub store: StockStore,
    pub locks: Locks,
    pub producer: Producer,
    pub dead_letters: DeadLetters,
    pub events: Arc<OrderEventCodec>,
    pub statuses: Arc<OrderStatusCodec>,
    pub status_topic: Arc<str>,
    pub metrics: Metrics,
}

impl Handler for Worker {
    type Error = DeductError;

    async fn handle(&self, messages: &[&OwnedMessage]) -> Result<(), DeductError> {
        self.step(messages).await?;
        self.store.database().observe_pool();
        Ok(())
    }

    fn failed_dependency(error: &DeductError) -> Option<&'static str> {
        match error {
            DeductError::Lock(LockError::Contended) => None,
            DeductError::Lock(_) | DeductError::LockLost => Some("redis"),
            DeductError::Store(_) => Some("stock_store"),
            DeductError::Kafka(_) | DeductError::Wire(_) => Some("kafka"),
        }
    }
}

impl Worker {
    /// Does one batch: it is decided in one transaction, its outcomes are with the broker when this returns, and poison is set
    /// aside. Answers how many orders got their outcome now.
    pub async fn step(&self, messages: &[&OwnedMessage]) -> Result<usize, DeductError> {
        let (events, poison) = self.decode(messages);
        let mut decided = 0;
        if !events.is_empty() {
            let decisions = self.decide(&events).await?;
            crash_point("deduct.committed");
            self.count(&events, &decisions.outcomes);
            let publishing = Instant::now();
            self.publish(&decisions.statuses).await?;
            crash_point("deduct.published");
            self.stage("publish", publishing);
            decided = decisions.outcomes.len();
        }
        if !poison.is_empty() {
            self.dead_letters.set_aside(&poison).await?;
        }
        Ok(decided)
    }

    fn decode<'m>(
        &self,
        messages: &[&'m OwnedMessage],
    ) -> (Vec<OrderEvent>, Vec<(&'m OwnedMessage, &'static str, String)>) {
        let (mut events, mut poison) = (Vec::with_capacity(messages.len()), Vec::new());
        for message in messages {
            match self.events.decode(message.payload().unwrap_or_default()) {
                Ok(event) => events.push(event),
                Err(error) => poison.push((*message, error.class(), error.to_string())),
            }
        }
        (events, poison)
    }

    /// Locks the batch's products, decides it, and unlocks them.
    pub async fn decide(&self, events: &[OrderEvent]) -> Result<Decisions, DeductError> {
        let products: BTreeSet<_> =
            events.iter().flat_map(|event| event.lines.as_slice()).map(|line| line.product_id().clone()).collect();
        let products: Vec<_> = products.into_iter().collect();
        let locking = Instant::now();
        let held = self.locks.acquire(&products).await?;
        crash_point("deduct.locked");
        self.stage("lock", locking);
        let deciding = Instant::now();
        let decided = if held.is_lost() {
            Err(DeductError::LockLost)
        } else {
            self.store.decide(events, self.locks.guard(), Utc::now()).await.map_err(DeductError::from)
        };
        self.stage("transaction", deciding);
        let unlocking = Instant::now();
        held.release().await;
        self.stage("unlock", unlocking);
        decided
    }

    async fn publish(&self, statuses: &[(OrderId, ReportedStatus)]) -> Result<(), DeductError> {
        let occurred_at = Utc::now();
        let messages = statuses.iter().map(|(order_id, status)| {
            let (order_id, status, source) = (*order_id, status.clone(), WORKER_SOURCE.to_owned());
            let payload = self.statuses.encode(&OrderStatus { order_id, status, source, occurred_at })?;
            Ok(Message { key: Some(order_id.to_string().into_bytes()), payload: Some(payload), headers: None })
        });
        let messages = messages.collect::<Result<Vec<_>, WireError>>()?;
        Ok(self.producer.produce(&self.status_topic, messages).await?)
    }

    fn count(&self, events: &[OrderEvent], outcomes: &BTreeMap<OrderId, Outcome>) {
        self.metrics.batch_orders.observe(f64::from(u32::try_from(events.len()).unwrap_or(u32::MAX)));
        let strategy = self.locks.strategy().as_str();
        let now: DateTime<Utc> = Utc::now();
        let accepted: BTreeMap<_, _> = events.iter().map(|event| (event.order_id, event.accepted_at)).collect();
        for (order_id, outcome) in outcomes {
            let label = match outcome {
                Outcome::Completed(_) => "COMPLETED",
                Outcome::Failed(_) => "FAILED",
                Outcome::Released(_) => "RELEASED",
            };
            self.metrics.orders_decided.with_label_values(&[label, strategy]).inc();
            if let Some(accepted_at) = accepted.get(order_id) {
                self.metrics.order_latency.observe((now - *accepted_at).as_seconds_f64().max(0.0));
            }
        }
    }

    fn stage(&self, stage: &str, begun: Instant) {
        self.metrics.batch_seconds.with_label_values(&[stage]).observe(begun.elapsed().as_secs_f64());
    }
}
