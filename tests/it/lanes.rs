//! What a lane does when its messages come faster than they are handled.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{Message as _, message::OwnedMessage};
use stocklock::{
    config::BatchConfig,
    domain::OrderId,
    kafka::{
        Batch, Consumer, DeadLetterReason, DeadLetters, Done, Fate, Handler, Lane, Message,
        Producer, Subscription,
    },
    lifecycle::Shutdown,
    telemetry::{Health, Metrics},
};

use crate::harness::{Database, PATIENCE, Strategy, World};

const MESSAGES: usize = 40;
const PAYLOAD_BYTES: usize = 900_000;
const LEFT_PARTITION: i32 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_lane_pauses_its_partitions_and_loses_nothing() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let metrics = World::metrics();
    let producer = Producer::new(&world.config.kafka).unwrap();
    let message = |n: usize| Message {
        key: Some(n.to_string().into_bytes()),
        payload: Some(vec![0; PAYLOAD_BYTES]),
        headers: None,
    };
    producer
        .produce(&world.config.topics.orders, (0..MESSAGES).map(message).collect())
        .await
        .unwrap();
    let subscription = Subscription {
        group_id: &world.config.kafka.group_id,
        topic: &world.config.topics.orders,
        lanes: 1,
    };
    let shutdown = Shutdown::default();
    let health = Health::default().register("consumer");
    let (consumer, mut lanes) =
        Consumer::start(&world.config.kafka, &subscription, &metrics, health, shutdown.clone())
            .unwrap();
    let mut lane = lanes.pop().unwrap();

    // All that a lane holds has come by then, and the poll thread has run out of patience.
    let linger = Duration::from_secs(4);
    let first = next_batch(&mut lane, BatchConfig { max: MESSAGES, linger }).await.unwrap();
    assert!(first.len() < MESSAGES, "the lane was never full");
    let mut offsets: HashMap<i32, Vec<i64>> = HashMap::new();
    let mut batch = first;
    loop {
        for message in batch.messages() {
            offsets.entry(message.partition()).or_default().push(message.offset());
        }
        lane.offsets().store(&batch, batch.len());
        drop(batch);
        if offsets.values().map(Vec::len).sum::<usize>() == MESSAGES {
            break;
        }
        let next = next_batch(&mut lane, BatchConfig { max: MESSAGES, linger: Duration::ZERO });
        batch = tokio::time::timeout(PATIENCE, next).await.expect("the others come").unwrap();
    }
    for (partition, offsets) in offsets {
        let in_order: Vec<_> = (0..).take(offsets.len()).collect();
        assert_eq!(offsets, in_order, "partition {partition}");
    }
    shutdown.request();
    drop(lane);
    consumer.stopped(PATIENCE).await.unwrap();
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
        Consumer::start(&world.config.kafka, &subscription, metrics, health, shutdown.clone())
            .unwrap()
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
    let producer = Producer::new(&world.config.kafka).unwrap();
    producer.produce(topic, (0..2 * MESSAGES).map(message).collect()).await.unwrap();

    let mut lane = lanes.pop().unwrap();
    let linger = Duration::from_secs(4);
    let before = next_batch(&mut lane, BatchConfig { max: MESSAGES, linger }).await.unwrap();
    // The rival leaves while the batch in hand keeps the lane full.
    let assignments = metrics.rebalances.with_label_values(&["assign"]).get();
    rival_shutdown.request();
    drop(rival_lanes);
    rival.stopped(PATIENCE).await.unwrap();
    assigned(&metrics, assignments + 1).await;
    tokio::time::sleep(linger).await;

    let mut offsets: HashMap<i32, Vec<i64>> = HashMap::new();
    let mut batch = before;
    while offsets.values().map(Vec::len).sum::<usize>() < 2 * MESSAGES {
        for message in batch.messages() {
            offsets.entry(message.partition()).or_default().push(message.offset());
        }
        lane.offsets().store(&batch, batch.len());
        drop(batch);
        let next = next_batch(&mut lane, BatchConfig { max: MESSAGES, linger: Duration::ZERO });
        // What is forgotten does not come at all.
        match tokio::time::timeout(Duration::from_secs(20), next).await {
            Ok(next) => batch = next.unwrap(),
            Err(_) => break,
        }
    }
    assert_eq!(offsets.len(), 4, "all partitions came to it");
    assert_eq!(offsets.values().map(Vec::len).sum::<usize>(), 2 * MESSAGES, "none is forgotten");
    for (partition, offsets) in offsets {
        let in_order: Vec<_> = (0..).take(offsets.len()).collect();
        assert_eq!(offsets, in_order, "partition {partition}");
    }
    shutdown.request();
    drop(lane);
    consumer.stopped(PATIENCE).await.unwrap();
}

