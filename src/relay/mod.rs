//! From the outbox to the `orders` topic: at once after a commit, and by a sweep where a crash or an outage came between.

mod oldest;
mod pending;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Semaphore;

use crate::{
    backoff::Backoff,
    crash_point::crash_point,
    domain::{EventKind, OrderEvent, OrderId},
    kafka::{Message, Producer},
    lifecycle::Shutdown,
    store::{OrderStore, StoreError},
    telemetry::{Component, Metrics},
    wire::{OrderEventCodec, WireError},
};

pub use pending::{PendingWatch, Turn};

/// How long whoever commits an event has to publish it before a sweep does.
pub const COMMITTER_LEASE: Duration = Duration::from_secs(2);
/// How long a sweep has; longer than a delivery may take.
const SWEEP_LEASE: Duration = Duration::from_secs(15);
/// How long events that are published stay in the outbox, so that many are struck out at once.
pub const STRIKE_OUT_AFTER: Duration = Duration::from_millis(25);
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const SWEEP_MAX: u32 = 500;
/// Groups that are published at once; beyond them the sweep publishes.
const MAX_PUBLISHING: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the broker did not take the events: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("an event does not encode: {0}")]
    Wire(#[from] WireError),
}

/// Publishes events that are in the outbox, and strikes them out there. An event may be published more often than once.
#[derive(Clone)]
pub struct Relay {
    store: OrderStore,
    producer: Producer,
    topic: Arc<str>,
    codec: Arc<OrderEventCodec>,
    publishing: Arc<Semaphore>,
    /// Events that the broker has acknowledged and that are still in the outbox.
    published: Arc<Mutex<Vec<(OrderId, EventKind)>>>,
}

impl Relay {
    pub fn new(store: OrderStore, producer: Producer, topic: &str, codec: Arc<OrderEventCodec>) -> Self {
        let publishing = Arc::new(Semaphore::new(MAX_PUBLISHING));
        Self { store, producer, topic: topic.into(), codec, publishing, published: Arc::default() }
    }

    /// Publishes events that were just committed. Where it fails, their outbox rows stay, and a sweep publishes them.
    pub fn publish_in_background(&self, events: Vec<OrderEvent>) {
        if events.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.publishing).try_acquire_owned() else { return };
        let relay = self.clone();
        tokio::spawn(async move {
            if let Err(error) = relay.publish(&events).await {
                tracing::warn!(events = events.len(), %error, "not published, left to the sweep");
            }
            drop(permit);
        });
    }

    /// Waits for what [`Relay::publish_in_background`] began.
    pub async fn drain(&self) {
        let all = u32::try_from(MAX_PUBLISHING).unwrap_or(u32::MAX);
        let _closed = self.publishing.acquire_many(all).await;
    }

    async fn publish(&self, events: &[OrderEvent]) -> Result<(), RelayError> {
        let messages = events.iter().map(|event| {
            let payload = Some(self.codec.encode(event)?);
            Ok(Message { key: Some(event.order_id.to_string().into_bytes()), payload, headers: None })
        });
        let messages = messages.collect::<Result<Vec<_>, WireError>>()?;
        crash_point("relay.producing");
        self.producer.produce(&self.topic, messages).await?;
        crash_point("relay.produced");
        self.strike_out(events.iter().map(|event| (event.order_id, event.kind))).await
    }

    /// Strikes events out of the outbox, together with what others publish meanwhile: the first of them does it for all.
    async fn strike_out(&self, published: impl Iterator<Item = (OrderId, EventKind)>) -> Result<(), RelayError> {
        let is_first = {
            let mut waiting = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            let is_first = waiting.is_empty();
            waiting.extend(published);
            is_first
        };
        if !is_first {
            return Ok(());
        }
        tokio::time::sleep(STRIKE_OUT_AFTER).await;
        let published = std::mem::take(&mut *self.published.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(self.store.forget_published(published).await?)
    }

    /// Publishes what is due in the outbox, as much as one sweep takes. Answers how many events that were.
    pub async fn sweep(&self) -> Result<usize, RelayError> {
        let events = self.store.claim_outbox(SWEEP_MAX, SWEEP_LEASE).await?;
        if !events.is_empty() {
            self.publish(&events).await?;
            tracing::info!(events = events.len(), "published from the outbox");
        }
        Ok(events.len())
    }

    /// Sweeps, and keeps the gauges of the outbox, until a stop is requested.
    pub async fn run(self, metrics: Metrics, health: Component, shutdown: Shutdown) {
        let mut failures = Backoff::default();
        while !shutdown.is_requested() {
            let delay = match self.turn(&metrics).await {
                Ok(published) => {
                    failures = Backoff::default();
                    health.ready();
                    if published == SWEEP_MAX as usize { Duration::ZERO } else { SWEEP_EVERY }
                }
                Err(error) => {
                    tracing::warn!(%error, "the outbox was not swept");
                    let dependency = if let RelayError::Store(_) = error {
                        health.not_ready(error.to_string());
                        "order_store"
                    } else {
                        // Orders are taken without the broker, up to `ingest.outbox_max`.
                        health.ready();
                        "kafka"
                    };
                    metrics.retries.with_label_values(&[dependency]).inc();
                    failures.next_delay().max(SWEEP_EVERY)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.requested() => {}
            }
        }
        self.drain().await;
    }

    async fn turn(&self, metrics: &Metrics) -> Result<usize, RelayError> {
        let published = self.sweep().await;
        let state = self.store.outbox_state().await?;
        metrics.outbox_pending.set(i64::try_from(state.pending).unwrap_or(i64::MAX));
        let age = state.oldest.map_or(0.0, |oldest| (chrono::Utc::now() - oldest).as_seconds_f64().max(0.0));
        metrics.outbox_oldest.set(age);
        self.store.database().observe_pool();
        published
    }
}
