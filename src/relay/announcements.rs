//! Announcements of moves that no message of `order-status` names.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::{MAX_PUBLISHING_GROUPS, RelayError, SWEEP_LEASE};
use crate::{
    backoff::Backoff,
    crash_point::crash_point,
    domain::OrderStatus,
    kafka::{Message, ProduceError, Producer},
    lifecycle::Shutdown,
    store::OrderStore,
    telemetry::{Component, Metrics},
    wire::OrderStatusCodec,
};

const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
const MAX_SWEPT_ANNOUNCEMENTS: u32 = 2_000;

/// Publishes announcements on `order-status`, and deletes them in the order store. An announcement
/// may be published more than once.
///
/// Cheap to clone; all clones share their limit.
#[derive(Clone)]
pub struct Announcer {
    store: OrderStore,
    producer: Producer,
    topic: Arc<str>,
    codec: Arc<OrderStatusCodec>,
    publishing: Arc<Semaphore>,
}

impl Announcer {
    pub fn new(
        store: OrderStore,
        producer: Producer,
        topic: &str,
        codec: Arc<OrderStatusCodec>,
    ) -> Self {
        let publishing = Arc::new(Semaphore::new(MAX_PUBLISHING_GROUPS));
        Self { store, producer, topic: topic.into(), codec, publishing }
    }

    /// Publishes announcements that were just committed. If that fails, or if too many groups are
    /// published already, a sweep publishes them when their lease ends.
    pub(crate) fn announce_in_background(&self, announcements: Vec<OrderStatus>) {
        if announcements.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.publishing).try_acquire_owned() else { return };
        let announcer = self.clone();
        tokio::spawn(async move {
            if let Err(error) = announcer.publish(&announcements).await {
                tracing::warn!(
                    announcements = announcements.len(),
                    %error,
                    "moves not announced, a later pass announces them"
                );
            }
            drop(permit);
        });
    }

    /// Waits until nothing is published in the background.
    pub async fn drain(&self) {
        let all = u32::try_from(MAX_PUBLISHING_GROUPS).unwrap_or(u32::MAX);
        let _closed = self.publishing.acquire_many(all).await;
    }

    /// An announcement that is too large for the broker stays, and is tried again.
    async fn publish(&self, announcements: &[OrderStatus]) -> Result<(), RelayError> {
        let messages = announcements
            .iter()
            .map(|status| Message::of_order(status.order_id, self.codec.encode(status)));
        crash_point("announcements.producing");
        let produced = self.producer.produce(&self.topic, messages.collect()).await;
        let refused: &[usize] = match &produced {
            Ok(()) => &[],
            Err(ProduceError::TooLarge { numbers, .. }) => numbers,
            Err(ProduceError::Kafka(_)) => return Ok(produced?),
        };
        crash_point("announcements.produced");
        let published: Vec<_> = announcements
            .iter()
            .enumerate()
            .filter(|(number, _)| !refused.contains(number))
            .map(|(_, status)| status.clone())
            .collect();
        self.store.forget_announcements(&published).await?;
        Ok(produced?)
    }

    /// Publishes up to 2,000 announcements that have no lease any more. Returns how many it
    /// claimed.
    ///
    /// Fails with [`RelayError`]. Then the announcements are due again after their lease.
    pub async fn sweep(&self) -> Result<usize, RelayError> {
        let due = self.store.claim_announcements(MAX_SWEPT_ANNOUNCEMENTS, SWEEP_LEASE).await?;
        if !due.readable.is_empty() {
            self.publish(&due.readable).await?;
            let announcements = due.readable.len();
            tracing::info!(announcements, "moves announced that a crash had left");
        }
        Ok(due.claimed)
    }

    /// Sweeps until a stop is requested.
    pub(crate) async fn run(self, metrics: Metrics, health: Component, shutdown: Shutdown) {
        let mut failures = Backoff::default();
        loop {
            health.ready();
            let delay = match shutdown.interruptible(self.sweep()).await {
                Err(_) => break,
                Ok(Ok(claimed)) => {
                    failures = Backoff::default();
                    let has_more = claimed == MAX_SWEPT_ANNOUNCEMENTS as usize;
                    if has_more { Duration::ZERO } else { SWEEP_INTERVAL }
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "moves not announced");
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
}