/// While its lane is full, a partition is paused; if it is then taken away and comes back, it must not stay paused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_left_a_full_lane_is_fetched_again_when_it_comes_back() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topic = &world.config.topics.orders;
    let subscription = Subscription { group_id: &world.config.kafka.group_id, topic, lanes: 1 };
    let join = |metrics: &Metrics, shutdown: &Shutdown| {
        let health = Health::default().register("consumer");
        Consumer::start(&world.config.kafka, &subscription, metrics, health, shutdown.clone())
            .unwrap()
    };
    let message = |n: usize| {
        let key = Some(n.to_string().into_bytes());
        Message { key, payload: Some(vec![0; PAYLOAD_BYTES]), headers: None }
    };
    Producer::new(&world.config.kafka)
        .unwrap()
        .produce(topic, (0..MESSAGES).map(message).collect())
        .await
        .unwrap();
    let (metrics, rival_metrics) = (World::metrics(), World::metrics());
    let (shutdown, rival_shutdown) = (Shutdown::default(), Shutdown::default());
    let (consumer, mut lanes) = join(&metrics, &shutdown);
    let mut lane = lanes.pop().unwrap();
    let in_hand =
        next_batch(&mut lane, BatchConfig { max: MESSAGES, linger: Duration::from_secs(4) })
            .await
            .unwrap();
    assert!(in_hand.len() < MESSAGES, "the lane was never full");
    let (rival, rival_lanes) = join(&rival_metrics, &rival_shutdown);
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(in_hand);
    // The rival's first assignment may be an empty one.
    rebalanced(&metrics, "revoke", 1).await;

    // The lane runs empty, so that what it still owns is resumed, and then the rival leaves.
    let emptied = BatchConfig { max: MESSAGES, linger: Duration::from_secs(2) };
    let idle = Duration::from_secs(8);
    while let Ok(batch) = tokio::time::timeout(idle, next_batch(&mut lane, emptied)).await {
        let batch = batch.unwrap();
        lane.offsets().store(&batch, batch.len());
    }
    let assignments = metrics.rebalances.with_label_values(&["assign"]).get();
    rival_shutdown.request();
    drop(rival_lanes);
    rival.stopped(PATIENCE).await.unwrap();
    assigned(&metrics, assignments + 1).await;
    world
        .produce(topic, (0..MESSAGES).map(|_| (OrderId::generate(), b"new".to_vec())).collect())
        .await;
    let mut found = BTreeSet::new();
    while let Ok(batch) = tokio::time::timeout(idle, next_batch(&mut lane, emptied)).await {
        let batch = batch.unwrap();
        let new = batch.messages().filter(|message| message.payload() == Some(b"new"));
        found.extend(new.map(|message| (message.partition(), message.offset())));
        lane.offsets().store(&batch, batch.len());
    }
    assert_eq!(found.len(), MESSAGES, "every partition is fetched");
    shutdown.request();
    drop(lane);
    consumer.stopped(PATIENCE).await.unwrap();
}

/// Refuses whatever is large, and leaves the first message of a partition behind the first time it could be handled.
#[derive(Clone, Default)]
struct Picky {
    left_behind: Arc<AtomicBool>,
    handled: Arc<Mutex<Vec<(i32, i64)>>>,
    published: Arc<Mutex<Vec<(i32, i64)>>>,
    refused: Arc<AtomicUsize>,
}

