//! Publishes what the order store has written: at once after a commit, and again while it lacks its
//! effect.
//!
//! | file | publishes |
//! | --- | --- |
//! | `mod` | groups of placed orders in the outbox, which a crash or an outage left there |
//! | `pending`, `oldest` | orders that stay pending, again |
//! | `announcements` | moves of orders, to `order-status` |
//! | `background` | right after a commit, a bounded number of groups at once |
//! | `changes` | what changes of orders have just committed |
//! | `releases` | releases that are owed, again until a worker reports that they are done |

mod announcements;
mod background;
mod changes;
mod oldest;
mod pending;
mod releases;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::Utc;
use futures::future::join_all;

use self::background::{Background, acknowledged};
use crate::{
    backoff::Backoff,
    crash_point::crash_point,
    domain::{OrderEvent, TracedOrders},
    kafka::{Message, ProduceError, Producer},
    lifecycle::Shutdown,
    store::{OrderStore, OutboxGroup, PublishedGroup, StoreError},
    telemetry::{Component, Metrics, Traces},
    wire::OrderEventCodec,
};

pub use announcements::Announcer;
pub(crate) use changes::publish_changes;
pub use pending::PendingPass;
pub use pending::PendingWatch;
pub use releases::ReleasePass;
pub use releases::ReleaseWatch;

/// How long the process that commits an event has to publish it. After that, a sweep publishes it.
pub const COMMITTER_LEASE: Duration = Duration::from_secs(2);
/// How long a sweep has to publish the events that it claims. A delivery takes less.
const SWEEP_LEASE: Duration = Duration::from_secs(15);
/// How long published events stay in the outbox, so that one statement deletes many.
pub const FORGET_DELAY: Duration = Duration::from_millis(25);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// The longest wait between two times that an event is published, unless the first wait is longer.
const MAX_WAIT: Duration = Duration::from_secs(86_400);
/// The wait doubles so often, which exceeds [`MAX_WAIT`].
const MAX_DOUBLINGS: u32 = 30;
/// An event that was published so often and still lacks its effect is probably dead-lettered each
/// time. Few of these events are published at once, so that they do not use up the allowance of
/// dead letters of a lane.
const LIKELY_REFUSED_AFTER: u32 = 3;

/// Why events were not published.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("the broker did not take the events: {0}")]
    Kafka(#[from] ProduceError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RelayError {
    /// The label of the dependency that failed.
    fn dependency(&self) -> &'static str {
        match self {
            Self::Kafka(_) => "kafka",
            Self::Store(_) => "order_store",
        }
    }
}

/// Publishes events of the outbox, and deletes them there. An event may be published more than
/// once.
///
/// Cheap to clone; all clones share their limits.
#[derive(Clone)]
pub struct Relay {
    store: OrderStore,
    producer: Producer,
    topic: Arc<str>,
    codec: Arc<OrderEventCodec>,
    /// How long an order may be pending, or a release owed, before its event is published again.
    again_after: Duration,
    background: Background,
    traces: Traces,
    /// Groups that the broker has acknowledged and that are still in the outbox.
    published: Arc<Mutex<Vec<PublishedGroup>>>,
}

/// The result of producing events.
struct Produced<'e> {
    acknowledged: Vec<&'e OrderEvent>,
    result: Result<(), ProduceError>,
}

impl Relay {
    /// An event that lacks its effect is published again after `again_after`, and then after twice
    /// as long each time.
    pub fn new(
        store: OrderStore,
        producer: Producer,
        topic: &str,
        codec: Arc<OrderEventCodec>,
        again_after: Duration,
    ) -> Self {
        Self {
            store,
            producer,
            topic: topic.into(),
            codec,
            again_after,
            background: Background::default(),
            traces: Traces::off(),
            published: Arc::default(),
        }
    }

