//! The worker: takes order events, deducts stock, and reports the outcomes.
//!
//! A batch passes these steps:
//!
//! 1. Decode the messages.
//! 2. Lock the products. Orders whose products other workers hold are deferred.
//! 3. Decide the other orders in one transaction: stock, outcomes and ledger.
//! 4. Unlock.
//! 5. Report the outcomes on the status topic, and publish the levels of the products.
//!
//! Every step may be repeated without harm. Only after the last one may the lane store offsets.
//!
//! `adjustments.rs` takes requests to adjust stock from a topic of their own. `traced.rs` makes the
//! spans of orders that are traced.

mod adjustments;
mod selection;
mod traced;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use chrono::{DateTime, SecondsFormat, Utc};
use rdkafka::{Message as _, message::OwnedMessage};
use tokio::time::Instant;

pub(crate) use adjustments::{Adjuster, check_request_age, refusal};
pub use selection::Arrived;
use selection::select;

use crate::{
    config::LockStrategy,
    crash_point::crash_point,
    domain::{
        OrderEvent, OrderId, OrderStatus, ProductId, ReportedStatus, TracedOrders,
        fold::{Decisions, Outcome},
    },
    kafka::{
        DeadLetterReason, Done, Fate, Handler, Message, ProduceError, Producer, Unpublished,
        trace_parent,
    },
    levels::{LevelError, Levels},
    lock::{Acquired, LockError, Locks},
    store::{StockStore, StoreError},
    telemetry::{BatchSpan, ConsumerTraces, Metrics, order_log},
    wire::{OrderEventCodec, OrderStatusCodec, WireError},
};