#[derive(Debug, thiserror::Error)]
#[error("too large")]
struct TooLarge;

impl Handler for Picky {
    type Decoded = (i32, i64);
    type Handled = Vec<(i32, i64)>;
    type Error = TooLarge;

    fn decode(&self, message: &OwnedMessage) -> (i32, i64) {
        (message.partition(), message.offset())
    }

    async fn handle(&self, messages: &[(i32, i64)]) -> Result<Done<Self::Handled>, TooLarge> {
        if messages.len() > 3 {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(TooLarge);
        }
        let is_left = |message: &(i32, i64)| {
            *message == (LEFT_PARTITION, 0) && !self.left_behind.swap(true, Ordering::SeqCst)
        };
        let left: Vec<_> =
            (0..messages.len()).filter(|number| is_left(&messages[*number])).collect();
        let overtakes = |number: &usize| {
            left.iter().any(|left| left < number) && messages[*number].0 == LEFT_PARTITION
        };
        let left_behind: Vec<_> = (0..messages.len())
            .filter(|number| left.contains(number) || overtakes(number))
            .collect();
        let kept = (0..messages.len()).filter(|number| !left_behind.contains(number));
        let handled: Vec<_> = kept.map(|number| messages[number]).collect();
        self.handled.lock().unwrap().extend(&handled);
        Ok(Done { handled, deferred: left_behind })
    }

    fn dead_letter_reason(&self, _: &(i32, i64), _: &Self::Handled) -> Option<DeadLetterReason> {
        None
    }

    async fn publish(&self, handled: &Self::Handled) -> Result<(), TooLarge> {
        self.published.lock().unwrap().extend(handled);
        Ok(())
    }

    fn fate(_: &TooLarge) -> Fate {
        Fate::Retry("redis")
    }
}

fn dead_letters(world: &World, metrics: &Metrics) -> DeadLetters {
    DeadLetters::new(
        Producer::new(&world.config.kafka).unwrap(),
        &world.config.topics.orders_dlq,
        metrics,
    )
}

