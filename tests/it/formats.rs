//! The formats of `order-status`: JSON, and the headers of `CloudEvents`.

use rdkafka::Message as _;
use serde_json::{Value, json};

use crate::harness::{Api, Database, Program, Strategy, World, lines};

/// A worker completes an order, ingest cancels another, and a person fails a third.
async fn report_three_orders(world: &World) -> [String; 3] {
    world.import(&[("a", 9)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201).order_id().to_owned());
    }
    api.request(&ids[1], "cancel").await.is(200);
    world.cli(&["order", "fail", &ids[2], "--reason", "lost"]).succeeds();
    api.becomes(&ids[2], "FAILED").await;
    world.verify();
    all.stop();
    ids.try_into().expect("three ids")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statuses_are_written_and_read_as_json_objects() {
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    world.env.insert("STOCKLOCK__TOPICS__STATUS_FORMAT".to_owned(), "json".to_owned());

    let [completed, cancelled, failed] = report_three_orders(&world).await;

    let read = world.read_topic(&world.config.topics.order_status);
    let read: Vec<Value> = read
        .iter()
        .map(|message| serde_json::from_slice(message.payload().expect("a value")).expect("JSON"))
        .collect();
    let find = |id: &str, status: &str| {
        let found =
            read.iter().find(|object| object["order_id"] == id && object["status"] == status);
        found.unwrap_or_else(|| panic!("{id} {status} in {read:?}"))
    };
    let object = find(&completed, "COMPLETED");
    assert_eq!((&object["source"], &object["reason"]), (&json!("worker"), &Value::Null));
    let time = object["occurred_at"].as_str().expect("a text");
    assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok() && time.ends_with('Z'), "{time}");
    assert_eq!(find(&cancelled, "CANCELLED")["source"], "ingest");
    assert_eq!(find(&failed, "FAILED")["reason"], "lost");
    assert_eq!(object.as_object().expect("an object").len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_cloud_events_reads_every_status() {
    let mut world = World::new(Database::MariaDb, Strategy::Row).await;
    for (key, value) in [("STATUS_FORMAT", "json"), ("CLOUDEVENTS", "true")] {
        world.env.insert(format!("STOCKLOCK__TOPICS__{key}"), value.to_owned());
    }

    let [completed, cancelled, failed] = report_three_orders(&world).await;

    let topic = &world.config.topics.order_status;
    let count = world.count_messages(topic).to_string();
    let args = [world.config.kafka.brokers.as_str(), topic, &count];
    let read = Program::python("tests/clients/cloud_events.py").run(&args, "");
    let events: Vec<Value> =
        read.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    for (order_id, status, source) in [
        (&completed, "COMPLETED", "/stocklock/worker"),
        (&cancelled, "CANCELLED", "/stocklock/ingest"),
    ] {
        let id = format!("{order_id}/{status}");
        let event = events.iter().find(|event| event["id"] == id.as_str()).expect("the event");
        assert_eq!((&event["source"], &event["subject"]), (&json!(source), &json!(order_id)));
        assert_eq!(event["type"], "io.stocklock.order_status");
        assert_eq!(event["datacontenttype"], "application/json");
        assert_eq!(event["data"]["status"], status);
        assert!(event["time"].is_string(), "{event}");
    }
    assert!(events.iter().any(|event| event["id"] == format!("{failed}/FAILED").as_str()));
}
