//! `stocklock dlq`: letters are listed, shown, and produced again to their original topics.

use std::time::{Duration, Instant};

use rdkafka::{
    ClientConfig, Message as _,
    message::{Header, Headers as _, OwnedHeaders, OwnedMessage},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use stocklock::{
    domain::{OrderEvent, OrderId, Reason, ReportedStatus, WORKER_SOURCE},
    wire::OrderEventCodec,
};

use crate::harness::{
    Cli, Database, PATIENCE, Strategy, World, aged, free_address, on_each_database, order_lines,
    wait_until,
};

/// The id under which a registry knows the schema of [`framed`].
const REGISTERED_ID: u8 = 17;
/// The bytes of the header of a single object.
const SINGLE_OBJECT_HEADER_BYTES: usize = 10;

/// The event as a producer writes it that uses a schema registry.
fn framed(event: &OrderEvent) -> Vec<u8> {
    let own = OrderEventCodec::new().expect("the schema").encode(event);
    [&[0, 0, 0, 0, REGISTERED_ID], &own[SINGLE_OBJECT_HEADER_BYTES..]].concat()
}

/// Names the schema of [`framed`] for every later command and role.
fn register(world: &mut World) {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/order_event.avsc");
    let setting = format!("{REGISTERED_ID}={schema}");
    world.env.insert("STOCKLOCK__TOPICS__WRITER_SCHEMAS".to_owned(), setting);
}

fn dlq(world: &World, args: &[&str]) -> Cli {
    world.cli(&[&["--output", "json", "dlq"], args].concat())
}

/// The objects that a command prints, one a line.
fn objects(ended: &Cli) -> Vec<Value> {
    ended.stdout().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The letters that `dlq list` finds.
fn list(world: &World, filter: &[&str]) -> Vec<Value> {
    objects(&dlq(world, &[&["list"], filter].concat()).succeeds())
}

/// The summary of `dlq replay`.
fn replay(world: &World, args: &[&str]) -> Value {
    let mut objects = objects(&dlq(world, &[&["replay"], args].concat()).succeeds());
    objects.pop().expect("the summary")
}

/// The values of a header, in their order.
fn values(message: &OwnedMessage, name: &str) -> Vec<String> {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    let named = headers.filter(|header| header.key == name);
    named
        .map(|header| String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
        .collect()
}

/// A message of a test, with a partition of the test's choice.
struct Raw<'m> {
    partition: i32,
    key: Option<&'m str>,
    value: &'m [u8],
    headers: OwnedHeaders,
}

async fn produce_raw(world: &World, topic: &str, messages: Vec<Raw<'_>>) {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &world.config.kafka.brokers);
    let producer: FutureProducer = client.create().expect("a producer");
    for Raw { partition, key, value, headers } in messages {
        let record = FutureRecord {
            topic,
            partition: Some(partition),
            payload: Some(value),
            key: key.map(str::as_bytes),
            timestamp: None,
            headers: Some(headers),
        };
        producer.send(record, PATIENCE).await.map_err(|(error, _)| error).expect("produced");
    }
}

/// The headers of a letter whose message was in a partition.
fn letter_headers(topic: &str, partition: i32, offset: i64) -> OwnedHeaders {
    let (partition, offset) = (partition.to_string(), offset.to_string());
    [
        ("stocklock.error.class", "undecodable"),
        ("stocklock.error.text", "no Avro"),
        ("stocklock.original.topic", topic),
        ("stocklock.original.partition", &partition),
        ("stocklock.original.offset", &offset),
        ("stocklock.original.timestamp", "1700000000000"),
    ]
    .into_iter()
    .fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    })
}

on_each_database!(
    a_letter_is_replayed_once_its_schema_is_known_and_twice_changes_nothing,
    a_dry_run_says_what_each_letter_would_do_and_produces_nothing,
);

