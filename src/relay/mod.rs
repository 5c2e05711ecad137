//! From the outbox to the `orders` topic: at once after a commit, and by a sweep where a crash or
//! an outage came between. The same for releases, which are owed until a worker has reported them
//! as done.

mod oldest;
mod pending;
mod releases;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::Semaphore;

use crate::{
    backoff::Backoff,
    crash_point::crash_point,
    domain::{EventKind, OrderEvent, OrderId},
    kafka::{Message, ProduceError, Producer},
    lifecycle::Shutdown,
    store::{OrderStore, StoreError},
    telemetry::{Component, Metrics},
    wire::OrderEventCodec,
};

pub use pending::{PendingWatch, Turn};
pub use releases::{ReleasePass, ReleaseWatch};

/// How long whoever commits an event has to publish it before a sweep does.
pub(crate) const COMMITTER_LEASE: Duration = Duration::from_secs(2);
/// How long a sweep has; longer than a delivery may take.
const SWEEP_LEASE: Duration = Duration::from_secs(15);
/// How long events that are published stay in the outbox, so that many are struck out at once.
pub(crate) const STRIKE_OUT_AFTER: Duration = Duration::from_millis(25);
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const SWEEP_MAX: u32 = 500;
/// Groups that are published at once; beyond them the sweep publishes.
const MAX_PUBLISHING: usize = 64;
/// The longest wait between two times that an event is published.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the broker did not take the events: {0}")]
    Kafka(#[from] ProduceError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Publishes events that are in the outbox, and strikes them out there. An event may be published more often than once.
#[derive(Clone)]
pub struct Relay {
    store: OrderStore,
    producer: Producer,
    topic: Arc<str>,
    codec: Arc<OrderEventCodec>,
    /// How long an order may be pending, or a release owed, before its event is published again.
    again_after: Duration,
    publishing: Arc<Semaphore>,
    /// Events that the broker has acknowledged and that are still in the outbox.
    published: Arc<Mutex<Vec<(OrderId, EventKind)>>>,
}

/// What came of producing events.
struct Produced<'e> {
    acknowledged: Vec<&'e OrderEvent>,
    result: Result<(), ProduceError>,
}

impl Relay {
    /// An event is published again when it is without its effect for `again_after`, and then after
    /// twice as long each time.
    pub fn new(
        store: OrderStore,
        producer: Producer,
        topic: &str,
        codec: Arc<OrderEventCodec>,
        again_after: Duration,
    ) -> Self {
        let publishing = Arc::new(Semaphore::new(MAX_PUBLISHING));
        Self {
            store,
            producer,
            topic: topic.into(),
            codec,
            again_after,
            publishing,
            published: Arc::default(),
        }
    }

    /// Publishes events that were just committed. Where it fails, their outbox rows stay, and a sweep publishes them.
    pub(crate) fn publish_in_background(&self, events: Vec<OrderEvent>) {
        let relay = self.clone();
        self.in_background(events, async move |events| relay.publish(&events).await);
    }

    fn in_background<W>(&self, events: Vec<OrderEvent>, work: impl FnOnce(Vec<OrderEvent>) -> W)
    where
        W: Future<Output = Result<(), RelayError>> + Send + 'static,
    {
        if events.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.publishing).try_acquire_owned() else { return };
        let (count, work) = (events.len(), work(events));
        tokio::spawn(async move {
            if let Err(error) = work.await {
                tracing::warn!(events = count, %error, "not published, left to the sweep");
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
        let Produced { acknowledged, result } = self.produce(events).await;
        self.strike_out(acknowledged.iter().map(|event| (event.order_id, event.kind))).await?;
        Ok(result?)
    }

    /// Produces events. Some may be acknowledged although others fail.
    async fn produce<'e>(&self, events: &'e [OrderEvent]) -> Produced<'e> {
        let messages =
            events.iter().map(|event| Message::of_order(event.order_id, self.codec.encode(event)));
        crash_point("relay.producing");
        let result = self.producer.produce(&self.topic, messages.collect()).await;
        let acknowledged = match &result {
            Ok(()) => events.iter().collect(),
            Err(ProduceError::TooLarge { numbers, .. }) => {
                let too_large: HashSet<_> = numbers.iter().copied().collect();
                let numbered = events.iter().enumerate();
                numbered
                    .filter(|(number, _)| !too_large.contains(number))
                    .map(|(_, event)| event)
                    .collect()
            }
            Err(ProduceError::Kafka(_)) => Vec::new(),
        };
        if !acknowledged.is_empty() {
            crash_point("relay.produced");
        }
        Produced { acknowledged, result }
    }

    /// How long to wait after an event was published `times` times: each time twice as long, a day
    /// at most.
    fn wait_after(&self, times: u32) -> Duration {
        let doublings = times.saturating_sub(1).min(30);
        self.again_after.saturating_mul(1 << doublings).min(LONGEST_WAIT.max(self.again_after))
    }

    /// Strikes events out of the outbox, together with what others publish meanwhile: the first of them does it for all.
    async fn strike_out(
        &self,
        published: impl Iterator<Item = (OrderId, EventKind)>,
    ) -> Result<(), RelayError> {
        let is_first = {
            let mut waiting = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            let was_empty = waiting.is_empty();
            waiting.extend(published);
            was_empty && !waiting.is_empty()
        };
        if !is_first {
            return Ok(());
        }
        tokio::time::sleep(STRIKE_OUT_AFTER).await;
        let published =
            std::mem::take(&mut *self.published.lock().unwrap_or_else(PoisonError::into_inner));
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
    pub(crate) async fn run(self, metrics: Metrics, health: Component, shutdown: Shutdown) {
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
        let age = state
            .oldest
            .map_or(0.0, |oldest| (chrono::Utc::now() - oldest).as_seconds_f64().max(0.0));
        metrics.outbox_oldest.set(age);
        self.store.database().observe_pool();
        published
    }
}
