//! Topics that take smaller messages than a producer sends, or no letter without a key. `setup`
//! warns of both.

use std::collections::BTreeSet;

use chrono::Utc;
use rdkafka::{
    ClientConfig, Message as _,
    message::OwnedMessage,
    producer::{FutureProducer, FutureRecord},
};
use serde_json::json;
use stocklock::{
    domain::{Line, Lines, ProductId},
    kafka::{MIN_MESSAGE_BYTES, Message, ProduceError, Producer},
    wire::OrderEventCodec,
};

use crate::harness::{
    Database, PATIENCE, Strategy, World, header, lines, made_at, order_lines, place_all, wait_for,
    wait_until,
};

/// Less than a batch of some hundred orders or statuses.
const SMALL: usize = 20_000;
const ORDERS: usize = 4000;

/// A product id of the largest size, which does not compress.
fn long_id(number: usize) -> String {
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(60).collect();
    format!("{number:04}{noise}")
}

fn incompressible(bytes: usize) -> Message {
    let payload = std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect();
    Message { key: Some(b"k".to_vec()), payload: Some(payload), headers: None }
}

/// Waits until the broker refuses a batch of this size.
async fn takes_no_more(world: &World, topic: &str, bytes: usize) {
    let producer = Producer::new(&world.config.kafka).expect("a producer");
    wait_until(&format!("{topic} takes no {bytes} bytes"), async || {
        producer.produce(topic, vec![incompressible(bytes)]).await.is_err()
    })
    .await;
}

/// The worker finds the topic large as it starts, and the compensator finds it small.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_orders_become_final_on_a_topic_that_takes_only_small_batches() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    world.import(&[("a", 100_000)]);
    let worker = world.start_with("worker", &[("STOCKLOCK__WORKER__LINGER", "500ms")]).await;
    worker.freeze();
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); ORDERS]).await).await;
    world.limit_message_bytes(&topics.order_status, SMALL).await;
    takes_no_more(&world, &topics.order_status, SMALL).await;

    worker.thaw();
    let compensator = world.start("compensator").await;
    world.settled().await;

    assert_eq!(world.count_orders("COMPLETED").await, i64::try_from(ORDERS).unwrap());
    for role in [&worker, &compensator] {
        assert!(role.log().contains("limiting the producer's batches"), "{}", role.log());
    }
    worker.stop();
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_batch_is_produced_again_down_to_single_messages() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topic = &world.config.topics.order_status;
    world.limit_message_bytes(topic, SMALL).await;
    takes_no_more(&world, topic, SMALL).await;
    let before = world.count_messages(topic);
    let mut messages: Vec<_> = (0..500).map(|_| incompressible(900)).collect();
    messages[77] = incompressible(SMALL);
    let producer = Producer::new(&world.config.kafka).expect("a producer");

    let result = producer.produce(topic, messages).await;

    let Err(ProduceError::TooLarge { numbers, .. }) = result else { panic!("{result:?}") };
    assert_eq!(numbers, [77]);
    assert_eq!(world.count_messages(topic) - before, 499);

    // It asked a moment ago, so now it can only try.
    world.limit_message_bytes(topic, SMALL / 4).await;
    takes_no_more(&world, topic, SMALL / 4).await;
    let before = world.count_messages(topic);
    producer
        .produce(topic, (0..500).map(|_| incompressible(900)).collect())
        .await
        .expect("each alone");
    assert_eq!(world.count_messages(topic) - before, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_its_topic_does_not_take_waits_alone_in_the_outbox() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let topics = &world.config.topics;
    let ids: Vec<_> = (0..100).map(long_id).collect();
    world.import(&ids.iter().map(|id| (id.as_str(), 1000)).collect::<Vec<_>>());
    world.limit_message_bytes(&topics.orders, 2500).await;
    takes_no_more(&world, &topics.orders, 2500).await;
    let all = world.start_with("all", &[("STOCKLOCK__INGEST__LINGER", "500ms")]).await;
    let huge = lines(&ids.iter().map(|id| (id.as_str(), 1)).collect::<Vec<_>>());
    let mut bodies = vec![lines(&[(&ids[0], 1)]); 40];
    bodies.insert(20, huge);

    assert_eq!(place_all(&all.http, &bodies, bodies.len()).await.len(), bodies.len());

    all.shows("stocklock_outbox_pending", "", |pending| pending == 1.0).await;
    world.completed(40).await;
    assert!(all.log().contains("too large for topic"), "{}", all.log());
    world.limit_message_bytes(&topics.orders, 1_000_000).await;
    world.settled().await;
    assert_eq!(world.count_orders("COMPLETED").await, 41);
    all.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_whose_status_its_topic_does_not_take_is_dead_lettered() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    world.import(&[("a", 10)]);
    let orders = world.save(&vec![order_lines(&[("a", 1)]); 3]).await;
    world.produce_events(&orders).await;
    world.limit_message_bytes(&topics.order_status, 80).await;
    takes_no_more(&world, &topics.order_status, 80).await;

    let worker = world.start("worker").await;
    world.caught_up(&world.config.kafka.group_id, &topics.orders).await;

    let letters = world.read_topic(&topics.orders_dlq);
    assert_eq!(letters.len(), 3);
    assert!(
        letters
            .iter()
            .all(|letter| header(letter, "stocklock.error.class").as_deref() == Some("too_large"))
    );
    world.limit_message_bytes(&topics.order_status, 1_000_000).await;
    // As ingest does with orders that stay pending.
    let compensator = world.start("compensator").await;
    wait_until("the orders are completed", async || {
        world.produce_events(&orders).await;
        world.count_orders("COMPLETED").await == 3
    })
    .await;
    assert_eq!(world.available("a"), 7);
    worker.stop();
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_without_a_key_gets_one_where_its_topic_is_compacted() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    world.alter_topic(&topics.order_status_dlq, "cleanup.policy", "compact").await;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &world.config.kafka.brokers);
    let producer: FutureProducer = client.create().expect("a producer");
    // A refusal shows that the broker has seen the change.
    let no_key = || FutureRecord::<(), str>::to(&topics.order_status_dlq).payload("no key");
    wait_until("the topic refuses letters without a key", async || {
        producer.send(no_key(), PATIENCE).await.is_err()
    })
    .await;
    for number in 0..10 {
        let bad = FutureRecord::<[u8], str>::to(&topics.order_status)
            .payload("no Avro")
            .partition(number % 4);
        let bad = if number < 5 { bad } else { bad.key(b"a key") };
        producer.send(bad, PATIENCE).await.map_err(|(error, _)| error).expect("produced");
    }

    let compensator = world.start("compensator").await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;

    let letters = world.read_topic(&topics.order_status_dlq);
    let letters: Vec<_> = letters.into_iter().filter(|l| l.headers().is_some()).collect();
    let origin = |letter: &OwnedMessage, name: &str| {
        header(letter, &format!("stocklock.original.{name}")).expect("the origin")
    };
    let origins: BTreeSet<_> =
        letters.iter().map(|l| (origin(l, "partition"), origin(l, "offset"))).collect();
    assert_eq!(origins.len(), 10);
    for letter in &letters {
        let made = format!(
            "{}-{}-{}",
            topics.order_status,
            origin(letter, "partition"),
            origin(letter, "offset")
        );
        let key = String::from_utf8_lossy(letter.key().expect("a key")).into_owned();
        let is_made = header(letter, "stocklock.key.made").is_some();
        assert_eq!(key, if is_made { made } else { "a key".to_owned() });
    }
    compensator.stop();
}

