//! A lane handles batches ahead of one that cannot be published, and commits none of them before
//! it.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rdkafka::{Message as _, message::OwnedMessage};
use stocklock::{
    config::BatchConfig,
    kafka::{DeadLetterReason, Done, Fate, Handler},
};

use super::{MESSAGES, Member, produce_text};
use crate::harness::{Database, Strategy, World, wait_until};

/// Partition and offset of a message.
type Place = (i32, i64);

/// Handles every batch, and cannot publish the first one while the broker is away.
#[derive(Clone, Default)]
struct BrokerAway {
    handled: Arc<AtomicUsize>,
    batches: Arc<AtomicUsize>,
    first: Arc<Mutex<Option<Place>>>,
    is_back: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the broker is away")]
struct Away;

impl Handler for BrokerAway {
    type Decoded = Place;
    /// The first of the messages.
    type Handled = Place;
    type Error = Away;

    fn decode(&self, message: &OwnedMessage) -> Place {
        (message.partition(), message.offset())
    }

    fn dead_letter_reason(&self, _: &Place, _: &Self::Handled) -> Option<DeadLetterReason> {
        None
    }

    async fn handle(&self, messages: &[Place]) -> Result<Done<Self::Handled>, Away> {
        self.handled.fetch_add(messages.len(), Ordering::SeqCst);
        self.batches.fetch_add(1, Ordering::SeqCst);
        Ok(Done { handled: messages[0], deferred: Vec::new() })
    }

    async fn publish(&self, begins: &Self::Handled) -> Result<(), Away> {
        let is_first = self.first.lock().unwrap().get_or_insert(*begins) == begins;
        if is_first && !self.is_back.load(Ordering::SeqCst) { Err(Away) } else { Ok(()) }
    }

    fn fate(_: &Away) -> Fate {
        Fate::Retry("kafka")
    }
}

/// Runs a lane in batches of five until `end` is complete. Returns how many messages the group has
/// not committed then.
async fn run_lane(world: &World, handler: &BrokerAway, end: impl Future<Output = ()>) -> i64 {
    let (member, lane) = Member::join(world);
    let batches = BatchConfig { max: 5, linger: Duration::from_millis(2) };
    tokio::join!(member.run(world, lane, handler, batches), async {
        end.await;
        member.shutdown.request();
    });
    member.leave().await;
    world.uncommitted(&world.config.kafka.group_id, &world.config.topics.orders)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_batch_is_committed_before_an_earlier_one_is_published() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (group_id, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    produce_text(&world, MESSAGES, "x").await;
    let handler = BrokerAway::default();

    // The first batch may have fewer messages than five: it does not wait for more.
    let uncommitted = run_lane(&world, &handler, async {
        wait_until("batches are handled ahead of the first", async || {
            handler.batches.load(Ordering::SeqCst) >= 3
        })
        .await;
    })
    .await;

    assert_eq!(uncommitted, i64::try_from(MESSAGES).unwrap(), "a later batch was committed");
    let ahead = handler.handled.load(Ordering::SeqCst);
    assert!(ahead <= 20, "{ahead} messages were handled, and none of them was published");

    handler.is_back.store(true, Ordering::SeqCst);
    let uncommitted = run_lane(&world, &handler, world.caught_up(group_id, topic)).await;

    assert_eq!(uncommitted, 0);
    assert_eq!(handler.handled.load(Ordering::SeqCst), ahead + MESSAGES, "not all came again");
}
