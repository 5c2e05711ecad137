//! One system writes messages that no role can use. It delays other systems by the rate of dead
//! letters alone.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use rdkafka::{
    ClientConfig, Message as _,
    producer::{FutureProducer, FutureRecord},
};
use stocklock::{
    domain::{OrderId, OrderStatus, Reason, ReportedStatus},
    wire::OrderStatusCodec,
};

use crate::harness::{
    Database, PATIENCE, Role, Strategy, World, header, on_each_database, order_lines, wait_until,
};

/// More than a lane holds in its memory, which passes at once.
const BAD: usize = 18_000;
/// What a lane's memory holds of them, with what its consumer's client has at hand.
const AT_ONCE: usize = 10_000;
/// The most that may pass of a partition in a second.
const RATE: usize = 2000;
const BAD_PARTITION: i32 = 0;

/// A report of a system that has the wrong orders, a value outside its bounds, or no Avro.
fn bad_value(number: usize, codec: &OrderStatusCodec) -> Vec<u8> {
    let words = "x".repeat(500);
    let status = OrderStatus {
        order_id: OrderId::generate(),
        status: if number.is_multiple_of(3) {
            ReportedStatus::Failed(Reason::parse(&words))
        } else {
            ReportedStatus::Completed
        },
        source: format!("{:a>128}", "payments"),
        occurred_at: chrono::Utc::now(),
        reference: None,
    };
    match number % 3 {
        0 | 1 => codec.encode(&status),
        _ => words.into_bytes(),
    }
}

/// Puts bad values into one partition, or into all.
async fn produce_bad(world: &World, count: usize, partition: Option<i32>) {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &world.config.kafka.brokers).set("linger.ms", "20");
    let producer: FutureProducer = client.create().expect("a producer");
    let codec = OrderStatusCodec::new().expect("the schema");
    let topic = &world.config.topics.order_status;
    let sending = stream::iter(0..count).map(|number| {
        let (value, key, producer) = (bad_value(number, &codec), number.to_string(), &producer);
        async move {
            let record = FutureRecord::to(topic).key(&key).payload(&value);
            let record = FutureRecord { partition, ..record };
            producer.send(record, PATIENCE).await.map_err(|(error, _)| error).expect("produced");
        }
    });
    sending.buffer_unordered(5000).collect::<Vec<_>>().await;
}

/// Waits until so many orders are completed. Returns the number of dead letters at that time.
async fn completed(world: &World, orders: usize, compensator: &Role) -> u64 {
    let orders = i64::try_from(orders).expect("a count");
    wait_until(&format!("{orders} orders are completed"), async || {
        world.count_orders("COMPLETED").await >= orders
    })
    .await;
    compensator.count("stocklock_dead_letters_total", &world.config.topics.order_status).await
}

on_each_database!(many_reports_of_unknown_orders_stop_no_lane,);

async fn many_reports_of_unknown_orders_stop_no_lane(world: World) {
    let topics = &world.config.topics;
    world.import(&[("a", 100)]);
    produce_bad(&world, 2000, None).await;
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 40]).await).await;

    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;

    assert_eq!(world.count_orders("COMPLETED").await, 40);
    assert_eq!(compensator.metric("stocklock_lanes_stopped", "").await, 0.0);
    for class in ["undecodable", "invalid", "unknown_order"] {
        let letters =
            compensator.count("stocklock_dead_letters_total", &format!("class=\"{class}\"")).await;
        assert!((666..=667).contains(&letters), "{letters} of {class}");
    }
    worker.stop();
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_messages_of_a_partition_delay_it_by_their_rate_and_others_not() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    world.import(&[("a", 1000)]);
    produce_bad(&world, BAD, Some(BAD_PARTITION)).await;
    let worker = world.start("worker").await;
    let orders = world.save(&vec![order_lines(&[("a", 1)]); 200]).await;
    world.produce_events(&orders).await;
    world.caught_up(&world.config.kafka.group_id, &topics.orders).await;
    let own: HashSet<_> =
        orders.iter().map(|order| order.order_id.to_string().into_bytes()).collect();
    let statuses = world.read_topic(&topics.order_status);
    let of_others = |m: &&rdkafka::message::OwnedMessage| {
        m.partition() != BAD_PARTITION && m.key().is_some_and(|key| own.contains(key))
    };
    let others = statuses.iter().filter(of_others).count();
    assert!((1..orders.len()).contains(&others), "{others} are in other partitions");

    let begun = Instant::now();
    let debug = [("STOCKLOCK__LOG__LEVEL", "info,stocklock::kafka::throttle=debug")];
    let compensator = world.start_with("compensator", &debug).await;
    let letters = completed(&world, others, &compensator).await;
    let others_took = begun.elapsed();
    completed(&world, orders.len(), &compensator).await;
    let all_took = begun.elapsed();
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;

    eprintln!(
        "{others} orders after {others_took:?} and {letters} letters, \
         all after {all_took:?} and {BAD}"
    );
    assert!(letters < BAD as u64, "orders of other partitions waited for all {letters} letters");
    let log = compensator.log();
    assert!(
        log.contains("pausing partitions with many dead letters"),
        "its rate was not bounded:\n{log}"
    );
    let least = Duration::from_secs(1) * u32::try_from(BAD - AT_ONCE).unwrap()
        / u32::try_from(RATE).unwrap();
    assert!(all_took > least, "{BAD} letters passed in {all_took:?}");
    let found = world.read_topic(&topics.order_status_dlq);
    let origins: HashSet<_> =
        found.iter().map(|letter| header(letter, "stocklock.original.offset")).collect();
    assert_eq!(origins.len(), BAD, "each bad message has its letter");
    worker.stop();
    compensator.stop();
}
