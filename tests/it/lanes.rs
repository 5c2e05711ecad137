//! What a lane does when its messages come faster than they are handled.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rdkafka::Message as _;
use stocklock::{
    config::Batches,
    kafka::{Consumer, Message, Producer, Subscription},
    lifecycle::Shutdown,
    telemetry::{Health, Metrics},
};

use crate::harness::{Database, Strategy, World};

const MESSAGES: usize = 40;
const PAYLOAD_BYTES: usize = 900_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_lane_pauses_its_partitions_and_loses_nothing() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let metrics = World::metrics();
    let producer = Producer::new(&world.config.kafka, &metrics).unwrap();
    let message = |n: usize| Message {
        key: Some(n.to_string().into_bytes()),
        payload: Some(vec![0; PAYLOAD_BYTES]),
        headers: None,
    };
    producer.produce(&world.config.topics.orders, (0..MESSAGES).map(message).collect()).await.unwrap();
    let subscription =
        Subscription { group_id: &world.config.kafka.group_id, topic: &world.config.topics.orders, lanes: 1 };
    let shutdown = Shutdown::default();
    let health = Health::default().register("consumer");
    let (consumer, mut lanes) =
        Consumer::start(&world.config.kafka, &subscription, &metrics, health, shutdown.clone()).unwrap();
    let mut lane = lanes.pop().unwrap();

    // All that a lane holds has come by then, and the poll thread has run out of patience.
    let linger = Duration::from_secs(4);
    let first = lane.next_batch(Batches { max: MESSAGES, linger }).await.unwrap();
    assert!(first.len() < MESSAGES, "the lane was never full");
    let mut offsets: HashMap<i32, Vec<i64>> = HashMap::new();
    let mut batch = first;
    loop {
        for message in batch.messages() {
            offsets.entry(message.partition()).or_default().push(message.offset());
        }
        lane.done(&batch);
        drop(batch);
        if offsets.values().map(Vec::len).sum::<usize>() == MESSAGES {
            break;
        }
        let next = lane.next_batch(Batches { max: MESSAGES, linger: Duration::ZERO });
        batch = tokio::time::timeout(crate::harness::PATIENCE, next).await.expect("the others come").unwrap();
    }
    for (partition, offsets) in offsets {
        let in_order: Vec<_> = (0..).take(offsets.len()).collect();
        assert_eq!(offsets, in_order, "partition {partition}");
    }
    shutdown.request();
    drop(lane);
    consumer.stopped().await;
}

/// A lane that is full holds a message back and pauses its partitions. Those that a rebalance then brings are not paused yet: their
/// first messages must wait too, and the one that was held back must not be forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_lane_that_gets_more_partitions_forgets_no_message() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topic = &world.config.topics.orders;
    let subscription = Subscription { group_id: &world.config.kafka.group_id, topic, lanes: 1 };
    let join = |metrics: &Metrics, shutdown: &Shutdown| {
        let health = Health::default().register("consumer");
        Consumer::start(&world.config.kafka, &subscription, metrics, health, shutdown.clone()).unwrap()
    };
    let (metrics, rival_metrics) = (World::metrics(), World::metrics());
    let (shutdown, rival_shutdown) = (Shutdown::default(), Shutdown::default());
    let (consumer, mut lanes) = join(&metrics, &shutdown);
    assigned(&metrics, 1).await;
    let (rival, rival_lanes) = join(&rival_metrics, &rival_shutdown);
    assigned(&rival_metrics, 1).await;
    let message = |n: usize| {
        let key = Some(n.to_string().into_bytes());
        Message { key, payload: Some(vec![0; PAYLOAD_BYTES]), headers: None }
    };
    let producer = Producer::new(&world.config.kafka, &metrics).unwrap();
    producer.produce(topic, (0..2 * MESSAGES).map(message).collect()).await.unwrap();

    let mut lane = lanes.pop().unwrap();
    let linger = Duration::from_secs(4);
    let before = lane.next_batch(Batches { max: MESSAGES, linger }).await.unwrap();
    // The rival leaves while the batch in hand keeps the lane full.
    let assignments = metrics.rebalances.with_label_values(&["assign"]).get();
    rival_shutdown.request();
    drop(rival_lanes);
    rival.stopped().await;
    assigned(&metrics, assignments + 1).await;
    tokio::time::sleep(linger).await;

    let mut offsets: HashMap<i32, Vec<i64>> = HashMap::new();
    let mut batch = before;
    while offsets.values().map(Vec::len).sum::<usize>() < 2 * MESSAGES {
        for message in batch.messages() {
            offsets.entry(message.partition()).or_default().push(message.offset());
        }
        lane.done(&batch);
        drop(batch);
        let next = lane.next_batch(Batches { max: MESSAGES, linger: Duration::ZERO });
        // What is forgotten does not come at all.
        match tokio::time::timeout(Duration::from_secs(5), next).await {
            Ok(next) => batch = next.unwrap(),
            Err(_) => break,
        }
    }
    assert_eq!(offsets.len(), 4, "all partitions came to it");
    for (partition, offsets) in offsets {
        let in_order: Vec<_> = (0..).take(offsets.len()).collect();
        assert_eq!(offsets, in_order, "partition {partition}");
    }
    shutdown.request();
    drop(lane);
    consumer.stopped().await;
}

/// Waits until a consumer was assigned partitions so many times.
async fn assigned(metrics: &Metrics, times: u64) {
    let begun = Instant::now();
    while metrics.rebalances.with_label_values(&["assign"]).get() < times {
        assert!(begun.elapsed() < crate::harness::PATIENCE, "no partitions");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
