//! What a lane does when its messages come faster than they are handled.

use std::{collections::HashMap, time::Duration};

use rdkafka::Message as _;
use stocklock::{
    config::Batches,
    kafka::{Consumer, Message, Producer, Subscription},
    lifecycle::Shutdown,
    telemetry::Health,
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
