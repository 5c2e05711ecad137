//! The worker: orders in, stock deducted, outcomes out.

mod selection;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chrono::{DateTime, SecondsFormat, Utc};
use rdkafka::{Message as _, message::OwnedMessage};
use tokio::time::Instant;

pub use selection::Arrived;
pub(crate) use selection::Selection;

use crate::{
    config::LockStrategy,
    crash_point::crash_point,
    domain::{
        OrderEvent, OrderId, OrderStatus, ProductId, ReportedStatus, WORKER_SOURCE,
        fold::{Decisions, Outcome},
    },
    kafka::{DeadLetterReason, Done, Fate, Handler, Message, ProduceError, Producer, Unpublished},
    lock::{LockError, Locks, Patience, Wanted},
    store::{StockStore, StoreError},
    telemetry::Metrics,
    wire::{OrderEventCodec, OrderStatusCodec, WireError},
};

/// Why a batch was not done: an outage, a rival, or an order that the store refuses.
#[derive(Debug, thiserror::Error)]
pub enum DeductError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the broker did not take the outcomes: {0}")]
    Kafka(#[from] ProduceError),
    /// All others were acknowledged.
    #[error("outcomes are too large: {source}")]
    TooLarge { unpublished: Unpublished, source: ProduceError },
}

/// Decides batches of order events. Whatever it does may be repeated without harm.
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
    type Decoded = Result<Arrived, WireError>;
    type Handled = Decisions;
    type Error = DeductError;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded {
        let event = self.events.decode(message.payload().unwrap_or_default())?;
        Ok(Arrived { event, at: Instant::now() })
    }

    /// Decides the events in one transaction, but for those whose products others hold.
    async fn handle(&self, messages: &[Self::Decoded]) -> Result<Done<Decisions>, DeductError> {
        let (numbers, arrived): (Vec<_>, Vec<_>) = messages
            .iter()
            .enumerate()
            .filter_map(|(number, message)| Some((number, message.as_ref().ok()?)))
            .unzip();
        if arrived.is_empty() {
            return Ok(Done::default());
        }
        let Done { handled, deferred } = self.decide(&arrived).await?;
        crash_point("deduct.committed");
        self.store.database().observe_pool();
        Ok(Done { handled, deferred: deferred.into_iter().map(|number| numbers[number]).collect() })
    }

    /// Besides poison, events of orders that are too old to be decided are set aside.
    fn dead_letter_reason(
        &self,
        message: &Self::Decoded,
        decisions: &Decisions,
    ) -> Option<DeadLetterReason> {
        match message {
            Err(error) => Some(DeadLetterReason { class: error.class(), text: error.to_string() }),
            Ok(Arrived { event, .. }) if decisions.untimely.contains(&event.order_id) => {
                Some(untimely(event.order_id, Utc::now()))
            }
            Ok(_) => None,
        }
    }

    /// Tells the outcomes, also those of orders that were decided before.
    async fn publish(&self, decisions: &Decisions) -> Result<(), DeductError> {
        let begun = Instant::now();
        self.report(&decisions.statuses).await?;
        crash_point("deduct.published");
        self.stage("publish", begun);
        Ok(())
    }

    fn unpublished(error: &DeductError) -> Option<&Unpublished> {
        if let DeductError::TooLarge { unpublished, .. } = error { Some(unpublished) } else { None }
    }

    fn fate(error: &DeductError) -> Fate {
        match error {
            DeductError::Lock(_) | DeductError::Store(StoreError::LocksLost) => {
                Fate::Retry("redis")
            }
            DeductError::Store(StoreError::Refused(_)) => Fate::Reject("refused"),
            DeductError::Store(StoreError::Damaged(_)) => Fate::Reject("damaged"),
            DeductError::Store(_) => Fate::Retry("stock_store"),
            DeductError::Kafka(_) | DeductError::TooLarge { .. } => Fate::Retry("kafka"),
        }
    }
}

