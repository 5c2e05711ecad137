//! The topics with a real schema registry: Apicurio, through the API of Confluent's registry.

use std::time::Duration;

use serde_json::{Value, json};
use stocklock::{
    domain::{OrderId, OrderStatus, Reason, ReportedStatus},
    wire::OrderStatusCodec,
};

use crate::harness::{
    Api, Database, Gate, Program, Proxy, Registry, Role, Strategy, World, header, http_get, lines,
    order_lines, place_all, stays, wait_until,
};

/// The bytes before a datum in single-object encoding.
const HEADER_BYTES: usize = 10;
const SCHEMA: &str = include_str!("../../schemas/order_status.avsc");
/// Orders that are placed, decided and failed while the registry is away.
const ORDERS_MEANWHILE: usize = 200;
/// `stock:secret` in base64.
const CREDENTIALS: &str = "c3RvY2s6c2VjcmV0";

/// The schema of statuses with one more field in front, with a default.
fn grown(field: &str) -> String {
    let mut schema: Value = serde_json::from_str(SCHEMA).expect("JSON");
    let field = json!({"name": field, "type": ["null", "string"], "default": null});
    schema["fields"].as_array_mut().expect("fields").insert(0, field);
    schema.to_string()
}

/// A FAILED in the framing of registries, whose writer has one more field in front.
fn failed(order_id: OrderId, schema_id: u32) -> Vec<u8> {
    let status = OrderStatus {
        order_id,
        status: ReportedStatus::Failed(Reason::parse("declined")),
        source: "payments".to_owned(),
        occurred_at: chrono::Utc::now(),
        reference: None,
    };
    let encoded = OrderStatusCodec::new().expect("the schema").encode(&status);
    let mut value = vec![0];
    value.extend(schema_id.to_be_bytes());
    value.push(0);
    value.extend(&encoded[HEADER_BYTES..]);
    value
}

/// A world whose registry is behind a gate, without `setup` of the schemas.
async fn behind(gate: &Gate, database: Database) -> World {
    let mut world = World::new(database, Strategy::Row).await;
    for (key, value) in [("URL", gate.url.as_str()), ("USERNAME", "stock"), ("PASSWORD", "secret")]
    {
        world.env.insert(format!("STOCKLOCK__SCHEMA_REGISTRY__{key}"), value.to_owned());
    }
    world
}

