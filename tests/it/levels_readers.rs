//! Other systems read the levels: in Python, with a registry, and by the headers of `CloudEvents`.

use std::collections::BTreeMap;

use rdkafka::Message as _;
use serde_json::Value;

use crate::{
    harness::{
        Api, Database, Program, Registry, Strategy, World, header, lines, on_each_database,
        wait_until,
    },
    levels::{Known, in_store, levels_are_those_of_the_store, turn_on},
};

on_each_database!(a_python_reader_that_keeps_the_highest_version_ends_equal_to_the_store);

/// What the program in Python knows of each product.
fn read_by_python(world: &World, topic: &str, schemas: &str) -> BTreeMap<String, Known> {
    let args = [world.config.kafka.brokers.as_str(), topic, schemas];
    let read = Program::python("tests/clients/stock_levels.py").run(&args, "");
    let known: BTreeMap<String, Value> = serde_json::from_str(&read).expect("an object");
    let level = |level: &Value| Known {
        version: level["version"].as_i64().expect("a version"),
        available: level["available"].as_i64().expect("a number"),
    };
    known.iter().map(|(id, known)| (id.clone(), level(known))).collect()
}

async fn a_python_reader_that_keeps_the_highest_version_ends_equal_to_the_store(mut world: World) {
    let topic = turn_on(&mut world);
    world.import(&[("a", 10), ("b", 5), ("idle", 1)]);
    let all = world.start("all").await;
    for _ in 0..3 {
        Api::of(&all).place_and_wait(&lines(&[("a", 2), ("b", 1)]), 30).await.is(201);
        world.cli(&["stock", "restock", "b", "3"]).succeeds();
    }
    levels_are_those_of_the_store(&world, &topic).await;
    all.stop();

    let known = read_by_python(&world, &topic, "schemas");

    assert_eq!(known, in_store(&world).await);
    let available = ["a", "b", "idle"].map(|id| known[id].available);
    assert_eq!(available, [4, 11, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_registry_workers_and_commands_write_levels_in_its_framing() {
    let registry = Registry::shared().await;
    let mut world = World::with_registry(Database::MySql, &registry.url()).await;
    let topic = turn_on(&mut world);
    world.import(&[("a", 10)]);

    let worker = world.start("worker").await;
    wait_until("the import's level", async || world.count_messages(&topic) == 1).await;
    worker.stop();
    world.cli(&["stock", "publish"]).succeeds();

    let published = world.read_topic(&topic);
    assert_eq!(published.len(), 2);
    assert!(published.iter().all(|level| level.payload().is_some_and(|value| value[0] == 0)));
    let known = read_by_python(&world, &topic, &registry.url());
    assert_eq!(known, in_store(&world).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn levels_carry_the_headers_of_cloud_events_if_they_are_on() {
    let mut world = World::new(Database::MariaDb, Strategy::Row).await;
    let topic = turn_on(&mut world);
    world.import(&[("sku/1", 10)]);
    world.cli(&["stock", "publish"]).succeeds();
    world.configure(&[("TOPICS__CLOUDEVENTS", "true")]);
    world.cli(&["stock", "publish"]).succeeds();

    let published = world.read_topic(&topic);

    let [plain, event] = published.as_slice() else { panic!("{published:?}") };
    assert_eq!(header(plain, "ce_id"), None);
    let version = in_store(&world).await["sku/1"].version;
    let expected = [
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", format!("sku/1/{version}")),
        ("ce_source", "/stocklock/stock".to_owned()),
        ("ce_type", "io.stocklock.stock_level".to_owned()),
        ("ce_subject", "sku/1".to_owned()),
        ("content-type", "application/avro".to_owned()),
    ];
    for (key, value) in expected {
        assert_eq!(header(event, key), Some(value), "{key}");
    }
    let time = header(event, "ce_time").expect("a time");
    assert!(chrono::DateTime::parse_from_rfc3339(&time).is_ok(), "{time}");
}
