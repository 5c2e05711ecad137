//! Messages that no retry can help are dead-lettered as they were found, and later messages are
//! done.

use rdkafka::{
    ClientConfig, Message as _,
    message::{Header, OwnedHeaders, OwnedMessage},
    producer::{FutureProducer, FutureRecord},
};
use stocklock::{
    domain::{OrderId, OrderStatus, Reason, ReportedStatus},
    wire::{OrderEventCodec, OrderStatusCodec},
};

use crate::harness::{Database, PATIENCE, Strategy, World, header, order_lines};

/// The key and the value of a message, and the class of error with which it is dead-lettered.
type Poison = (OrderId, Vec<u8>, &'static str);

/// The ways in which any value can be wrong, made of a good value.
fn corrupt(good: &[u8]) -> Vec<Poison> {
    let mut other_schema = good.to_vec();
    other_schema[5] ^= 0xFF;
    let truncated = good[..good.len() - 3].to_vec();
    let followed = [good, b"more"].concat();
    [
        (b"{\"order_id\":1}".to_vec(), "undecodable"),
        (vec![0xC3], "undecodable"),
        (vec![], "undecodable"),
        (truncated, "undecodable"),
        (followed, "undecodable"),
        (other_schema, "unknown_schema"),
    ]
    .into_iter()
    .map(|(value, class)| (OrderId::generate(), value, class))
    .collect()
}

/// Replaces the first occurrence of `found`.
fn patched(value: &[u8], found: &[u8], by: &[u8]) -> Vec<u8> {
    let start = (0..value.len())
        .find(|start| value[*start..].starts_with(found))
        .expect("it stands somewhere");
    [&value[..start], by, &value[start + found.len()..]].concat()
}

fn poisoned_events(good: &[u8]) -> Vec<Poison> {
    // A quantity is a zigzag varint behind its product's id: 1 is 2, 0 is 0, -1 is 1. The last
    // three quantities are 1,000,001, the largest 64-bit number, and a number of more than 64 bits.
    let patches: [(&[u8], &[u8], &str); 8] = [
        (b"sku-1\x02", b"sku-1\x00", "invalid"),
        (b"sku-1\x02", b"sku-1\x01", "invalid"),
        (b"sku-1\x02", b"sku 1\x02", "invalid"),
        (b"PLACED", b"PLANED", "invalid"),
        (b"-7", b"!7", "invalid"),
        (b"sku-1\x02", b"sku-1\x82\x89\x7a", "invalid"),
        (b"sku-1\x02", b"sku-1\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01", "invalid"),
        (b"sku-1\x02", b"sku-1\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "undecodable"),
    ];
    let invalid =
        patches.map(|(found, by, class)| (OrderId::generate(), patched(good, found, by), class));
    corrupt(good).into_iter().chain(invalid).collect()
}

/// Fails the test unless each poisoned value was dead-lettered, as found, with its origin and its
/// error.
fn check_letters(world: &World, poison: &[Poison], topic: &str, letters_topic: &str) {
    let (found, letters) = (world.read_topic(topic), world.read_topic(letters_topic));
    for (id, value, class) in poison {
        let of = |messages: &[OwnedMessage]| {
            let key = id.to_string();
            messages.iter().find(|m| m.key() == Some(key.as_bytes())).expect("the message").clone()
        };
        let (origin, letter) = (of(&found), of(&letters));
        assert_eq!(letter.payload().unwrap_or_default(), value);
        let is = |name: &str, expected: &str| {
            let key = format!("stocklock.{name}");
            assert_eq!(header(&letter, &key).as_deref(), Some(expected), "{key} of {value:02x?}");
        };
        is("error.class", class);
        is("original.topic", topic);
        is("original.partition", &origin.partition().to_string());
        is("original.offset", &origin.offset().to_string());
        is("original.timestamp", &origin.timestamp().to_millis().expect("a time").to_string());
        assert!(header(&letter, "stocklock.error.text").is_some_and(|text| text.len() > 10));
    }
    assert_eq!(letters.len(), poison.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poisoned_order_events_are_dead_lettered_and_later_orders_done() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    let topics = &world.config.topics;
    world.import(&[("sku-1", 100)]);
    let orders = world.save(&vec![order_lines(&[("sku-1", 1)]); 60]).await;
    let poison = poisoned_events(&OrderEventCodec::new().unwrap().encode(&orders[0]));
    let values = poison.iter().map(|(id, value, _)| (*id, value.clone()));
    world.produce(&topics.orders, values.collect()).await;
    world.produce_events(&orders).await;

    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    world.caught_up(&world.config.kafka.group_id, &topics.orders).await;

    check_letters(&world, &poison, &topics.orders, &topics.orders_dlq);
    assert_eq!(worker.count("stocklock_dead_letters_total", &topics.orders).await, 14);
    assert_eq!((world.count_orders("COMPLETED").await, world.available("sku-1")), (60, 40));
    world.verify();
    worker.stop();
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poisoned_statuses_are_dead_lettered_and_later_statuses_applied() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let topics = &world.config.topics;

    world.import(&[("sku-1", 100)]);
    let orders = world.save(&vec![order_lines(&[("sku-1", 1)]); 60]).await;
    let status = ReportedStatus::Failed(Reason::parse("why not"));
    let status = OrderStatus {
        order_id: orders[0].order_id,
        status,
        source: "payments".into(),
        occurred_at: chrono::Utc::now(),
        reference: None,
    };
    let good = OrderStatusCodec::new().unwrap().encode(&status);
    let mut poison = corrupt(&good);
    poison.push((OrderId::generate(), patched(&good, b"FAILED", b"FOILED"), "invalid"));
    world
        .produce(
            &topics.order_status,
            poison.iter().map(|(id, value, _)| (*id, value.clone())).collect(),
        )
        .await;
    world.produce_events(&orders).await;

    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;

    check_letters(&world, &poison, &topics.order_status, &topics.order_status_dlq);
    assert_eq!(compensator.count("stocklock_dead_letters_total", &topics.order_status).await, 7);
    assert_eq!(world.count_orders("COMPLETED").await, 60);
    world.verify();
    worker.stop();
    compensator.stop();
}

/// A message larger than a producer sends by default, and one larger than the dead-letter topic
/// takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_any_size_is_dead_lettered() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    world.import(&[("sku-1", 100)]);
    world.limit_message_bytes(&topics.order_status, 1_600_000).await;
    world.limit_message_bytes(&topics.order_status_dlq, 1_500_000).await;
    let incompressible = |bytes| {
        (OrderId::generate(), std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect())
    };
    let (large, huge): (_, (_, Vec<u8>)) = (incompressible(1_048_000), incompressible(1_550_000));
    world.produce(&topics.order_status, vec![large.clone(), huge.clone()]).await;
    let orders = world.save(&vec![order_lines(&[("sku-1", 1)]); 20]).await;
    world.produce_events(&orders).await;

    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;

    let letters = world.read_topic(&topics.order_status_dlq);
    let of = |id: OrderId| {
        let key = id.to_string();
        letters.iter().find(|letter| letter.key() == Some(key.as_bytes())).expect("a letter")
    };
    assert!(of(large.0).payload() == Some(large.1.as_slice()), "as it was found");
    assert_eq!(header(of(large.0), "stocklock.omitted.bytes"), None);
    assert!(of(huge.0).payload().is_none(), "it does not fit");
    assert_eq!(header(of(huge.0), "stocklock.omitted.bytes").as_deref(), Some("1550000"));
    assert!(header(of(huge.0), "stocklock.original.offset").is_some(), "it can be found");
    world.verify();
    worker.stop();
    compensator.stop();
}

/// Compressed, the message is small enough for its topic. Uncompressed, its headers are too large
/// for any dead-letter topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_with_huge_headers_is_dead_lettered_without_them() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &world.config.kafka.brokers);
    client.set("message.max.bytes", "8000000").set("compression.type", "lz4");
    let producer: FutureProducer = client.create().expect("a producer");
    let zeros = vec![0_u8; 3_000_000];
    let headers = OwnedHeaders::new().insert(Header { key: "zeros", value: Some(&zeros) });
    let message =
        FutureRecord::to(&topics.order_status).key("k").payload("no Avro").headers(headers);
    producer.send(message, PATIENCE).await.map_err(|(error, _)| error).expect("produced");

    let compensator = world.start("compensator").await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;

    let letters = world.read_topic(&topics.order_status_dlq);
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].key(), letters[0].payload()), (None, None));
    assert_eq!(header(&letters[0], "stocklock.error.class").as_deref(), Some("undecodable"));
    assert_eq!(header(&letters[0], "stocklock.omitted.bytes").as_deref(), Some("3000013"));
    assert_eq!(header(&letters[0], "zeros"), None);
    compensator.stop();
}
