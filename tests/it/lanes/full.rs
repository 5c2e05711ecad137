//! A lane whose memory is full pauses its partitions, and loses no message.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use rdkafka::Message as _;
use stocklock::{
    config::BatchConfig,
    kafka::{Batch, Lane, Message, Producer},
};

use super::{MESSAGES, Member, next_batch, produce_text};
use crate::harness::{Database, PATIENCE, Strategy, World};

const PAYLOAD_BYTES: usize = 900_000;

/// All messages that a lane can hold come within it, and the poll thread has seen the lane full.
const LINGER: Duration = Duration::from_secs(4);

/// The offsets of each partition, in the order in which a lane delivered them.
#[derive(Default)]
struct Delivered(HashMap<i32, Vec<i64>>);

impl Delivered {
    /// Notes the messages of a batch and stores their offsets.
    fn take(&mut self, lane: &Lane, batch: Batch<()>) {
        for message in batch.messages() {
            self.0.entry(message.partition()).or_default().push(message.offset());
        }
        lane.offsets().store(&batch, batch.len());
    }

    fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Fails the test unless each partition's messages came once and in order, from the first on.
    fn check_order(&self) {
        for (partition, offsets) in &self.0 {
            let in_order: Vec<_> = (0..).take(offsets.len()).collect();
            assert_eq!(*offsets, in_order, "partition {partition}");
        }
    }
}

/// Produces messages so large that a lane cannot hold [`MESSAGES`] of them.
async fn produce_large(world: &World, count: usize) {
    let message = |number: usize| Message {
        key: Some(number.to_string().into_bytes()),
        payload: Some(vec![0; PAYLOAD_BYTES]),
        headers: None,
    };
    let producer = Producer::new(&world.config.kafka).unwrap();
    let messages = (0..count).map(message).collect();
    producer.produce(&world.config.topics.orders, messages).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_lane_pauses_its_partitions_and_loses_nothing() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    produce_large(&world, MESSAGES).await;
    let (member, mut lane) = Member::join(&world);

    let first = next_batch(&mut lane, BatchConfig { max: MESSAGES, linger: LINGER }).await.unwrap();
    assert!(first.len() < MESSAGES, "the lane was never full");
    let mut delivered = Delivered::default();
    delivered.take(&lane, first);
    while delivered.count() < MESSAGES {
        let next = next_batch(&mut lane, BatchConfig { max: MESSAGES, linger: Duration::ZERO });
        let batch = tokio::time::timeout(PATIENCE, next).await.expect("the others come").unwrap();
        delivered.take(&lane, batch);
    }

    delivered.check_order();
    drop(lane);
    member.leave().await;
}

/// A full lane keeps a message back and pauses its partitions. The partitions of the next rebalance
/// are not paused yet: their first messages must wait too, and the lane must not forget the message
/// that it kept back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_lane_that_gets_more_partitions_forgets_no_message() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (member, mut lane) = Member::join(&world);
    member.rebalanced("assign", 1).await;
    let (rival, rival_lane) = Member::join(&world);
    rival.rebalanced("assign", 1).await;
    produce_large(&world, 2 * MESSAGES).await;
    let before =
        next_batch(&mut lane, BatchConfig { max: MESSAGES, linger: LINGER }).await.unwrap();

    // The rival leaves while the batch in flight keeps the lane full.
    let assignments = member.rebalances("assign");
    drop(rival_lane);
    rival.leave().await;
    member.rebalanced("assign", assignments + 1).await;
    // The first messages of the new partitions come, and no event shows that they wait.
    tokio::time::sleep(LINGER).await;

    let mut delivered = Delivered::default();
    delivered.take(&lane, before);
    while delivered.count() < 2 * MESSAGES {
        let next = next_batch(&mut lane, BatchConfig { max: MESSAGES, linger: Duration::ZERO });
        // A message that was forgotten does not come at all.
        match tokio::time::timeout(Duration::from_secs(20), next).await {
            Ok(batch) => delivered.take(&lane, batch.unwrap()),
            Err(_) => break,
        }
    }
    assert_eq!(delivered.0.len(), 4, "not all partitions came to the lane");
    assert_eq!(delivered.count(), 2 * MESSAGES, "messages were forgotten");
    delivered.check_order();
    drop(lane);
    member.leave().await;
}

/// A full lane pauses its partition. If the partition is then revoked and assigned again, it must
/// not stay paused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_left_a_full_lane_is_fetched_when_it_comes_back() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    produce_large(&world, MESSAGES).await;
    let (member, mut lane) = Member::join(&world);
    let in_flight =
        next_batch(&mut lane, BatchConfig { max: MESSAGES, linger: LINGER }).await.unwrap();
    assert!(in_flight.len() < MESSAGES, "the lane was never full");
    let (rival, rival_lane) = Member::join(&world);
    // The revocation begins while the lane is full. No event shows its beginning, and it ends only
    // after the batch.
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(in_flight);
    // The rival's first assignment may be an empty one.
    member.rebalanced("revoke", 1).await;

    // The lane runs empty, so that its own partitions are resumed, and then the rival leaves.
    let emptied = BatchConfig { max: MESSAGES, linger: Duration::from_secs(2) };
    let idle = Duration::from_secs(8);
    while let Ok(batch) = tokio::time::timeout(idle, next_batch(&mut lane, emptied)).await {
        let batch = batch.unwrap();
        lane.offsets().store(&batch, batch.len());
    }
    let assignments = member.rebalances("assign");
    drop(rival_lane);
    rival.leave().await;
    member.rebalanced("assign", assignments + 1).await;
    produce_text(&world, MESSAGES, "new").await;

    let mut found = BTreeSet::new();
    while let Ok(batch) = tokio::time::timeout(idle, next_batch(&mut lane, emptied)).await {
        let batch = batch.unwrap();
        let new = batch.messages().filter(|message| message.payload() == Some(b"new"));
        found.extend(new.map(|message| (message.partition(), message.offset())));
        lane.offsets().store(&batch, batch.len());
    }
    assert_eq!(found.len(), MESSAGES, "a partition is not fetched");
    drop(lane);
    member.leave().await;
}