async fn next_batch(lane: &mut Lane, batches: BatchConfig) -> Option<Batch<()>> {
    lane.next_batch(batches, |_| (), std::future::ready(())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_fails_is_done_in_smaller_parts_and_none_overtakes_what_one_left_behind() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (group_id, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    let values = (0..MESSAGES).map(|_| (OrderId::generate(), b"x".to_vec()));
    world.produce(topic, values.collect()).await;
    let (metrics, shutdown) = (World::metrics(), Shutdown::default());
    let health = Health::default();
    let subscription = Subscription { group_id, topic, lanes: 1 };
    let consumer = Consumer::start(
        &world.config.kafka,
        &subscription,
        &metrics,
        health.register("consumer"),
        shutdown.clone(),
    );
    let (consumer, mut lanes) = consumer.unwrap();
    let picky = Picky::default();
    let batches = BatchConfig { max: MESSAGES, linger: Duration::from_secs(1) };
    let lane_health = ["handling", "publishing"].map(|step| health.register(step));
    let stop_when_done = async {
        world.caught_up(group_id, topic).await;
        shutdown.request();
    };
    let running = lanes.pop().unwrap().run(
        picky.clone(),
        dead_letters(&world, &metrics),
        batches,
        &metrics,
        lane_health,
    );
    tokio::join!(running, stop_when_done);
    consumer.stopped(PATIENCE).await.unwrap();
    assert!(picky.refused.load(Ordering::SeqCst) > 0, "the first batch was too large");
    assert!(picky.left_behind.load(Ordering::SeqCst), "a part left a message behind");
    let handled = picky.handled.lock().unwrap();
    assert_eq!(*handled, *picky.published.lock().unwrap());
    assert_eq!(handled.len(), MESSAGES, "each once");
    for partition in 0..world.config.topics.partitions {
        let offsets: Vec<_> =
            handled.iter().filter(|(p, _)| *p == partition).map(|(_, offset)| *offset).collect();
        assert!(offsets.is_sorted(), "partition {partition}: {offsets:?}");
    }
}

/// Leaves the first message of each partition behind, whenever it comes, and handles all others.
#[derive(Clone, Default)]
struct Hindered {
    handled: Arc<Mutex<BTreeSet<(i32, i64)>>>,
}

impl Handler for Hindered {
    type Decoded = (i32, i64);
    type Handled = ();
    type Error = Infallible;

    fn decode(&self, message: &OwnedMessage) -> (i32, i64) {
        (message.partition(), message.offset())
    }

    async fn handle(&self, messages: &[(i32, i64)]) -> Result<Done<()>, Infallible> {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (left_behind, handled): (Vec<_>, Vec<_>) =
            (0..messages.len()).partition(|number: &usize| messages[*number].1 == 0);
        self.handled
            .lock()
            .unwrap()
            .extend(handled.into_iter().map(|number: usize| messages[number]));
        Ok(Done { handled: (), deferred: left_behind })
    }

    fn dead_letter_reason(&self, _: &(i32, i64), (): &()) -> Option<DeadLetterReason> {
        None
    }

    async fn publish(&self, (): &()) -> Result<(), Infallible> {
        Ok(())
    }

    fn fate(error: &Infallible) -> Fate {
        match *error {}
    }
}

/// Batches in hand have more messages of a partition whose first one was left behind when it is taken away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_behind_of_a_partition_that_is_taken_away_comes_to_its_next_owner() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (group_id, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    let subscription = Subscription { group_id, topic, lanes: 1 };
    let health = Health::default();
    let join = |metrics: &Metrics, shutdown: &Shutdown| {
        let health = health.register("consumer");
        Consumer::start(&world.config.kafka, &subscription, metrics, health, shutdown.clone())
            .unwrap()
    };
    let (metrics, rival_metrics) = (World::metrics(), World::metrics());
    let (shutdown, rival_shutdown) = (Shutdown::default(), Shutdown::default());
    let (consumer, mut lanes) = join(&metrics, &shutdown);
    let hindered = Hindered::default();
    let steps = ["handling", "publishing"].map(|step| health.register(step));
    let batches = BatchConfig { max: 1_000, linger: Duration::from_millis(2) };
    let running = lanes.pop().unwrap().run(
        hindered.clone(),
        dead_letters(&world, &metrics),
        batches,
        &metrics,
        steps,
    );
    let producer = Producer::new(&world.config.kafka).unwrap();
    let producing = async {
        while !rival_shutdown.is_requested() {
            let key = || Some(OrderId::generate().to_string().into_bytes());
            let some = (0..40)
                .map(|_| Message { key: key(), payload: Some(b"x".to_vec()), headers: None })
                .collect();
            producer.produce(topic, some).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let rival = async {
        assigned(&metrics, 1).await;
        while hindered.handled.lock().unwrap().len() < 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let (rival, mut lanes) = join(&rival_metrics, &rival_shutdown);
        let mut lane = lanes.pop().unwrap();
        let mut first: BTreeMap<i32, i64> = BTreeMap::new();
        let begun = Instant::now();
        while first.len() < 2 {
            assert!(begun.elapsed() < crate::harness::PATIENCE, "it got {first:?}");
            let batch = next_batch(&mut lane, batches).await.unwrap();
            for message in batch.messages() {
                first.entry(message.partition()).or_insert(message.offset());
            }
        }
        rival_shutdown.request();
        drop(lane);
        rival.stopped(PATIENCE).await.unwrap();
        shutdown.request();
        first
    };
    let (first, (), ()) = tokio::join!(rival, producing, running);
    consumer.stopped(PATIENCE).await.unwrap();
    for (partition, offset) in first {
        assert_eq!(offset, 0, "of partition {partition}");
        let handled =
            hindered.handled.lock().unwrap().iter().filter(|(p, _)| *p == partition).count();
        assert!(handled > 1, "those behind it had been handled");
    }
}

/// Handles everything, and cannot publish its first batch while the broker is away.
#[derive(Clone, Default)]
struct Unheard {
    handled: Arc<AtomicUsize>,
    batches: Arc<AtomicUsize>,
    first: Arc<Mutex<Option<(i32, i64)>>>,
    broker_is_back: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the broker is away")]
struct Away;

impl Handler for Unheard {
    type Decoded = (i32, i64);
    /// The first of the messages.
    type Handled = (i32, i64);
    type Error = Away;

    fn decode(&self, message: &OwnedMessage) -> (i32, i64) {
        (message.partition(), message.offset())
    }

    fn dead_letter_reason(&self, _: &(i32, i64), _: &Self::Handled) -> Option<DeadLetterReason> {
        None
    }

    async fn handle(&self, messages: &[(i32, i64)]) -> Result<Done<Self::Handled>, Away> {
        self.handled.fetch_add(messages.len(), Ordering::SeqCst);
        self.batches.fetch_add(1, Ordering::SeqCst);
        Ok(Done { handled: messages[0], deferred: Vec::new() })
    }

    async fn publish(&self, begins: &Self::Handled) -> Result<(), Away> {
        let is_first = self.first.lock().unwrap().get_or_insert(*begins) == begins;
        if is_first && !self.broker_is_back.load(Ordering::SeqCst) { Err(Away) } else { Ok(()) }
    }

    fn fate(_: &Away) -> Fate {
        Fate::Retry("kafka")
    }
}

/// Runs a lane in batches of five, and stops it once `until` has come. Answers how many messages the group has left to do.
async fn run_unheard(world: &World, unheard: &Unheard, until: impl Future<Output = ()>) -> i64 {
    let (group_id, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    let (metrics, shutdown, health) = (World::metrics(), Shutdown::default(), Health::default());
    let subscription = Subscription { group_id, topic, lanes: 1 };
    let consumer = Consumer::start(
        &world.config.kafka,
        &subscription,
        &metrics,
        health.register("consumer"),
        shutdown.clone(),
    );
    let (consumer, mut lanes) = consumer.unwrap();
    let steps = ["handling", "publishing"].map(|step| health.register(step));
    let running = lanes.pop().unwrap().run(
        unheard.clone(),
        dead_letters(world, &metrics),
        BatchConfig { max: 5, linger: Duration::from_millis(2) },
        &metrics,
        steps,
    );
    tokio::join!(running, async {
        until.await;
        shutdown.request();
    });
    consumer.stopped(PATIENCE).await.unwrap();
    world.uncommitted(group_id, topic)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_handled_ahead_of_the_one_that_cannot_be_published_and_none_is_committed_before_it()
 {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topic = &world.config.topics.orders;
    world
        .produce(topic, (0..MESSAGES).map(|_| (OrderId::generate(), b"x".to_vec())).collect())
        .await;
    let unheard = Unheard::default();
    let left = run_unheard(&world, &unheard, async {
        let begun = Instant::now();
        // The first may have fewer messages than five: it does not wait for more.
        while unheard.batches.load(Ordering::SeqCst) < 3 {
            assert!(
                begun.elapsed() < crate::harness::PATIENCE,
                "the other batches wait for the first"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(left.await, i64::try_from(MESSAGES).unwrap(), "a later batch was committed");
    let ahead = unheard.handled.load(Ordering::SeqCst);
    assert!(ahead <= 20, "{ahead} messages were handled, with none of them published");

    unheard.broker_is_back.store(true, Ordering::SeqCst);
    let caught_up = world.caught_up(&world.config.kafka.group_id, topic);
    assert_eq!(run_unheard(&world, &unheard, caught_up).await, 0);
    assert_eq!(unheard.handled.load(Ordering::SeqCst), ahead + MESSAGES, "all came again");
}

/// Waits until a consumer was assigned partitions so many times.
async fn assigned(metrics: &Metrics, times: u64) {
    rebalanced(metrics, "assign", times).await;
}

async fn rebalanced(metrics: &Metrics, kind: &str, times: u64) {
    let begun = Instant::now();
    while metrics.rebalances.with_label_values(&[kind]).get() < times {
        assert!(begun.elapsed() < crate::harness::PATIENCE, "no {kind}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
