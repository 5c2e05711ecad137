//! The part of ingest that consumes `order-requests`.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::task::JoinSet;

use super::SharedParts;
use crate::{
    config::{BatchConfig, IntakeTopic},
    ingest::{Api, Intake},
    kafka::{Consumer, Subscription},
    telemetry::ConsumerTraces,
};

/// The most records of a batch. Fewer than the committer queues, so that HTTP requests have room.
const MAX_BATCH_RECORDS: usize = 4_000;
/// The groups of a full batch: while one is committed, the next gathers, and two more wait.
const GROUPS_PER_BATCH: usize = 4;

/// A running intake.
pub(super) struct RunningIntake {
    consumer: Consumer,
    lanes: JoinSet<()>,
}

impl RunningIntake {
    /// Starts to consume. Returns `None` if no topic is configured.
    ///
    /// Ingest stays ready whatever happens to the intake, since HTTP clients need it too.
    ///
    /// Fails if the Kafka client refuses its settings.
    pub(super) fn start(shared: &SharedParts, api: &Arc<Api>) -> anyhow::Result<Option<Self>> {
        let SharedParts { config, metrics, health, shutdown, .. } = shared;
        let Some(IntakeTopic { requests, dead_letters }) = &config.topics.order_requests else {
            return Ok(None);
        };
        metrics.begin_dead_letters(requests);
        let subscription =
            Subscription { group_id: &config.ingest.group_id, topic: requests, lanes: 1 };
        let consumer = Consumer::start(
            &config.kafka,
            &subscription,
            metrics,
            health.register_optional("order-requests"),
            shutdown.clone(),
        );
        let (consumer, lanes) = consumer.context("cannot open the Kafka client")?;
        let BatchConfig { max, linger } = config.ingest.groups;
        let max = max.saturating_mul(GROUPS_PER_BATCH).min(MAX_BATCH_RECORDS);
        let mut running = JoinSet::new();
        for lane in lanes {
            let intake = Intake {
                api: Arc::clone(api),
                codec: Arc::clone(&shared.requests),
                keys_kept: config.retention.idempotency_keys,
                traces: ConsumerTraces::new(&shared.traces, requests, &config.ingest.group_id),
            };
            let health = ["taking requests", "dead-lettering requests"]
                .map(|step| health.register_optional(step));
            let (dead_letters, metrics) = (shared.dead_letters(dead_letters), metrics.clone());
            running.spawn(async move {
                lane.run(intake, dead_letters, BatchConfig { max, linger }, &metrics, health).await;
            });
        }
        tracing::info!(topic = requests, "taking orders from Kafka");
        Ok(Some(Self { consumer, lanes: running }))
    }

    /// Waits until the records in flight are placed. Fails if a lane panicked.
    pub(super) async fn drained(mut self, shared: &SharedParts) -> anyhow::Result<Consumer> {
        let ending = async {
            while let Some(ended) = self.lanes.join_next().await {
                ended.context("a lane of the intake ended")?;
            }
            anyhow::Ok(())
        };
        shared.shutdown.finish("order requests", ending).await.transpose()?;
        Ok(self.consumer)
    }

    /// Fails as soon as a lane panics, and never returns otherwise.
    pub(super) async fn failed(intake: &mut Option<Self>) -> anyhow::Result<()> {
        if let Some(Self { lanes, .. }) = intake {
            while let Some(ended) = lanes.join_next().await {
                ended.context("a lane of the intake ended")?;
            }
        }
        std::future::pending().await
    }
}