/// The warnings of `setup` about topics. It also warns of the database, which is not durable here.
fn of_topics(report: &serde_json::Value) -> Vec<&str> {
    let warnings = report["warnings"].as_array().map_or(&[][..], Vec::as_slice).iter();
    let texts = warnings.map(|warning| warning.as_str().expect("a text"));
    texts.filter(|text| text.starts_with("topic ")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setup_says_which_setting_of_a_topic_can_stop_us() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    let bad = [
        (&topics.orders, "cleanup.policy", "compact"),
        (&topics.orders_dlq, "min.insync.replicas", "2"),
        (&topics.order_status, "max.message.bytes", "16383"),
        (&topics.order_status_dlq, "retention.bytes", "1000000"),
    ];
    for (topic, name, value) in bad {
        world.alter_topic(topic, name, value).await;
    }
    let expected = bad.map(|(topic, name, value)| format!("topic {topic}: {name} is {value}"));

    // The broker may need a moment to see the changes itself.
    let (text, report) = wait_for(async || {
        let set_up = world.cli(&["--output", "json", "setup"]).succeeds();
        let (text, report) = (set_up.stderr(), set_up.json());
        if of_topics(&report).len() >= bad.len() { Ok((text, report)) } else { Err(report) }
    })
    .await;

    for expected in &expected {
        assert!(text.contains(&format!("WARNING: {expected}")), "{expected} is not in\n{text}");
    }
    let warnings = of_topics(&report);
    assert_eq!(warnings.len(), bad.len(), "{warnings:?}");
    assert_eq!(report["topics"].as_array().map(Vec::len), Some(4));
    assert_eq!(report["order_store"], json!("migrated"));
}

#[test]
fn the_largest_order_event_fits_what_setup_asks_of_a_topic() {
    let line = |number| Line::new(ProductId::parse(&long_id(number)).unwrap(), 1_000_000).unwrap();
    let event = stocklock::domain::OrderEvent {
        order_id: made_at(Utc::now()),
        kind: stocklock::domain::EventKind::Release,
        lines: Lines::new((0..100).map(line).collect()).unwrap(),
        accepted_at: Utc::now(),
        hold_seconds: Some(86_400),
        reference: Some("\u{1f600}".repeat(128)),
    };

    let bytes = OrderEventCodec::new().unwrap().encode(&event).len();

    // Its key, its headers, the caller's reference and the batch's own head are the rest.
    assert!(i64::try_from(bytes + 4096).unwrap() < MIN_MESSAGE_BYTES, "{bytes} bytes");
}