/// Has a client of the registry read both topics and fail a completed order.
async fn fails_an_order(world: World, program: Program, registry_url: &str, reason: &str) {
    let topics = &world.config.topics;
    world.import(&[("a", 5)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    let id = api.place_and_wait(&lines(&[("a", 2)]), 30).await.is(201).order_id().to_owned();

    let args =
        [&world.config.kafka.brokers, registry_url, &topics.orders, &topics.order_status, &id];
    let read = program.run(&args, "");

    let read: Vec<Value> =
        read.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
    let placed = read.iter().find(|record| record["kind"] == "PLACED").expect("the order");
    assert_eq!(placed["lines"], json!([{"product_id": "a", "quantity": 2}]));
    let status = read.iter().find(|record| record["status"] == "COMPLETED").expect("its status");
    assert_eq!((&status["order_id"], &status["source"]), (&json!(id), &json!("worker")));
    assert_eq!(api.becomes(&id, "FAILED").await["reason"], reason);
    world.verify();
    assert_eq!(all.count("stocklock_dead_letters_total", "").await, 0);
    all.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_of_the_registry_reads_and_fails_an_order() {
    let registry = Registry::shared().await;
    let world = World::with_registry(Database::MySql, &registry.url()).await;
    let program = Program::python("tests/clients/registered.py");
    fails_an_order(world, program, &registry.url(), "by Python").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_java_client_of_the_registry_reads_and_fails_an_order() {
    let registry = Registry::shared().await;
    let world = World::with_registry(Database::MariaDb, &registry.url()).await;
    let program = Program::java("tests/clients/Registered.java");
    fails_an_order(world, program, &registry.own_url(), "by Java").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setup_registers_each_schema_once() {
    let registry = Registry::shared().await;
    let mut world = World::with_registry(Database::MySql, &registry.url()).await;
    let levels = format!("{}-levels", world.config.topics.orders);
    world.env.insert("STOCKLOCK__TOPICS__STOCK_LEVELS".to_owned(), levels.clone());

    let again = world.cli(&["--output", "json", "setup"]).succeeds().json();

    let topics = &world.config.topics;
    let subjects: Vec<_> = again["schemas"].as_array().expect("a list").iter().collect();
    let expected = [(&topics.orders, false), (&topics.order_status, false), (&levels, true)];
    assert_eq!(subjects.len(), expected.len(), "{again}");
    for (subject, (topic, created)) in subjects.into_iter().zip(expected) {
        let (name, was_created) = (&subject["subject"], &subject["created"]);
        assert_eq!((name, was_created), (&json!(format!("{topic}-value")), &json!(created)));
        assert!(subject["id"].as_u64().is_some_and(|id| id > 0), "{subject}");
    }
    let url = format!("{}/config/{levels}-value", registry.url());
    let level: Value = http_get(url).await.expect("answered").json().await.expect("JSON");
    assert_eq!(level["compatibilityLevel"], "BACKWARD");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setup_reports_a_schema_that_cannot_read_the_registered_one() {
    let registry = Registry::shared().await;
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    world.env.insert("STOCKLOCK__SCHEMA_REGISTRY__URL".to_owned(), registry.url());
    let subject = format!("{}-value", world.config.topics.order_status);
    let other = r#"{"type": "record", "name": "order_status", "namespace": "io.stocklock",
        "fields": [{"name": "status", "type": "long"}]}"#;
    registry.register(&subject, other).await;

    let refused = world.cli(&["setup"]).exits(1);

    let text = refused.stdout();
    let line = text.lines().find(|line| line.contains(&subject)).expect("a line");
    assert!(line.contains("NOT REGISTERED") && line.contains("order_id"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setup_asks_again_when_the_registry_fails() {
    let registry = Registry::shared().await;
    let gate = Gate::before(&registry.url(), CREDENTIALS).await;
    let world = behind(&gate, Database::MySql).await;

    gate.fail_next(3);
    world.cli(&["setup"]).succeeds();
    assert_eq!(gate.failures_left(), 0);

    gate.fail_next(usize::MAX);
    let refused = world.cli(&["setup"]).exits(2).stderr();
    assert!(refused.contains("the schema registry fails: 500"), "{refused}");
}

/// Values of a known schema are handled while the registry is away, also those behind a value that
/// waits. That one is handled once the registry is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_away_stops_no_message_of_a_known_schema() {
    let registry = Registry::shared().await;
    let (proxy, url) = Proxy::before(&registry.url()).await;
    let world = World::with_registry(Database::MySql, &url).await;
    let topics = &world.config.topics;
    world.import(&[("a", 500)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    let placed = api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201).order_id().to_owned();
    let later = registry.register(&format!("{}-value", topics.order_status), &grown("late")).await;

    proxy.cut();
    let id: OrderId = placed.parse().expect("an id");
    world.produce(&topics.order_status, vec![(id, failed(id, later))]).await;
    wait_until("a look-up fails", async || {
        all.count("stocklock_retries_total", "dependency=\"schema_registry\"").await > 0
    })
    .await;
    let bodies = vec![lines(&[("a", 1)]); ORDERS_MEANWHILE];
    let ids = place_all(&all.http, &bodies, 16).await;
    for id in &ids {
        world.report_failed(id.parse().expect("an id"), "in single-object encoding").await;
    }
    for id in &ids {
        api.becomes(id, "FAILED").await;
    }
    let path = format!("/v1/orders/{placed}");
    stays(Duration::from_secs(1), "it waits", async || {
        api.get(&path).await.body["status"] == "COMPLETED"
    })
    .await;
    assert!(world.uncommitted(&world.config.compensator.group_id, &topics.order_status) > 0);
    proxy.mend();

    api.becomes(&placed, "FAILED").await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;
    assert_eq!(all.count("stocklock_dead_letters_total", "").await, 0);
    world.verify();
    assert_eq!(world.available("a"), 500);
    all.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_the_registry_does_not_have_is_looked_up_once() {
    let registry = Registry::shared().await;
    let gate = Gate::before(&registry.url(), CREDENTIALS).await;
    let world = behind(&gate, Database::MariaDb).await;
    world.cli(&["setup"]).succeeds();
    world.import(&[("a", 9)]);
    let events = world.save(&vec![order_lines(&[("a", 1)]); 8]).await;
    let topic = world.config.topics.order_status.clone();
    let compensator = world.start("compensator").await;

    for event in &events {
        let value = failed(event.order_id, 987_654);
        world.produce(&topic, vec![(event.order_id, value)]).await;
    }
    world.caught_up(&world.config.compensator.group_id, &topic).await;

    assert_eq!(gate.count("/schemas/ids/987654"), 1);
    let letters = world.read_topic(&world.config.topics.order_status_dlq);
    assert_eq!(letters.len(), events.len());
    for letter in letters {
        assert_eq!(
            header(&letter, "stocklock.error.class").as_deref(),
            Some("unregistered_schema")
        );
        let text = header(&letter, "stocklock.error.text").expect("a text");
        assert!(text.contains("987654") && text.contains("no schema with this id"), "{text}");
    }
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_refuses_the_credentials_is_named() {
    let registry = Registry::shared().await;
    let gate = Gate::before(&registry.url(), CREDENTIALS).await;
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    world.env.insert("STOCKLOCK__SCHEMA_REGISTRY__URL".to_owned(), gate.url.clone());

    let refused = world.cli(&["setup"]).exits(2).stderr();
    let role = Role::spawn(&world.env, "worker", &[]);
    role.listening().await;
    let why = role.complains("schema ids").await;

    for text in [&refused, &why] {
        assert!(text.contains("401") && text.contains("schema_registry.username"), "{text}");
    }
    role.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_begins_once_it_knows_the_ids_of_its_schemas() {
    let registry = Registry::shared().await;
    let (proxy, url) = Proxy::before(&registry.url()).await;
    let world = World::with_registry(Database::MySql, &url).await;
    world.import(&[("a", 5)]);
    proxy.cut();

    let all = Role::spawn(&world.env, "all", &[]);
    all.listening().await;
    let why = all.complains("schema ids").await;
    proxy.mend();
    all.ready().await;

    assert!(why.contains("does not answer"), "{why}");
    Api::of(&all).place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);
    for topic in [&world.config.topics.orders, &world.config.topics.order_status] {
        let messages = world.read_topic(topic);
        let first = |message: &rdkafka::message::OwnedMessage| {
            rdkafka::Message::payload(message).and_then(|value| value.first().copied())
        };
        assert!(messages.iter().all(|message| first(message) == Some(0)), "{topic}");
        assert!(!messages.is_empty());
    }
    all.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingest_begins_and_accepts_orders_without_its_registry() {
    for hangs in [false, true] {
        let registry = Registry::shared().await;
        let (proxy, url) = Proxy::before(&registry.url()).await;
        let world = World::with_registry(Database::MySql, &url).await;
        world.import(&[("a", 5)]);
        if hangs {
            proxy.hang();
        } else {
            proxy.cut();
        }

        let ingest = world.start("ingest").await;
        let bodies = vec![lines(&[("a", 1)]); 3];
        let ids = place_all(&ingest.http, &bodies, 1).await;
        let topic = &world.config.topics.orders;
        stays(Duration::from_secs(3), "nothing is published", async || {
            world.count_messages(topic) == 0
        })
        .await;
        proxy.mend();
        wait_until("published", async || world.count_messages(topic) >= ids.len()).await;

        let messages = world.read_topic(topic);
        assert!(messages.iter().all(|message| {
            rdkafka::Message::payload(message).is_some_and(|value| value[0] == 0)
        }));
        let others = [world.start("worker").await, world.start("compensator").await];
        world.settled().await;
        assert_eq!(world.count_orders("COMPLETED").await, 3, "hangs: {hangs}");
        world.verify();
        for role in others {
            role.stop();
        }
        ingest.stop();
    }
}
