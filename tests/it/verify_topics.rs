//! `stocklock verify` and the topics: what the workers have passed, and what was dead-lettered.

use serde_json::{Value, json};
use stocklock::domain::{OrderEvent, OrderId};

use crate::harness::{Database, Role, Strategy, World, deliver, order_lines, release};

/// A world with some orders that are saved, and on the topic.
async fn produced(count: usize) -> (World, Vec<OrderEvent>) {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 9)]);
    let events = world.save(&vec![order_lines(&[("a", 1)]); count]).await;
    world.produce_events(&events).await;
    (world, events)
}

fn pass(world: &World, messages_beyond_the_end: i64) {
    world.commit_beyond_the_end(
        &world.config.kafka.group_id,
        &world.config.topics.orders,
        messages_beyond_the_end,
    );
}

fn report(world: &World, args: &[&str], status: i32) -> Value {
    world
        .cli(&[&["--output", "json", "verify", "--settle", "0s"], args].concat())
        .exits(status)
        .json()
}

/// The subjects of the violations, all of invariant 7, sorted.
fn passed_by(report: &Value) -> Vec<String> {
    let violations = report["violations"].as_array().expect("violations");
    assert!(violations.iter().all(|violation| violation["invariant"] == 7), "{report:#}");
    let mut subjects: Vec<_> = violations
        .iter()
        .map(|violation| violation["subject"].as_str().expect("a subject").to_owned())
        .collect();
    subjects.sort();
    subjects
}

fn named(events: &[OrderEvent]) -> Vec<String> {
    let mut subjects: Vec<_> =
        events.iter().map(|event| format!("order {}", event.order_id)).collect();
    subjects.sort();
    subjects
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_that_offsets_passed_undecided_are_named() {
    let (world, events) = produced(3).await;
    let worker = world.worker(&World::metrics());
    assert_eq!(report(&world, &[], 2)["violations"], json!([]), "nothing is passed yet");
    deliver(&worker, &events[..1]).await;

    pass(&world, 0);
    let found = report(&world, &[], 1);

    assert_eq!((found["events"].as_u64(), passed_by(&found)), (Some(3), named(&events[1..])));
    assert!(found["violations"][0]["detail"].to_string().contains("of partition"), "{found:#}");
    // The orders are pending, which is invariant 3's.
    assert_eq!(report(&world, &["--without", "7"], 2)["violations"], json!([]));
    deliver(&worker, &events).await;
    assert_eq!(report(&world, &[], 2)["violations"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_was_passed_without_effect_is_named() {
    let (world, events) = produced(2).await;
    let worker = world.worker(&World::metrics());
    deliver(&worker, &events).await;
    world.produce_events(&[release(&events[1])]).await;

    pass(&world, 0);

    assert_eq!(passed_by(&report(&world, &[], 1)), named(&events[1..]));
    deliver(&worker, &[release(&events[1])]).await;
    assert_eq!(report(&world, &[], 2)["violations"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_was_passed_without_a_letter_is_named() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    world
        .produce(&world.config.topics.orders, vec![(OrderId::generate(), b"no event".to_vec())])
        .await;

    pass(&world, 0);
    let found = report(&world, &[], 1);

    assert!(passed_by(&found)[0].starts_with("message "), "{found:#}");
    // Once letters are deleted, it is unknown whether this message had one.
    let letters = &world.config.topics.orders_dlq;
    world
        .produce(letters, (0..40).map(|_| (OrderId::generate(), b"a letter".to_vec())).collect())
        .await;
    assert_eq!(report(&world, &[], 1)["violations"], found["violations"]);
    world.truncate_topic(letters).await;
    assert_eq!(report(&world, &[], 0)["violations"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_beyond_the_end_of_the_topic_are_not_said_to_hold() {
    let (world, _) = produced(1).await;

    pass(&world, 100);
    let found = report(&world, &[], 2);

    assert!(found["unchecked"].to_string().contains("invariant 7"), "{found:#}");
    assert!(found["unchecked"].to_string().contains("have committed"), "{found:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_kafka_the_offsets_are_not_said_to_hold() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let nowhere = ["--set", "kafka.brokers=127.0.0.1:9"];

    let found = report(&world, &nowhere, 2);
    let without = report(&world, &[&nowhere[..], &["--without", "7"]].concat(), 0);

    assert!(found["unchecked"].to_string().contains("--without 7"), "{found:#}");
    assert_eq!((&found["holds"], &without["holds"]), (&json!(false), &json!(true)));
    assert!(without["left_out"].to_string().contains("invariant 7"), "{without:#}");
    let refused = world.cli(&["verify", "--without", "5"]).exits(2);
    assert!(refused.stderr().contains("6..=7"), "{}", refused.stderr());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_cannot_be_read_are_named() {
    let (world, events) = produced(1).await;

    let found = report(&world, &["--set", "topics.orders_dlq=nowhere"], 2);

    let unchecked = found["unchecked"].to_string();
    assert!(unchecked.contains("invariant 3, which orders are dead-lettered"), "{unchecked}");
    assert_eq!(found["unsettled"][0][0], json!(events[0].order_id.to_string()));
}

/// Has a table refuse one order, for its data.
fn refuse(table: &str, write: &str, event: &OrderEvent) -> String {
    let id = event.order_id.uuid().simple();
    format!(
        "CREATE TRIGGER refuse BEFORE {write} ON {table} FOR EACH ROW IF NEW.order_id = X'{id}'
         THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF"
    )
}

/// One order's event is refused, another's status.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_lettered_orders_are_listed_apart() {
    let (world, events) = produced(2).await;
    world.tamper_with_stock(&refuse("order_outcomes", "INSERT", &events[0])).await;
    world.tamper_with_orders(&refuse("orders", "UPDATE", &events[1])).await;
    let all = [world.start("worker").await, world.start("compensator").await];
    world.caught_up(&world.config.kafka.group_id, &world.config.topics.orders).await;
    world.caught_up(&world.config.compensator.group_id, &world.config.topics.order_status).await;

    let found = report(&world, &[], 0);

    assert_eq!((&found["unsettled"], &found["violations"]), (&json!([]), &json!([])), "{found:#}");
    for (event, topic) in events.iter().zip(["orders.dlq", "order-status.dlq"]) {
        let apart = found["dead_lettered"].as_array().expect("a list");
        let of_order =
            apart.iter().find(|order| order[0] == event.order_id.to_string()).expect("the order");
        let why = of_order[1].as_str().expect("a text");
        assert!(
            why.contains("refused") && why.contains(topic) && why.contains("not this one"),
            "{why}"
        );
    }
    let text = world.cli(&["verify", "--settle", "60s"]).succeeds().stdout();
    assert_eq!(text.matches("DEAD-LETTERED order").count(), 2, "{text}");
    all.into_iter().for_each(Role::stop);
}

/// A report of another system that is dead-lettered says nothing about the order's own messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_dead_letter_does_not_set_an_order_apart() {
    let (world, events) = produced(1).await;
    world.tamper_with_orders(&refuse("orders", "UPDATE", &events[0])).await;
    let compensator = world.start("compensator").await;
    world.report_failed(events[0].order_id, "card declined").await;
    world.caught_up(&world.config.compensator.group_id, &world.config.topics.order_status).await;
    assert_eq!(world.count_messages(&world.config.topics.order_status_dlq), 1);

    let found = report(&world, &[], 2);

    let id = json!(events[0].order_id.to_string());
    assert_eq!((&found["unsettled"][0][0], &found["dead_lettered"]), (&id, &json!([])));
    compensator.stop();
}
