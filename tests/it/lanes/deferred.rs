//! Messages that a handler defers come again, in order, to this lane or to the next owner of their
//! partition.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rdkafka::{Message as _, message::OwnedMessage};
use stocklock::{
    config::BatchConfig,
    domain::OrderId,
    kafka::{DeadLetterReason, Done, Fate, Handler, Message, Producer},
};
use tokio_util::sync::CancellationToken;

use super::{MESSAGES, Member, next_batch, produce_text};
use crate::harness::{Database, Strategy, World, wait_until};

/// The partition of the message that [`SmallBatches`] defers once.
const DEFERRED_PARTITION: i32 = 1;

/// Partition and offset of a message.
type Place = (i32, i64);

/// Fails for batches of more than three messages. Defers the first message of a partition once, and
/// with it the later messages of the partition.
#[derive(Clone, Default)]
struct SmallBatches {
    has_deferred: Arc<AtomicBool>,
    handled: Arc<Mutex<Vec<Place>>>,
    published: Arc<Mutex<Vec<Place>>>,
    failures: Arc<AtomicUsize>,
}

#[derive(Debug, thiserror::Error)]
#[error("too large")]
struct TooLarge;

impl Handler for SmallBatches {
    type Decoded = Place;
    type Handled = Vec<Place>;
    type Error = TooLarge;

    fn decode(&self, message: &OwnedMessage) -> Place {
        (message.partition(), message.offset())
    }

    async fn handle(&self, messages: &[Place]) -> Result<Done<Self::Handled>, TooLarge> {
        if messages.len() > 3 {
            self.failures.fetch_add(1, Ordering::SeqCst);
            return Err(TooLarge);
        }
        let mut is_deferring = false;
        let (mut handled, mut deferred) = (Vec::new(), Vec::new());
        for (number, message) in messages.iter().enumerate() {
            is_deferring |= *message == (DEFERRED_PARTITION, 0)
                && !self.has_deferred.swap(true, Ordering::SeqCst);
            if is_deferring && message.0 == DEFERRED_PARTITION {
                deferred.push(number);
            } else {
                handled.push(*message);
            }
        }
        self.handled.lock().unwrap().extend(&handled);
        Ok(Done { handled, deferred })
    }

    fn dead_letter_reason(&self, _: &Place, _: &Self::Handled) -> Option<DeadLetterReason> {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_fails_is_done_in_parts_and_no_message_overtakes() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (group_id, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    produce_text(&world, MESSAGES, "x").await;
    let (member, lane) = Member::join(&world);
    let small = SmallBatches::default();
    let batches = BatchConfig { max: MESSAGES, linger: Duration::from_secs(1) };

    tokio::join!(member.run(&world, lane, &small, batches), async {
        world.caught_up(group_id, topic).await;
        member.shutdown.request();
    });
    member.leave().await;

    assert!(small.failures.load(Ordering::SeqCst) > 0, "the first batch was not too large");
    assert!(small.has_deferred.load(Ordering::SeqCst), "no message was deferred");
    let handled = small.handled.lock().unwrap();
    assert_eq!(*handled, *small.published.lock().unwrap());
    assert_eq!(handled.len(), MESSAGES, "not each message once");
    for partition in 0..world.config.topics.partitions {
        let offsets: Vec<_> =
            handled.iter().filter(|place| place.0 == partition).map(|place| place.1).collect();
        assert!(offsets.is_sorted(), "partition {partition}: {offsets:?}");
    }
}

/// Defers the first message of each partition each time, and handles all others.
#[derive(Clone, Default)]
struct DefersFirst {
    handled: Arc<Mutex<BTreeSet<Place>>>,
}

impl Handler for DefersFirst {
    type Decoded = Place;
    type Handled = ();
    type Error = Infallible;

    fn decode(&self, message: &OwnedMessage) -> Place {
        (message.partition(), message.offset())
    }

    async fn handle(&self, messages: &[Place]) -> Result<Done<()>, Infallible> {
        // The work of a batch, during which more messages come.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (deferred, handled): (Vec<usize>, Vec<usize>) =
            (0..messages.len()).partition(|number| messages[*number].1 == 0);
        let handled = handled.into_iter().map(|number| messages[number]);
        self.handled.lock().unwrap().extend(handled);
        Ok(Done { handled: (), deferred })
    }

    fn dead_letter_reason(&self, _: &Place, (): &()) -> Option<DeadLetterReason> {
        None
    }

    async fn publish(&self, (): &()) -> Result<(), Infallible> {
        Ok(())
    }

    fn fate(error: &Infallible) -> Fate {
        match *error {}
    }
}

/// Produces without a pause that matters, until it is over.
async fn produce_until(world: &World, over: &CancellationToken) {
    let producer = Producer::new(&world.config.kafka).unwrap();
    while !over.is_cancelled() {
        let message = |_| Message {
            key: Some(OrderId::generate().to_string().into_bytes()),
            payload: Some(b"x".to_vec()),
            headers: None,
        };
        let messages = (0..40).map(message).collect();
        producer.produce(&world.config.topics.orders, messages).await.unwrap();
        // The pace of the producer.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// When its partition is revoked, batches in flight have later messages of a partition whose first
/// message is deferred.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferred_messages_of_a_revoked_partition_come_to_its_next_owner() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (member, lane) = Member::join(&world);
    let defers = DefersFirst::default();
    let batches = BatchConfig { max: 1_000, linger: Duration::from_millis(2) };
    let over = CancellationToken::new();
    let rival = async {
        member.rebalanced("assign", 1).await;
        wait_until("200 messages are handled", async || {
            defers.handled.lock().unwrap().len() >= 200
        })
        .await;
        let (rival, mut lane) = Member::join(&world);
        let mut first: BTreeMap<i32, i64> = BTreeMap::new();
        wait_until("the rival gets two partitions", async || {
            let batch = next_batch(&mut lane, batches).await.unwrap();
            for message in batch.messages() {
                first.entry(message.partition()).or_insert(message.offset());
            }
            first.len() >= 2
        })
        .await;
        over.cancel();
        drop(lane);
        rival.leave().await;
        member.shutdown.request();
        first
    };

    let running = member.run(&world, lane, &defers, batches);
    let (first, (), ()) = tokio::join!(rival, produce_until(&world, &over), running);
    member.leave().await;

    for (partition, offset) in first {
        assert_eq!(offset, 0, "the first message of partition {partition} is lost");
        let handled = defers.handled.lock().unwrap();
        let later = handled.iter().filter(|place| place.0 == partition).count();
        assert!(later > 1, "no later message of partition {partition} had been handled");
    }
}