async fn a_letter_is_replayed_once_its_schema_is_known_and_twice_changes_nothing(mut world: World) {
    let topics = world.config.topics.clone();
    let group = world.config.kafka.group_id.clone();
    world.import(&[("a", 100)]);
    let orders = world.save(&vec![order_lines(&[("a", 1)]); 20]).await;
    let events = orders.iter().map(|order| (order.order_id, framed(order))).collect();
    world.produce(&topics.orders, events).await;
    let worker = world.start("worker").await;
    world.caught_up(&group, &topics.orders).await;
    worker.stop();
    assert_eq!(list(&world, &["--class", "unregistered_schema"]).len(), 20);
    register(&mut world);

    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    let first = replay(&world, &["--all", "--rate", "1000"]);
    world.settled().await;
    let second = replay(&world, &["--all", "--rate", "1000"]);
    world.caught_up(&group, &topics.orders).await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;

    let all = json!({"replayed": 20, "left_alone": {}});
    assert_eq!((&first, &second), (&all, &all));
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (20, 80));
    assert_eq!(world.count_messages(&topics.orders_dlq), 20, "no letter came back");
    let verified = world.cli(&["--output", "json", "verify"]).succeeds().json();
    assert_eq!(verified["totals"]["dead_lettered"], 0);
    let replayed = world.read_topic(&topics.orders);
    let replayed: Vec<_> =
        replayed.iter().filter(|m| values(m, "stocklock.replays") == ["1"]).collect();
    assert_eq!(replayed.len(), 40);
    worker.stop();
    compensator.stop();
}

