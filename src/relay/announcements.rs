//! Announcements of moves that no message of `order-status` names.

use std::{sync::Arc, time::Duration};

use super::{
    RelayError, SWEEP_LEASE,
    background::{Background, acknowledged},
};
use crate::{
    backoff::Backoff,
    crash_point::crash_point,
    domain::{OrderStatus, TracedOrders},
    kafka::{Message, Producer},
    lifecycle::Shutdown,
    store::OrderStore,
    telemetry::{Component, Metrics, Traces},
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
    background: Background,
    traces: Traces,
}

impl Announcer {
    pub fn new(
        store: OrderStore,
        producer: Producer,
        topic: &str,
        codec: Arc<OrderStatusCodec>,
    ) -> Self {
        let (topic, background, traces) = (topic.into(), Background::default(), Traces::off());
        Self { store, producer, topic, codec, background, traces }
    }

    /// The announcer that makes spans of the orders that are traced.
    #[must_use]
    pub(crate) fn traced(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    /// Publishes announcements that were just committed. If that fails, or if too many groups are
    /// published already, a sweep publishes them when their lease ends.
    pub(crate) fn announce_in_background(
        &self,
        announcements: Vec<OrderStatus>,
        traced: TracedOrders,
    ) {
        if !self.codec.can_write() {
            return;
        }
        let announcer = self.clone();
        self.background.publish(announcements, async move |announcements| {
            announcer.publish(&announcements, &traced).await
        });
    }

    /// Waits until nothing is published in the background.
    pub async fn drain(&self) {
        self.background.drain().await;
    }

    /// An announcement that is too large for the broker stays, and is tried again.
    async fn publish(
        &self,
        announcements: &[OrderStatus],
        traced: &TracedOrders,
    ) -> Result<(), RelayError> {
        let sending = self.traces.sending(&self.topic, traced);
        let messages = announcements.iter().map(|status| {
            Message::of_status(&self.codec, status).traced(sending.context(status.order_id))
        });
        crash_point("announcements.producing");
        let produced = self.producer.produce(&self.topic, messages.collect()).await;
        sending.ended(&produced);
        let published = acknowledged(announcements, &produced);
        if !published.is_empty() {
            crash_point("announcements.produced");
            self.store.forget_announcements(&published).await?;
        }
        Ok(produced?)
    }

    /// Publishes up to 2,000 announcements that have no lease any more. Returns how many it
    /// claimed.
    ///
    /// Fails with [`RelayError`]. Then the announcements are due again after their lease.
    pub async fn sweep(&self) -> Result<usize, RelayError> {
        if !self.codec.can_write() {
            return Ok(0);
        }
        let due = self.store.claim_announcements(MAX_SWEPT_ANNOUNCEMENTS, SWEEP_LEASE).await?;
        if !due.readable.is_empty() {
            self.publish(&due.readable, &TracedOrders::default()).await?;
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
