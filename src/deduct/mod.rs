//! The worker: orders in, stock deducted, outcomes out.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use chrono::{DateTime, SecondsFormat, Utc};
use rdkafka::{Message as _, message::OwnedMessage};

use crate::{
    crash_point::crash_point,
    domain::{
        OrderEvent, OrderId, OrderStatus, ReportedStatus, WORKER_SOURCE,
        fold::{Decisions, Outcome},
    },
    kafka::{Fate, Handler, Message, Producer, Refusal},
    lock::{LockError, Locks},
    store::{StockStore, StoreError},
    telemetry::Metrics,
    wire::{OrderEventCodec, OrderStatusCodec, WireError},
};

/// Why a batch was not done: an outage, a rival, or an order that the store refuses.
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
    pub events: Arc<OrderEventCodec>,
    pub statuses: Arc<OrderStatusCodec>,
    pub status_topic: Arc<str>,
    pub metrics: Metrics,
}

impl Handler for Worker {
    type Decoded = Result<OrderEvent, WireError>;
    type Handled = Decisions;
    type Error = DeductError;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded {
        self.events.decode(message.payload().unwrap_or_default())
    }

    /// Decides the events in one transaction.
    async fn handle(&self, messages: &[Self::Decoded]) -> Result<Decisions, DeductError> {
        let events: Vec<_> = messages.iter().flatten().collect();
        if events.is_empty() {
            return Ok(Decisions::default());
        }
        let decisions = self.decide(&events).await?;
        crash_point("deduct.committed");
        self.count(&events, &decisions.outcomes);
        self.store.database().observe_pool();
        Ok(decisions)
    }

    /// Besides poison, events of orders that are too old to be decided are set aside.
    fn refusal(&self, event: &Self::Decoded, decisions: &Decisions) -> Option<Refusal> {
        match event {
            Err(error) => Some(Refusal { class: error.class(), text: error.to_string() }),
            Ok(event) if decisions.untimely.contains(&event.order_id) => Some(untimely(event.order_id, Utc::now())),
            Ok(_) => None,
        }
    }

    /// Tells the outcomes, also those of orders that were decided before.
    async fn publish(&self, _: &[Self::Decoded], decisions: &Decisions) -> Result<(), DeductError> {
        let begun = Instant::now();
        self.report(&decisions.statuses).await?;
        crash_point("deduct.published");
        self.stage("publish", begun);
        Ok(())
    }

    fn fate(error: &DeductError) -> Fate {
        match error {
            DeductError::Lock(LockError::Contended) => Fate::Contended,
            DeductError::Lock(_) | DeductError::LockLost => Fate::Unavailable("redis"),
            DeductError::Store(StoreError::Refused(_)) => Fate::Refused("refused"),
            DeductError::Store(StoreError::Damaged(_)) => Fate::Refused("damaged"),
            DeductError::Store(_) => Fate::Unavailable("stock_store"),
            DeductError::Kafka(_) | DeductError::Wire(_) => Fate::Unavailable("kafka"),
        }
    }
}

/// Why an order is not decided, going by its age.
fn untimely(id: OrderId, now: DateTime<Utc>) -> Refusal {
    let made_at = id.made_at().to_rfc3339_opts(SecondsFormat::Millis, true);
    if id.made_at() > now {
        return Refusal { class: "invalid", text: format!("order {id} is of {made_at}, more than a day ahead") };
    }
    let text = format!("order {id} is of {made_at}, and retention.outcomes keeps no outcomes as old as that");
    Refusal { class: "expired", text }
}

impl Worker {
    /// Locks the products of a batch, decides it, and unlocks them.
    pub async fn decide<E: Borrow<OrderEvent> + Sync>(&self, events: &[E]) -> Result<Decisions, DeductError> {
        let products: BTreeSet<_> = events
            .iter()
            .map(E::borrow)
            .flat_map(|event| event.lines.as_slice())
            .map(|line| line.product_id().clone())
            .collect();
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

    async fn report(&self, statuses: &[(OrderId, ReportedStatus)]) -> Result<(), DeductError> {
        let occurred_at = Utc::now();
        let messages = statuses.iter().map(|(order_id, status)| {
            let (order_id, status, source) = (*order_id, status.clone(), WORKER_SOURCE.to_owned());
            let payload = self.statuses.encode(&OrderStatus { order_id, status, source, occurred_at })?;
            Ok(Message { key: Some(order_id.to_string().into_bytes()), payload: Some(payload), headers: None })
        });
        let messages = messages.collect::<Result<Vec<_>, WireError>>()?;
        Ok(self.producer.produce(&self.status_topic, messages).await?)
    }

    fn count(&self, events: &[&OrderEvent], outcomes: &BTreeMap<OrderId, Outcome>) {
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

    fn stage(&self, stage: &'static str, begun: Instant) {
        self.metrics.batch_seconds.with_label_values(&[stage]).observe(begun.elapsed().as_secs_f64());
    }
}
