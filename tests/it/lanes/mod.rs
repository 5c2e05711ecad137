//! What a lane does when messages come faster than they are handled.

mod deferred;
mod full;
mod unpublished;

use stocklock::{
    config::BatchConfig,
    domain::OrderId,
    kafka::{Batch, Consumer, DeadLetters, Handler, Lane, Producer, Subscription},
    lifecycle::Shutdown,
    telemetry::{Health, Metrics},
};

use crate::harness::{PATIENCE, World, wait_until};

const MESSAGES: usize = 40;

/// A consumer of the orders topic with one lane.
struct Member {
    consumer: Consumer,
    metrics: Metrics,
    shutdown: Shutdown,
    health: Health,
}

impl Member {
    fn join(world: &World) -> (Self, Lane) {
        let (metrics, shutdown, health) =
            (World::metrics(), Shutdown::default(), Health::default());
        let subscription = Subscription {
            group_id: &world.config.kafka.group_id,
            topic: &world.config.topics.orders,
            lanes: 1,
        };
        let component = health.register("consumer");
        let (consumer, mut lanes) = Consumer::start(
            &world.config.kafka,
            &subscription,
            &metrics,
            component,
            shutdown.clone(),
        )
        .unwrap();
        (Self { consumer, metrics, shutdown, health }, lanes.pop().unwrap())
    }

    /// Has a handler do the lane's messages until the shutdown is requested.
    async fn run<H: Handler + Clone>(
        &self,
        world: &World,
        lane: Lane,
        handler: &H,
        batches: BatchConfig,
    ) {
        let letters = DeadLetters::new(
            Producer::new(&world.config.kafka).unwrap(),
            &world.config.topics.orders_dlq,
            &self.metrics,
        );
        let steps = ["handling", "publishing"].map(|step| self.health.register(step));
        lane.run(handler.clone(), letters, batches, &self.metrics, steps).await;
    }

    /// Leaves the group. The lane must be dropped.
    async fn leave(self) {
        self.shutdown.request();
        self.consumer.stopped(PATIENCE).await.unwrap();
    }

    /// Waits until so many rebalances of a kind have come: `assign` or `revoke`.
    async fn rebalanced(&self, kind: &str, times: u64) {
        wait_until(&format!("{kind} comes {times} times"), async || self.rebalances(kind) >= times)
            .await;
    }

    fn rebalances(&self, kind: &str) -> u64 {
        self.metrics.rebalances.with_label_values(&[kind]).get()
    }
}

async fn next_batch(lane: &mut Lane, batches: BatchConfig) -> Option<Batch<()>> {
    lane.next_batch(batches, |_| (), std::future::ready(())).await
}

/// Puts so many messages with this text into the orders topic.
async fn produce_text(world: &World, count: usize, text: &str) {
    let values = (0..count).map(|_| (OrderId::generate(), text.as_bytes().to_vec()));
    world.produce(&world.config.topics.orders, values.collect()).await;
}
