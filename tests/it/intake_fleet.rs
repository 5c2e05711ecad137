//! The intake beside others: a second ingest, a schema registry, the replay of dead letters.

use std::collections::BTreeMap;

use rdkafka::Message as _;
use serde_json::json;

use crate::{
    harness::{Database, Program, Registry, Strategy, World, lines, on_each_database, wait_until},
    intake::{Request, letters, mixed, order, request, taken, taking_orders, topic},
};

on_each_database!(two_ingests_share_the_records_and_take_each_once);

async fn two_ingests_share_the_records_and_take_each_once(world: World) {
    let world = taking_orders(world);
    world.import(&[("a", 10_000)]);
    let accepted = "stocklock_orders_ingested_total";
    let first = world.start("ingest").await;
    request(&world, &mixed(0..1_500), None).await;
    first.shows(accepted, "accepted", |orders| orders > 0.0).await;

    let second = world.start("ingest").await;
    second.shows("stocklock_rebalances_total", "assign", |rebalances| rebalances > 0.0).await;
    request(&world, &mixed(1_500..3_000), None).await;
    second.shows(accepted, "accepted", |orders| orders > 0.0).await;
    first.kill();
    taken(&world).await;

    assert_eq!(world.count_orders("PENDING").await, 3_000);
    assert_eq!(letters(&world), BTreeMap::new());
    second.stop();
}

/// The writer has a schema of its own, with one more field.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_the_framing_of_a_registry_are_taken() {
    let url = Registry::shared().await.url();
    let world = taking_orders(World::with_registry(Database::MySql, &url).await);
    world.import(&[("a", 9)]);
    let all = world.start("all").await;
    let record = |name: &str, format: &str| {
        json!({"format": format, "key": name, "request": order(name)}).to_string()
    };
    let input = [record("by-id", "registered"), record("by-fingerprint", "avro")].join("\n");

    let requests = &topic(&world).requests;
    Program::python("tests/clients/order_requests.py")
        .run(&[&world.config.kafka.brokers, requests, &url], &input);
    taken(&world).await;
    world.settled().await;

    let framed = world.read_topic(requests);
    assert!(framed.iter().any(|message| message.payload().is_some_and(|value| value[0] == 0)));
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (2, 7));
    assert_eq!(letters(&world), BTreeMap::new());
    all.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_whose_cause_is_mended_makes_one_order_however_often_replayed() {
    let world = taking_orders(World::new(Database::MySql, Strategy::Row).await);
    world.import(&[("a", 9)]);
    let all = world.start("all").await;
    request(&world, &[Request::of(lines(&[("late", 2)]))], None).await;
    taken(&world).await;
    assert_eq!(letters(&world), BTreeMap::from([("invalid".to_owned(), 1)]));
    world.import(&[("late", 5)]);

    for _ in 0..2 {
        world.cli(&["dlq", "replay", "--all"]).succeeds();
        taken(&world).await;
    }

    wait_until("the order is final", async || world.count_orders("COMPLETED").await == 1).await;
    world.verify();
    assert_eq!((world.available("late"), world.count_orders("PENDING").await), (3, 0));
    all.stop();
}