/// Why an order is not decided, going by its age.
fn untimely(id: OrderId, now: DateTime<Utc>) -> DeadLetterReason {
    let made_at = id.made_at().to_rfc3339_opts(SecondsFormat::Millis, true);
    if id.made_at() > now {
        return DeadLetterReason {
            class: "invalid",
            text: format!("order {id} is of {made_at}, more than a day ahead"),
        };
    }
    let text = format!(
        "order {id} is of {made_at}, and retention.outcomes keeps no outcomes as old as that"
    );
    DeadLetterReason { class: "expired", text }
}

impl Worker {
    /// Locks the products of a batch, decides it, and unlocks them. What others have locked is left behind: at once where at least half of
    /// the batch can be decided without, and else after `lock.wait`.
    pub async fn decide(&self, arrived: &[&Arrived]) -> Result<Done<Decisions>, DeductError> {
        let begun = Instant::now();
        let mut left_behind = Vec::new();
        let choose = |held: &BTreeSet<ProductId>, patience| {
            let selection = Selection::without(held, arrived.iter().copied());
            left_behind = selection.left_behind;
            let waits = patience == Patience::Left && left_behind.len() > arrived.len() / 2;
            if waits { Wanted::nothing() } else { selection.wanted }
        };
        let held = match self.locks.acquire(choose).await {
            Ok(held) => held,
            Err(LockError::Contended) => {
                self.stage("lock", begun);
                return Ok(Done {
                    handled: Decisions::default(),
                    deferred: (0..arrived.len()).collect(),
                });
            }
            Err(error) => return Err(error.into()),
        };
        crash_point("deduct.locked");
        self.stage("lock", begun);
        let begun = Instant::now();
        let mut behind = left_behind.iter().copied().peekable();
        let chosen =
            arrived.iter().enumerate().filter(|(number, _)| behind.next_if_eq(number).is_none());
        let events: Vec<_> = chosen.map(|(_, arrived)| &arrived.event).collect();
        let decided =
            self.store.decide_while(|| !held.is_lost(), &events, held.guard(), Utc::now()).await;
        self.stage("transaction", begun);
        let begun = Instant::now();
        let strategy = held.strategy();
        held.release().await;
        self.stage("unlock", begun);
        let handled = decided?;
        self.count(&events, &handled.outcomes, strategy);
        Ok(Done { handled, deferred: left_behind })
    }

    async fn report(&self, statuses: &[(OrderId, ReportedStatus)]) -> Result<(), DeductError> {
        let occurred_at = Utc::now();
        let messages = statuses.iter().map(|(order_id, status)| {
            let (order_id, status, source) = (*order_id, status.clone(), WORKER_SOURCE.to_owned());
            let payload =
                self.statuses.encode(&OrderStatus { order_id, status, source, occurred_at });
            Message::of_order(order_id, payload)
        });
        let produced = self.producer.produce(&self.status_topic, messages.collect()).await;
        produced.map_err(|source| match &source {
            ProduceError::TooLarge { numbers, .. } => {
                let keys =
                    numbers.iter().map(|number| statuses[*number].0.to_string().into_bytes());
                DeductError::TooLarge { unpublished: keys.collect(), source }
            }
            ProduceError::Kafka(_) => source.into(),
        })
    }

    fn count(
        &self,
        events: &[&OrderEvent],
        outcomes: &BTreeMap<OrderId, Outcome>,
        strategy: LockStrategy,
    ) {
        self.metrics
            .batch_orders
            .observe(f64::from(u32::try_from(events.len()).unwrap_or(u32::MAX)));
        let now: DateTime<Utc> = Utc::now();
        let accepted: BTreeMap<_, _> =
            events.iter().map(|event| (event.order_id, event.accepted_at)).collect();
        for (order_id, outcome) in outcomes {
            let label = match outcome {
                Outcome::Completed(_) => "COMPLETED",
                Outcome::Failed(_) => "FAILED",
                Outcome::Released(_) => "RELEASED",
            };
            self.metrics.orders_decided.with_label_values(&[label, strategy.as_str()]).inc();
            if let Some(accepted_at) = accepted.get(order_id) {
                self.metrics.order_latency.observe((now - *accepted_at).as_seconds_f64().max(0.0));
            }
        }
    }

    fn stage(&self, stage: &'static str, begun: Instant) {
        self.metrics
            .batch_seconds
            .with_label_values(&[stage])
            .observe(begun.elapsed().as_secs_f64());
    }
}