/// Why a batch was not decided or its outcomes were not reported. `Worker::fate` says what follows.
#[derive(Debug, thiserror::Error)]
pub enum DeductError {
    /// No majority of the Redis masters answered: an outage.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The transaction failed, or its locks were lost: an outage, a rival, or an order that the
    /// store rejects.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the broker did not take the outcomes: {0}")]
    Kafka(#[from] ProduceError),
    #[error(transparent)]
    Levels(#[from] LevelError),
    /// The broker acknowledged all other outcomes.
    #[error("some outcomes are too large for the broker: {source}")]
    TooLarge { unpublished: Unpublished, source: ProduceError },
}

/// Decides batches of order events.
pub struct Worker {
    pub store: StockStore,
    pub locks: Locks,
    pub producer: Producer,
    pub events: Arc<OrderEventCodec>,
    pub statuses: Arc<OrderStatusCodec>,
    pub status_topic: Arc<str>,
    /// `None`: levels are off.
    pub levels: Option<Levels>,
    pub metrics: Metrics,
    pub traces: ConsumerTraces,
}

/// A batch that was decided.
#[derive(Debug, Default)]
pub struct Decided {
    pub decisions: Decisions,
    /// The products whose levels are to be published, sorted. Empty if levels are off.
    touched: Vec<ProductId>,
    /// Whether the broker has acknowledged the statuses. A repetition for the levels alone does not
    /// repeat them.
    is_reported: AtomicBool,
    /// The orders that are traced.
    traced: TracedOrders,
    /// Ends when the batch is published.
    span: BatchSpan,
}

impl Handler for Worker {
    type Decoded = Result<Arrived, WireError>;
    type Handled = Decided;
    type Error = DeductError;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded {
        let event = self.events.decode(message.payload().unwrap_or_default())?;
        order_log::received(message, event.order_id, event.kind.as_str());
        let trace =
            self.traces.received(message.partition(), message.offset(), || trace_parent(message));
        Ok(Arrived { event, at: Instant::now(), trace })
    }

    fn is_pending(&self, message: &Self::Decoded) -> bool {
        message.as_ref().is_err_and(WireError::is_pending)
    }

    /// Decides the events in one transaction. Defers those whose products other workers hold.
    ///
    /// Fails as [`Worker::decide`] does.
    async fn handle(&self, messages: &[Self::Decoded]) -> Result<Done<Decided>, DeductError> {
        let (numbers, arrived): (Vec<_>, Vec<_>) = messages
            .iter()
            .enumerate()
            .filter_map(|(number, message)| Some((number, message.as_ref().ok()?)))
            .unzip();
        if arrived.is_empty() {
            return Ok(Done::default());
        }
        let traced = arrived.iter().filter_map(|arrived| arrived.trace.as_deref());
        let mut span = self.traces.batch(arrived.len(), traced);
        let decided = self.decide_in(&arrived, &span).await.inspect_err(|error| span.fail(error));
        let Done { handled: decisions, deferred } = decided?;
        crash_point("deduct.committed");
        self.store.database().observe_pool();
        let touched = match self.levels {
            Some(_) => touched(&without(&arrived, &deferred), &decisions),
            None => Vec::new(),
        };
        let traced = traced::decided(&arrived, &deferred, &decisions, &span);
        let is_reported = AtomicBool::new(false);
        let handled = Decided { decisions, touched, is_reported, traced, span };
        // The batch has numbers of its own, without the messages that cannot be decoded.
        Ok(Done { handled, deferred: deferred.into_iter().map(|number| numbers[number]).collect() })
    }

    /// Dead-letters messages that cannot be decoded, and events of orders that are expired or from
    /// the future.
    fn dead_letter_reason(
        &self,
        message: &Self::Decoded,
        Decided { decisions, .. }: &Decided,
    ) -> Option<DeadLetterReason> {
        match message {
            Err(error) => Some(DeadLetterReason { class: error.class(), text: error.to_string() }),
            Ok(Arrived { event, .. }) if decisions.expired.contains(&event.order_id) => {
                Some(expired(event.order_id))
            }
            Ok(Arrived { event, .. }) if decisions.from_future.contains(&event.order_id) => {
                Some(from_future(event.order_id))
            }
            Ok(_) => None,
        }
    }

    /// Reports the outcomes on the status topic, also those of orders that were decided before, and
    /// publishes the levels of the products.
    ///
    /// Fails with [`DeductError::Levels`] if a level is not published, with [`DeductError::Kafka`]
    /// unless the broker acknowledges all statuses, and with [`DeductError::TooLarge`] if it
    /// acknowledges all but those that are too large for it.
    async fn publish(&self, decided: &Decided) -> Result<(), DeductError> {
        let begun = Instant::now();
        let (published, reported) =
            tokio::join!(self.publish_levels(&decided.touched), self.report_once(decided));
        // A status that is too large is not repeated, so the levels come first.
        published?;
        reported?;
        crash_point("deduct.published");
        self.observe_stage("publish", begun);
        Ok(())
    }

    fn unpublished(error: &DeductError) -> Option<&Unpublished> {
        match error {
            DeductError::TooLarge { unpublished, .. } => Some(unpublished),
            DeductError::Lock(_)
            | DeductError::Store(_)
            | DeductError::Kafka(_)
            | DeductError::Levels(_) => None,
        }
    }

    fn fate(error: &DeductError) -> Fate {
        match error {
            DeductError::Lock(_) | DeductError::Store(StoreError::LocksLost) => {
                Fate::Retry("redis")
            }
            DeductError::Store(StoreError::Refused(_) | StoreError::Unencodable(_)) => {
                Fate::Reject("refused")
            }
            DeductError::Store(StoreError::Corrupt(_)) => Fate::Reject("damaged"),
            DeductError::Store(
                StoreError::Conflict(_)
                | StoreError::Duplicate(_)
                | StoreError::Unavailable(_)
                | StoreError::CommitUnknown(_)
                | StoreError::Unsupported(_)
                | StoreError::Migration(_),
            ) => Fate::Retry("stock_store"),
            DeductError::Levels(error) => Fate::Retry(error.dependency()),
            DeductError::Kafka(_) | DeductError::TooLarge { .. } => Fate::Retry("kafka"),
        }
    }
}

fn expired(id: OrderId) -> DeadLetterReason {
    let text = format!(
        "order {id} is of {}, and retention.outcomes keeps no outcomes as old as that",
        made_at(id)
    );
    DeadLetterReason { class: "expired", text }
}

fn from_future(id: OrderId) -> DeadLetterReason {
    let text = format!("order {id} is of {}, more than a day ahead", made_at(id));
    DeadLetterReason { class: "invalid", text }
}

fn made_at(id: OrderId) -> String {
    id.made_at().to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Worker {
    /// Locks the products of a batch, decides the batch in one transaction, and unlocks.
    ///
    /// Orders whose products other workers hold are deferred: at once if at least half of the batch
    /// can be decided without them, else after `lock.wait`. If no order can be decided then, all of
    /// them are deferred.
    ///
    /// Fails with [`DeductError::Lock`] if no majority of the Redis masters answers, and with
    /// [`DeductError::Store`] if the transaction fails or the locks are lost before its commit.
    pub async fn decide(&self, arrived: &[&Arrived]) -> Result<Done<Decisions>, DeductError> {
        self.decide_in(arrived, &BatchSpan::default()).await
    }

    /// [`Worker::decide`], with the stages as spans below `span`.
    async fn decide_in(
        &self,
        arrived: &[&Arrived],
        span: &BatchSpan,
    ) -> Result<Done<Decisions>, DeductError> {
        let begun = Instant::now();
        let since = arrived.iter().map(|arrived| arrived.at).min().unwrap_or(begun);
        let acquired = self.locks.acquire(since, |refused| select(arrived, refused)).await;
        let Acquired { held, selection } = match acquired {
            Ok(acquired) => acquired,
            Err(LockError::Contended) => {
                self.observe_stage("lock", begun);
                span.stage("lock", begun);
                let deferred = (0..arrived.len()).collect();
                return Ok(Done { handled: Decisions::default(), deferred });
            }
            Err(LockError::Unavailable) => return Err(LockError::Unavailable.into()),
        };
        crash_point("deduct.locked");
        self.observe_stage("lock", begun);
        span.stage("lock", begun);
        let begun = Instant::now();
        let deferred = selection.deferred;
        let events = without(arrived, &deferred);
        let decided =
            self.store.decide(&events, held.guard(), Utc::now(), || !held.is_lost()).await;
        self.observe_stage("transaction", begun);
        span.transaction("stock_store decide", begun, events.len(), &decided);
        let begun = Instant::now();
        let strategy = held.strategy();
        held.release().await;
        self.observe_stage("unlock", begun);
        span.stage("unlock", begun);
        let handled = decided?;
        self.count(&events, &handled.outcomes, strategy);
        log(arrived, &handled, &deferred);
        Ok(Done { handled, deferred })
    }

    async fn publish_levels(&self, products: &[ProductId]) -> Result<(), LevelError> {
        match &self.levels {
            Some(levels) => levels.publish(products).await,
            None => Ok(()),
        }
    }

    /// Reports the outcomes, unless an earlier attempt did. Fails as [`Worker::report`] does.
    async fn report_once(&self, decided: &Decided) -> Result<(), DeductError> {
        if !decided.is_reported.load(Ordering::Relaxed) {
            let begun = Instant::now();
            self.report(&decided.decisions.statuses, &decided.traced).await?;
            let statuses = decided.decisions.statuses.len();
            decided.span.sent(&self.status_topic, statuses, begun);
            decided.is_reported.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Fails with [`DeductError::Kafka`] or [`DeductError::TooLarge`].
    async fn report(
        &self,
        statuses: &[OrderStatus],
        traced: &TracedOrders,
    ) -> Result<(), DeductError> {
        let sending = self.traces.process().sending(&self.status_topic, traced);
        let messages = statuses.iter().map(|status| {
            Message::of_status(&self.statuses, status).traced(sending.context(status.order_id))
        });
        let produced = self.producer.produce(&self.status_topic, messages.collect()).await;
        sending.ended(&produced);
        produced.map_err(|source| match &source {
            ProduceError::TooLarge { numbers, .. } => {
                let keys = numbers
                    .iter()
                    .map(|number| statuses[*number].order_id.to_string().into_bytes());
                DeductError::TooLarge { unpublished: keys.collect(), source }
            }
            ProduceError::Kafka(_) => source.into(),
        })
    }

    /// Counts the batch, its new outcomes, and how long each order waited since it was accepted.
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
            let labels = [outcome.as_str(), strategy.as_str()];
            self.metrics.orders_decided.with_label_values(&labels).inc();
            if let Some(accepted_at) = accepted.get(order_id) {
                self.metrics.order_latency.observe((now - *accepted_at).as_seconds_f64().max(0.0));
            }
        }
    }

    fn observe_stage(&self, stage: &'static str, begun: Instant) {
        self.metrics
            .batch_seconds
            .with_label_values(&[stage])
            .observe(begun.elapsed().as_secs_f64());
    }
}

/// Writes a log line for each order of a batch, if these lines are on.
fn log(arrived: &[&Arrived], decisions: &Decisions, deferred: &[usize]) {
    if !order_log::is_on() {
        return;
    }
    for status in &decisions.statuses {
        let (id, is_released) = (status.order_id, status.status == ReportedStatus::Released);
        let is_new = decisions.outcomes.contains_key(&id) || decisions.released.contains(&id);
        order_log::decided(status, !is_new && !is_released);
    }
    for number in deferred {
        order_log::deferred(arrived[*number].event.order_id);
    }
}

/// The products whose levels a batch publishes, sorted: those on which its decisions rest, and all
/// products of orders that were decided before. A worker may have died before it published those.
fn touched(events: &[&OrderEvent], decisions: &Decisions) -> Vec<ProductId> {
    let repeated = events.iter().filter(|event| !decisions.outcomes.contains_key(&event.order_id));
    let lines = repeated.flat_map(|event| event.lines.as_slice());
    let mut products: BTreeSet<_> = lines.map(|line| line.product_id().clone()).collect();
    products.extend(decisions.available.keys().cloned());
    products.into_iter().collect()
}

/// The events of a batch but the deferred ones. `deferred` is ascending.
fn without<'a>(batch: &[&'a Arrived], deferred: &[usize]) -> Vec<&'a OrderEvent> {
    let mut deferred = deferred.iter().copied().peekable();
    let kept = batch.iter().enumerate().filter(|(number, _)| deferred.next_if_eq(number).is_none());
    kept.map(|(_, arrived)| &arrived.event).collect()
}