async fn a_dry_run_says_what_each_letter_would_do_and_produces_nothing(mut world: World) {
    let topics = world.config.topics.clone();
    world.import(&[("a", 100)]);
    let saved = vec![(OrderId::generate(), 1), (OrderId::generate(), 1), (aged(40), 1)];
    let lines = |(id, units)| (id, order_lines(&[("a", units)]));
    let orders = world.save_as(saved.into_iter().map(lines).collect()).await;
    let [decided, open, expired] = [&orders[0], &orders[1], &orders[2]];
    let events = orders.iter().map(|order| (order.order_id, framed(order))).collect();
    world.produce(&topics.orders, events).await;
    world.produce(&topics.orders, vec![(OrderId::generate(), b"no Avro".to_vec())]).await;
    let stranger = OrderId::generate();
    world.report(stranger, ReportedStatus::Failed(Reason::parse("no")), "payments").await;
    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    world.produce_events(std::slice::from_ref(decided)).await;
    world.caught_up(&world.config.kafka.group_id, &topics.orders).await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;
    worker.stop();
    compensator.stop();
    register(&mut world);
    let count = || [&topics.orders, &topics.order_status].map(|topic| world.count_messages(topic));
    let before = count();

    let told = dlq(&world, &["replay", "--all", "--dry-run"]).succeeds();

    let told = objects(&told);
    let (summary, letters) = told.split_last().expect("a summary");
    let of = |id: OrderId| {
        let letter = letters.iter().find(|letter| letter["key"] == id.to_string());
        let letter = letter.expect("its letter");
        let text = letter["now"]["text"].as_str().expect("a text").to_owned();
        (letter["now"]["verdict"].clone(), letter["left_alone"].clone(), text)
    };
    let (verdict, _, text) = of(decided.order_id);
    assert!(verdict == "changes nothing" && text.ends_with("already: COMPLETED"), "{text}");
    assert_eq!(of(open.order_id).0, "acts");
    let (verdict, left_alone, text) = of(expired.order_id);
    assert_eq!((verdict, left_alone), (json!("dead letter again"), json!("expired")), "{text}");
    let (verdict, _, text) = of(stranger);
    assert!(verdict == "dead letter again" && text.contains("unknown_order"), "{text}");
    let undecodable = letters.iter().find(|letter| letter["class"] == "undecodable");
    assert_eq!(undecodable.expect("its letter")["now"]["verdict"], "dead letter again");
    assert_eq!(summary["would_replay"], 4);
    assert_eq!(summary["left_alone"], json!({"expired": 1}));
    assert_eq!(count(), before, "nothing was produced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_counted_and_listed_by_class_key_source_and_time() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    let (bank, carrier) = (OrderId::generate(), OrderId::generate());
    world.report(bank, ReportedStatus::Failed(Reason::parse("no")), "bank").await;
    world.report(carrier, ReportedStatus::Failed(Reason::parse("no")), "carrier").await;
    world.report(bank, ReportedStatus::Completed, "bank").await;
    world.produce(&topics.order_status, vec![(carrier, b"\x1b[2Jno Avro".to_vec())]).await;
    let compensator = world.start("compensator").await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;
    compensator.stop();

    let counts = list(&world, &[]);

    let count = |class: &str| {
        let counted = counts.iter().find(|count| count["class"] == class).expect("the class");
        (counted["topic"].clone(), counted["letters"].clone())
    };
    assert_eq!(count("unknown_order"), (json!(topics.order_status_dlq), json!(2)));
    assert_eq!(count("invalid").1, 1);
    assert_eq!(count("undecodable").1, 1);
    let found = |filter: &[&str]| list(&world, filter).len();
    assert_eq!(found(&["--class", "unknown_order"]), 2);
    assert_eq!(found(&["--key", &bank.to_string()]), 2);
    assert_eq!(found(&["--source", "bank"]), 2, "also of a value that is invalid");
    assert_eq!(found(&["--source", "bank", "--class", "invalid"]), 1);
    assert_eq!(found(&["--topic", &topics.order_status, "--since", "1h"]), 4);
    assert_eq!(found(&["--until", "1h"]), 0);
    assert_eq!(found(&["--since", "2100-01-01T00:00:00Z"]), 0);
    assert_eq!(found(&["--limit", "3"]), 3);
    let letter = &list(&world, &["--class", "undecodable"])[0];
    let shown = world.cli(&["dlq", "show", letter["letter"].as_str().unwrap()]).succeeds();
    assert!(shown.stdout().contains("dead letter again: undecodable"), "{}", shown.stdout());
    let group = &world.config.compensator.group_id;
    assert!(shown.stdout().contains(&format!("stocklock.original.group = {group}")));
    assert!(!shown.stdout().contains('\x1b'), "control characters are escaped");
    let gone = format!("{}:0:4711", topics.order_status_dlq);
    world.cli(&["dlq", "show", &gone]).exits(1);
    world.cli(&["dlq", "show", &format!("{}:0:0", topics.orders)]).exits(2);
    world.cli(&["dlq", "replay"]).exits(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_that_comes_back_is_counted_and_left_alone_at_the_limit() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let topics = &world.config.topics;
    world.produce(&topics.order_status, vec![(OrderId::generate(), b"no Avro".to_vec())]).await;
    let compensator = world.start("compensator").await;
    let letters = || world.count_messages(&topics.order_status_dlq);
    wait_until("the message is dead-lettered", async || letters() == 1).await;

    let mut summaries = Vec::new();
    for letters_then in [2, 3, 3] {
        summaries.push(replay(&world, &["--all", "--max-replays", "2"]));
        wait_until("the letter is back", async || letters() == letters_then).await;
    }

    let expected = [
        json!({"replayed": 1, "left_alone": {}}),
        json!({"replayed": 1, "left_alone": {"superseded": 1}}),
        json!({"replayed": 0, "left_alone": {"superseded": 2, "limit": 1}}),
    ];
    assert_eq!(summaries, expected);
    let replays: Vec<_> = world
        .read_topic(&topics.order_status_dlq)
        .iter()
        .map(|letter| values(letter, "stocklock.replays"))
        .collect();
    assert_eq!(replays, [vec![], vec!["1".to_owned()], vec!["2".to_owned()]]);
    let last = &world.read_topic(&topics.order_status_dlq)[2];
    assert_eq!(values(last, "stocklock.original.offset"), ["0", "2"], "its first and its last");
    assert_eq!(values(last, "stocklock.error.class"), ["undecodable"]);
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_keeps_key_partition_and_headers() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    let headers = |partition, offset| {
        letter_headers(&topics.order_status, partition, offset)
            .insert(Header { key: "traceparent", value: Some("00-1-2-01") })
    };
    let made = Header { key: "stocklock.key.made", value: Some("true") };
    let omitted = Header { key: "stocklock.omitted.bytes", value: Some("5") };
    let raw = |key, value, headers| Raw { partition: 0, key, value, headers };
    let letters = vec![
        raw(Some("some key"), b"1", headers(3, 1)),
        raw(None, b"2", headers(2, 2)),
        raw(Some("t-1-1"), b"3", headers(1, 3).insert(made)),
        raw(Some("some key"), b"4", headers(99, 4)),
        raw(Some("some key"), b"5", headers(1, 5).insert(omitted)),
        raw(Some("some key"), b"6", letter_headers(&topics.orders, 1, 6)),
    ];
    produce_raw(&world, &topics.order_status_dlq, letters).await;

    let summary = replay(&world, &["--all"]);

    let left_alone = json!({"incomplete": 1, "foreign": 1});
    assert_eq!(summary, json!({"replayed": 4, "left_alone": left_alone}));
    let replayed = world.read_topic(&topics.order_status);
    let of = |value: &[u8]| {
        let message = replayed.iter().find(|message| message.payload() == Some(value));
        let message = message.expect("the message");
        (message.partition(), message.key().map(String::from_utf8_lossy))
    };
    assert_eq!(of(b"1"), (3, Some("some key".into())));
    assert_eq!(of(b"2"), (2, None));
    assert_eq!(of(b"3"), (1, None), "the key was made");
    assert_eq!(of(b"4").1, Some("some key".into()), "partition 99 does not exist");
    for message in &replayed {
        assert_eq!(values(message, "traceparent"), ["00-1-2-01"]);
        assert_eq!(values(message, "stocklock.replays"), ["1"]);
        assert_eq!(values(message, "stocklock.original.timestamp"), ["1700000000000"]);
        assert!(values(message, "stocklock.error.class").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn named_letters_are_replayed_at_a_bounded_rate() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    let letter = |offset| Raw {
        partition: 0,
        key: None,
        value: b"no Avro",
        headers: letter_headers(&topics.order_status, 0, offset),
    };
    produce_raw(&world, &topics.order_status_dlq, (0..30).map(letter).collect()).await;
    let named: Vec<_> =
        (0..30).map(|offset| format!("{}:0:{offset}", topics.order_status_dlq)).collect();
    let named: Vec<_> = named.iter().map(String::as_str).collect();

    let begun = Instant::now();
    let summary = replay(&world, &[&named[..21], &["--rate", "10"]].concat());
    let took = begun.elapsed();

    assert_eq!(summary["replayed"], 21);
    assert!(took >= Duration::from_secs(2), "21 letters in {took:?}");
    assert_eq!(world.count_messages(&topics.order_status), 21);
    let gone = format!("{}:0:4711", topics.order_status_dlq);
    let error = dlq(&world, &["replay", named[29], &gone]).exits(1);
    assert!(error.stderr().contains(&gone), "{}", error.stderr());
    assert_eq!(world.count_messages(&topics.order_status), 22);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_of_a_worker_is_applied_by_its_replay() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    let id = OrderId::generate();
    world.report(id, ReportedStatus::Failed(Reason::InsufficientStock), WORKER_SOURCE).await;
    let compensator = world.start("compensator").await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;
    world.save_as(vec![(id, order_lines(&[("a", 1)]))]).await;
    let letter = list(&world, &["--class", "unknown_order"])[0]["letter"].clone();
    let shown = dlq(&world, &["show", letter.as_str().unwrap()]).succeeds().json();

    let summary = replay(&world, &["--source", WORKER_SOURCE]);
    world.settled().await;

    let moves = format!("moves order {id} from PENDING to FAILED");
    assert_eq!(shown["now"], json!({"verdict": "acts", "text": moves}));
    assert_eq!(shown["value"]["reason"], "INSUFFICIENT_STOCK");
    assert_eq!(summary["replayed"], 1);
    assert_eq!(world.count_orders("FAILED").await, 1);
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_the_commands_fail_and_name_it() {
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    let nobody = free_address();
    world.env.insert("STOCKLOCK__KAFKA__BROKERS".to_owned(), nobody.clone());
    let letter = format!("{}:0:0", world.config.topics.orders_dlq);

    let commands = [&["list"][..], &["show", &letter], &["replay", "--all"]];
    let ended = commands.map(|args| dlq(&world, args));

    for ended in ended {
        let ended = ended.exits(2);
        assert!(ended.stderr().contains(&nobody), "{}", ended.stderr());
    }
}
