//! Workers take requests to adjust stock from a topic: each once, however often it is delivered.

use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use serde_json::json;
use stocklock::kafka::client_config;

use crate::harness::{Database, PATIENCE, Strategy, World, header, on_each_database, wait_until};

on_each_database!(
    requests_of_the_topic_are_done_and_bad_ones_dead_lettered,
    a_topic_delivered_from_its_beginning_adjusts_nothing_twice,
);

const KILLS: [&str; 2] = ["adjust.written", "adjust.committed"];

pub(crate) fn request(id: &str, product: &str, delta: i64) -> Vec<u8> {
    let adjustment = json!({"product_id": product, "delta": delta, "reason": "count"});
    json!({"request_id": id, "adjustments": [adjustment]}).to_string().into_bytes()
}

/// A world in which the topic is configured.
pub(crate) fn configured(mut world: World) -> World {
    world.configure(&[
        ("TOPICS__STOCK_ADJUSTMENTS", "{name}.stock-adjustments"),
        ("TOPICS__STOCK_ADJUSTMENTS_DLQ", "{name}.stock-adjustments.dlq"),
    ]);
    world
}

/// Produces values, to partition 0, in order.
pub(crate) fn produce(world: &World, values: &[Vec<u8>], written_at: Option<i64>) {
    let producer: FutureProducer = client_config(&world.config.kafka).create().expect("a producer");
    let topic = &topics(world).0;
    for value in values {
        let mut record = FutureRecord::<(), _>::to(topic).payload(value).partition(0);
        record.timestamp = written_at;
        producer.send_result(record).map_err(|(error, _)| error).expect("queued");
    }
    producer.flush(PATIENCE).expect("produced");
}

/// The names of the topic and of its dead letters.
fn topics(world: &World) -> (String, String) {
    let topics = world.config.topics.stock_adjustments.clone().expect("configured");
    (topics.requests, topics.dead_letters)
}

pub(crate) async fn caught_up(world: &World) {
    let (group, topic) = (world.config.kafka.adjusters_group_id(), topics(world).0);
    wait_until("caught up", async || world.uncommitted(&group, &topic) == 0).await;
}

async fn requests_of_the_topic_are_done_and_bad_ones_dead_lettered(world: World) {
    let world = configured(world);
    world.import(&[("a", 5)]);
    let old = chrono::Utc::now() - chrono::TimeDelta::days(91);
    let bad: [(Vec<u8>, &str); 8] = [
        (request("r-9", "a", -50), "conflict"),
        (request("r-10", "z", 1), "invalid"),
        (request("r-1", "a", 4), "invalid"),
        (request("", "a", 4), "invalid"),
        (b"{".to_vec(), "undecodable"),
        (b"{}".to_vec(), "undecodable"),
        (Vec::new(), "undecodable"),
        (vec![0xC3, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9], "unknown_schema"),
    ];

    let worker = world.start("worker").await;
    produce(&world, &[request("r-1", "a", 3)], None);
    let values: Vec<_> = bad.iter().map(|(value, _)| value.clone()).collect();
    produce(&world, &values, None);
    produce(&world, &[request("r-2", "a", 1)], Some(old.timestamp_millis()));
    produce(&world, &[request("r-1", "a", 3), request("r-3", "a", 2)], None);
    caught_up(&world).await;

    assert_eq!(world.available("a"), 10);
    let (topic, letters) = topics(&world);
    let letters = world.read_topic(&letters);
    let mut classes: Vec<_> =
        letters.iter().map(|letter| header(letter, "stocklock.error.class").unwrap()).collect();
    let mut expected: Vec<_> = bad.iter().map(|(_, class)| (*class).to_owned()).collect();
    expected.push("expired".to_owned());
    classes.sort();
    expected.sort();
    assert_eq!(classes, expected);
    assert_eq!(worker.count("stocklock_dead_letters_total", &topic).await, 9);
    world.verify();
    worker.stop();
}

async fn a_topic_delivered_from_its_beginning_adjusts_nothing_twice(world: World) {
    let mut world = configured(world);
    world.import(&[("a", 0)]);
    let values: Vec<_> = (0..200).map(|n| request(&format!("r-{n}"), "a", 1)).collect();
    produce(&world, &values, None);
    let worker = world.start("worker").await;
    caught_up(&world).await;
    worker.stop();

    // A group that has committed nothing reads all of the topic.
    world.configure(&[("KAFKA__GROUP_ID", "{name}-second")]);
    let again = world.start("worker").await;
    produce(&world, &[request("last", "a", 1)], None);
    caught_up(&world).await;

    assert_eq!(world.available("a"), 201);
    world.verify();
    again.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_between_commit_and_offset_adjusts_once() {
    let world = configured(World::new(Database::MySql, Strategy::Row).await);
    world.import(&[("a", 0)]);

    for (round, point) in KILLS.into_iter().enumerate() {
        let values: Vec<_> = (0..50).map(|n| request(&format!("{round}-{n}"), "a", 1)).collect();
        let dying = world.start_with("worker", &[("STOCKLOCK_CRASH_AT", point)]).await;
        produce(&world, &values, None);
        dying.crashed_at(point).await;
        let next = world.start("worker").await;
        caught_up(&world).await;
        next.stop();
    }

    assert_eq!(world.available("a"), 100);
    let listed = world.cli(&["--output", "json", "stock", "movements", "a"]).succeeds().json();
    assert_eq!(listed.as_array().map(Vec::len), Some(100));
    world.verify();
}
