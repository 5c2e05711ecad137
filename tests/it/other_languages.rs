//! What programs in other languages read and write, with their own libraries.

use rdkafka::Message as _;
use serde_json::{Value, json};
use stocklock::{
    domain::{OrderEvent, OrderId, OrderStatus, Reason, ReportedStatus},
    kafka::{Message, Producer},
    wire::{OrderEventCodec, OrderStatusCodec},
};

use crate::harness::{Api, Database, Program, Role, Strategy, World, header, lines, order_lines};

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// Has a program read both topics and fail a completed order.
async fn fails_an_order(world: World, program: Program) {
    let topics = &world.config.topics;
    world.import(&[("a", 5)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    let id = api.place_and_wait(&lines(&[("a", 2)]), 30).await.is(201).order_id().to_owned();

    let args = [
        &world.config.kafka.brokers,
        &topics.orders,
        &topics.order_status,
        &id,
        "payment declined",
    ];
    let read = program.run(&args, "");

    let read: Vec<Value> =
        read.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
    let placed = read.iter().find(|record| record["kind"] == "PLACED").expect("the order");
    assert_eq!(
        (&placed["order_id"], &placed["lines"]),
        (&json!(id), &json!([{"product_id": "a", "quantity": 2}]))
    );
    let status = read.iter().find(|record| record["status"] == "COMPLETED").expect("its status");
    assert_eq!(
        (&status["order_id"], &status["source"], &status["reason"]),
        (&json!(id), &json!("worker"), &Value::Null)
    );
    let failed = api.becomes(&id, "FAILED").await;
    assert_eq!(failed["reason"], "payment declined");
    world.verify();
    assert_eq!(world.available("a"), 5);
    assert_eq!(all.count("stocklock_dead_letters_total", "").await, 0);
    all.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_program_reads_both_topics_and_fails_an_order() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    fails_an_order(world, Program::python("tests/clients/fail_order.py")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_java_program_reads_both_topics_and_fails_an_order() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    fails_an_order(world, Program::java("tests/clients/FailOrder.java")).await;
}

/// The lines that `Produce.java` takes.
fn produced(codec: &str, topic: &str, id: OrderId, value: &[u8]) -> String {
    let hex = value.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    format!("{codec} {topic} {id} {hex}\n")
}

fn failed(event: &OrderEvent) -> OrderStatus {
    let (status, source) =
        (ReportedStatus::Failed(Reason::parse("declined")), "payments".to_owned());
    OrderStatus {
        order_id: event.order_id,
        status,
        source,
        occurred_at: chrono::Utc::now(),
        reference: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_java_producer_compresses_by_any_codec_is_read() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    world.import(&[("a", 5)]);
    let events = world.save(&vec![order_lines(&[("a", 1)]); CODECS.len()]).await;
    let (event_codec, status_codec) =
        (OrderEventCodec::new().unwrap(), OrderStatusCodec::new().unwrap());
    let messages = CODECS.iter().zip(&events).flat_map(|(codec, event)| {
        let placed = produced(codec, &topics.orders, event.order_id, &event_codec.encode(event));
        [
            placed,
            produced(
                codec,
                &topics.order_status,
                event.order_id,
                &status_codec.encode(&failed(event)),
            ),
        ]
    });

    let ratios = Program::java("tests/clients/Produce.java")
        .run(&[&world.config.kafka.brokers], &messages.collect::<String>());

    for line in ratios.lines() {
        let (codec, ratio) = line.split_once(' ').expect("a codec and a ratio");
        let is_compressed = ratio.parse::<f64>().expect("a ratio") < 0.5;
        assert_eq!(is_compressed, codec != "none", "{codec} reached {ratio}");
    }
    assert_eq!(ratios.lines().count(), CODECS.len());
    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    world.caught_up(&world.config.kafka.group_id, &topics.orders).await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;
    world.verify();
    assert_eq!((world.count_orders("FAILED").await, world.available("a")), (5, 5));
    worker.stop();
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_are_decided_on_topics_that_compress_by_zstd_or_gzip() {
    for codec in ["zstd", "gzip"] {
        let world = World::new(Database::MariaDb, Strategy::Row).await;
        let topics = &world.config.topics;
        for topic in [&topics.orders, &topics.order_status, &topics.order_status_dlq] {
            world.alter_topic(topic, "compression.type", codec).await;
        }
        world.import(&[("a", 5)]);
        let all = world.start("all").await;

        let placed = Api::of(&all).place_and_wait(&lines(&[("a", 2)]), 30).await;

        placed.is(201);
        assert_eq!(world.available("a"), 3);
        all.stop();
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

/// Puts a message without a value onto a topic.
async fn bury(world: &World, topic: &str, id: OrderId) {
    let tombstone =
        Message { key: Some(id.to_string().into_bytes()), payload: None, headers: None };
    Producer::new(&world.config.kafka)
        .expect("a producer")
        .produce(topic, vec![tombstone])
        .await
        .expect("produced");
}

/// JSON, a tombstone, and a schema with one more field, named by fingerprint or by id. Two values
/// that nobody can know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_is_read_in_every_form_that_can_be_known() {
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("payments.avsc").display().to_string();
    let setting = format!("{},17={file}", folder.path().display());
    world.env.insert("STOCKLOCK__TOPICS__WRITER_SCHEMAS".to_owned(), setting);
    let topic = world.config.topics.order_status.clone();
    world.import(&[("a", 9)]);
    let ids: Vec<_> = world
        .save(&vec![order_lines(&[("a", 1)]); 6])
        .await
        .iter()
        .map(|event| event.order_id)
        .collect();
    let words: Vec<_> = std::iter::once(file).chain(ids.iter().map(ToString::to_string)).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let written = Program::python("tests/clients/extended_status.py").run(&words, "");
    let written: Vec<_> =
        written.lines().map(|line| line.split_once(' ').expect("two words")).collect();
    let framed = |header: &str, number: usize| bytes(&format!("{header}{}", written[number].1));
    let json = json!({"order_id": ids[0].to_string(), "status": "FAILED", "reason": "in JSON"});
    let values = vec![
        (ids[0], json.to_string().into_bytes()),
        (ids[1], framed(&format!("c301{}", written[1].0), 1)),
        (ids[2], framed("0000000011", 2)),
        (ids[3], framed("0000000012", 3)),
        (ids[4], framed("c3010123456789abcdef", 4)),
    ];

    world.produce(&topic, values).await;
    bury(&world, &topic, ids[5]).await;
    let compensator = world.start("compensator").await;
    world.caught_up(&world.config.compensator.group_id, &topic).await;

    assert_eq!((world.count_orders("FAILED").await, world.count_orders("PENDING").await), (3, 3));
    let letters = world.read_topic(&world.config.topics.order_status_dlq);
    let class_of = |id: OrderId| {
        let key = id.to_string();
        let letter =
            letters.iter().find(|letter| letter.key() == Some(key.as_bytes())).expect("a letter");
        header(letter, "stocklock.error.class").expect("a class")
    };
    assert_eq!(
        (class_of(ids[3]).as_str(), class_of(ids[4]).as_str()),
        ("unregistered_schema", "unknown_schema")
    );
    assert_eq!(letters.len(), 2);
    assert_eq!(compensator.count("stocklock_compensations_total", "tombstone").await, 1);
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_does_not_start_with_a_schema_that_it_cannot_use() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let file = tempfile::NamedTempFile::with_suffix(".avsc").expect("a file");
    std::fs::write(file.path(), r#"{"type": "record", "name": "order_status", "fields": []}"#)
        .expect("written");
    let unreadable = file.path().display().to_string();

    for (schemas, what) in [(unreadable.as_str(), "order_id"), ("/nowhere.avsc", "No such file")] {
        let role = Role::spawn(
            &world.env,
            "compensator",
            &[("STOCKLOCK__TOPICS__WRITER_SCHEMAS", schemas)],
        );
        let error = role.ended(2).await;
        assert!(
            error.contains("topics.writer_schemas")
                && error.contains(schemas)
                && error.contains(what),
            "{error}"
        );
    }
}