    /// The relay that makes spans of the orders that are traced.
    #[must_use]
    pub(crate) fn traced(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    pub(crate) fn traces(&self) -> &Traces {
        &self.traces
    }

    /// The watch of pending orders finds an order whose id was made this long before or after it
    /// was placed.
    pub(crate) fn max_id_skew(&self) -> Duration {
        pending::max_id_skew(self.again_after)
    }

    /// Whether the codec can write. If not, nothing is claimed or published: the events stay in
    /// the outbox.
    fn can_publish(&self) -> bool {
        self.codec.can_write()
    }

    /// Publishes the events of a group that was just committed. If that fails, the group stays in
    /// the outbox, and a sweep publishes it.
    pub(crate) fn publish_in_background(&self, events: Vec<OrderEvent>, traced: TracedOrders) {
        if !self.can_publish() {
            return;
        }
        let relay = self.clone();
        self.background.publish(events, async move |events| {
            match OutboxGroup::committed(events, traced) {
                Some(group) => relay.publish(group).await,
                None => Ok(()),
            }
        });
    }

    /// Waits until no group is published in the background.
    pub async fn drain(&self) {
        self.background.drain().await;
    }

    /// Produces the events of a group. Deletes the group from the outbox once the broker has
    /// acknowledged all of them. Else the others stay there.
    async fn publish(&self, group: OutboxGroup) -> Result<(), RelayError> {
        let Produced { acknowledged, result } = self.produce(&group.events, &group.traced).await;
        if !acknowledged.is_empty() || group.events.is_empty() {
            let acknowledged: HashSet<_> =
                acknowledged.into_iter().map(|event| event.order_id).collect();
            let ids = group.events.iter().map(|event| event.order_id);
            let rest = ids.filter(|id| !acknowledged.contains(id)).chain(group.corrupt);
            self.forget(PublishedGroup::part(group.group_id, rest)).await?;
        }
        Ok(result?)
    }

    /// Produces events. The broker may acknowledge some although others fail.
    async fn produce<'e>(&self, events: &'e [OrderEvent], traced: &TracedOrders) -> Produced<'e> {
        let sending = self.traces.sending(&self.topic, traced);
        let messages = events.iter().map(|event| {
            let message = Message::of_order(event.order_id, self.codec.encode(event));
            message.traced(sending.context(event.order_id))
        });
        crash_point("relay.producing");
        let result = self.producer.produce(&self.topic, messages.collect()).await;
        sending.ended(&result);
        let acknowledged = acknowledged(events, &result);
        if !acknowledged.is_empty() {
            crash_point("relay.produced");
        }
        Produced { acknowledged, result }
    }

    /// How long an event waits after it was published `times` times: each time twice as long, a day
    /// at most.
    fn wait_after(&self, times: u32) -> Duration {
        let doublings = times.saturating_sub(1).min(MAX_DOUBLINGS);
        self.again_after.saturating_mul(1 << doublings).min(MAX_WAIT.max(self.again_after))
    }

    /// Deletes a published group from the outbox. Calls within 25 ms share one statement: the first
    /// call runs it, and the others return at once.
    async fn forget(&self, published: PublishedGroup) -> Result<(), RelayError> {
        let is_first = {
            let mut waiting = self.published.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push(published);
            waiting.len() == 1
        };
        if !is_first {
            return Ok(());
        }
        tokio::time::sleep(FORGET_DELAY).await;
        let published =
            std::mem::take(&mut *self.published.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(self.store.forget_published(published).await?)
    }

    /// Publishes groups of the outbox that have no lease any more, some thousand events at most.
    /// Returns how many events it published.
    ///
    /// Fails with [`RelayError`]. Then the rest stays in the outbox and is due after its lease.
    pub async fn sweep(&self) -> Result<usize, RelayError> {
        if !self.can_publish() {
            return Ok(0);
        }
        let groups = self.store.claim_outbox(SWEEP_LEASE).await?;
        let events = groups.iter().map(|group| group.events.len()).sum();
        for published in join_all(groups.into_iter().map(|group| self.publish(group))).await {
            published?;
        }
        if events > 0 {
            tracing::info!(events, "events published from the outbox");
        }
        Ok(events)
    }

    /// Sweeps and updates the gauges of the outbox, until a stop is requested.
    pub(crate) async fn run(self, metrics: Metrics, health: Component, shutdown: Shutdown) {
        let mut failures = Backoff::default();
        while !shutdown.is_requested() {
            let delay = match self.pass(&metrics).await {
                Ok(published) => {
                    failures = Backoff::default();
                    health.ready();
                    // More groups may be due.
                    if published > 0 { Duration::ZERO } else { SWEEP_INTERVAL }
                }
                Err(error) => {
                    tracing::warn!(%error, "outbox not swept");
                    match &error {
                        RelayError::Store(error) => health.not_ready(error.to_string()),
                        // Ingest accepts orders without the broker, up to `ingest.outbox_max`.
                        RelayError::Kafka(_) => health.ready(),
                    }
                    metrics.retries.with_label_values(&[error.dependency()]).inc();
                    failures.next_delay().max(SWEEP_INTERVAL)
                }
            };
            if shutdown.sleep(delay).await.is_err() {
                break;
            }
        }
        self.drain().await;
    }

    /// Sweeps, and updates the gauges also if the sweep fails.
    async fn pass(&self, metrics: &Metrics) -> Result<usize, RelayError> {
        let published = self.sweep().await;
        let state = self.store.outbox_state().await?;
        metrics.outbox_pending.set(i64::try_from(state.pending).unwrap_or(i64::MAX));
        let age =
            state.oldest.map_or(0.0, |oldest| (Utc::now() - oldest).as_seconds_f64().max(0.0));
        metrics.outbox_oldest.set(age);
        self.store.database().observe_pool();
        published
    }
}
