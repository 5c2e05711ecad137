//! Orders that come from Kafka: each record of `order-requests` makes one order, however often it
//! is delivered.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use chrono::{TimeDelta, Utc};
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use stocklock::config::IntakeTopic;
use uuid::Uuid;

use crate::harness::{
    Api, Database, PATIENCE, Program, Proxy, Role, Strategy, World, aged, header, lines, made_ago,
    on_each_database, stays, wait_until,
};

pub(crate) const KEY: &str = "Idempotency-Key";

/// A record to produce.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    value: Vec<u8>,
    headers: Vec<(&'static str, String)>,
    timestamp_ms: Option<i64>,
}

impl Request {
    pub(crate) fn of(value: impl ToString) -> Self {
        Self { value: value.to_string().into_bytes(), ..Self::default() }
    }

    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(crate) fn made_ago(mut self, age: TimeDelta) -> Self {
        self.timestamp_ms = Some((Utc::now() - age).timestamp_millis());
        self
    }
}

/// Turns the intake of the world on.
pub(crate) fn taking_orders(mut world: World) -> World {
    world.configure(&[("INGEST__INTAKE", "true")]);
    world
}

pub(crate) fn topic(world: &World) -> &IntakeTopic {
    world.config.topics.order_requests.as_ref().expect("the intake is on")
}

/// Produces records, all to one partition if it is given.
pub(crate) async fn request(world: &World, requests: &[Request], partition: Option<i32>) {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &world.config.kafka.brokers).set("linger.ms", "5");
    let producer: FutureProducer = client.create().expect("a producer");
    let sending = requests.iter().map(|Request { value, headers, timestamp_ms }| {
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        let record = FutureRecord::<(), _>::to(&topic(world).requests).payload(value);
        let record = FutureRecord { partition, timestamp: *timestamp_ms, ..record };
        producer.send(record.headers(headers), PATIENCE)
    });
    for sent in futures::future::join_all(sending).await {
        sent.map_err(|(error, _)| error).expect("produced");
    }
}

/// Waits until the intake has committed all that is in its topic.
pub(crate) async fn taken(world: &World) {
    world.caught_up(&world.config.ingest.group_id, &topic(world).requests).await;
}

/// The number of dead letters of each class.
pub(crate) fn letters(world: &World) -> BTreeMap<String, usize> {
    let mut classes = BTreeMap::new();
    for letter in world.read_topic(&topic(world).dead_letters) {
        *classes.entry(header(&letter, "stocklock.error.class").expect("a class")).or_insert(0) +=
            1;
    }
    classes
}

pub(crate) fn order(reference: impl ToString) -> Value {
    let mut order = lines(&[("a", 1)]);
    order["reference"] = json!(reference.to_string());
    order
}

on_each_database!(
    an_upstream_system_hears_of_its_orders_by_their_references,
    records_that_are_delivered_again_and_again_make_one_order_each,
    a_bad_record_is_dead_lettered_and_delays_no_other,
    the_keys_of_records_are_not_those_of_http,
);

async fn an_upstream_system_hears_of_its_orders_by_their_references(world: World) {
    let world = taking_orders(world);
    world.import(&[("a", 9)]);
    let all = world.start("all").await;
    let id = Uuid::now_v7().to_string();
    let mut of_id = order("by-id");
    of_id["order_id"] = json!(id);
    let records = [
        json!({"format": "json", "key": null, "request": order("json")}),
        json!({"format": "avro", "key": null, "request": order("avro")}),
        json!({"format": "avro", "key": "k", "request": order("by-key")}),
        json!({"format": "avro", "key": null, "request": of_id}),
    ];
    let input = records.map(|record| record.to_string()).join("\n");

    let topic = &topic(&world).requests;
    Program::python("tests/clients/order_requests.py")
        .run(&[&world.config.kafka.brokers, topic], &input);
    taken(&world).await;
    world.settled().await;

    let heard = world.read_statuses();
    let references: BTreeSet<_> = heard.iter().filter_map(|s| s.reference.as_deref()).collect();
    assert_eq!(references, BTreeSet::from(["json", "avro", "by-key", "by-id"]));
    let by_id = heard.iter().find(|s| s.order_id.to_string() == id).expect("its status");
    assert_eq!((by_id.status.as_str(), by_id.reference.as_deref()), ("COMPLETED", Some("by-id")));
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (4, 5));
    assert_eq!(all.count("stocklock_orders_ingested_total", "accepted").await, 4);
    world.verify();
    all.stop();
}

/// One of three is recognized by its id, one by its key, and one by its record.
pub(crate) fn mixed(numbers: Range<usize>) -> Vec<Request> {
    let request = |n: usize| match n % 3 {
        0 => Request::of(order(n)),
        1 => Request::of(order(n)).with(KEY, format!("k-{n}")),
        _ => {
            let mut order = order(n);
            order["order_id"] = json!(Uuid::now_v7());
            Request::of(order)
        }
    };
    numbers.map(request).collect()
}

async fn records_that_are_delivered_again_and_again_make_one_order_each(world: World) {
    const ORDERS: usize = 3_000;
    let world = taking_orders(world);
    let (group_id, requests) = (&world.config.ingest.group_id, &topic(&world).requests);
    world.import(&[("a", 10_000)]);
    let _others = (world.start("worker").await, world.start("compensator").await);
    request(&world, &mixed(0..ORDERS), None).await;
    let expected = i64::try_from(ORDERS).expect("few");
    let saved =
        async || world.count_orders("PENDING").await + world.count_orders("COMPLETED").await;

    // Killed between the commit and the offset.
    let doomed = Role::spawn(&world.env, "ingest", &[("STOCKLOCK_CRASH_AT", "ingest.committed")]);
    doomed.crashed_at("ingest.committed").await;
    let before = saved().await;
    let second = world.start("ingest").await;
    wait_until("some more orders are saved", async || saved().await > before).await;
    second.kill();
    for _ in 0..2 {
        world.rewind(group_id, requests).await;
        let again = world.start("ingest").await;
        // HTTP clients place orders meanwhile.
        let api = Api::of(&again);
        for _ in 0..20 {
            api.place(&order("http")).await.is(202);
        }
        taken(&world).await;
        again.shows("stocklock_orders_ingested_total", "replayed", |n| n > 0.0).await;
        again.stop();
    }
    let last = world.start("ingest").await;
    world.settled().await;

    assert!((1..expected).contains(&before), "{before} orders were saved before the first kill");
    assert_eq!(world.count_orders("COMPLETED").await, expected + 40);
    assert_eq!(world.available("a"), 10_000 - expected - 40);
    assert_eq!(letters(&world), BTreeMap::new());
    world.verify();
    last.stop();
}

/// Records of each class of dead letters, whose identities are those of `known`.
fn bad(known_id: Uuid) -> Vec<(&'static str, Request)> {
    let with = |field: &str, value: Value| {
        let mut order = order("bad");
        order[field] = value;
        order
    };
    let framed = |header: &[u8]| Request { value: header.to_vec(), ..Request::default() };
    let days = TimeDelta::days;
    vec![
        ("undecodable", Request::default()),
        ("undecodable", Request::of("no request")),
        ("undecodable", Request::of(r#"{"lines":["#)),
        ("unknown_schema", framed(b"\xC3\x01\x01\x02\x03\x04\x05\x06\x07\x08\x02")),
        ("unregistered_schema", framed(b"\0\0\0\0\x07\x02")),
        ("invalid", Request::of(lines(&[]))),
        ("invalid", Request::of(lines(&[("a", 0)]))),
        ("invalid", Request::of(lines(&[("unknown", 1)]))),
        ("invalid", Request::of(with("hold_seconds", json!(86_401)))),
        ("invalid", Request::of(with("extra", json!(1)))),
        ("invalid", Request::of(with("idempotency_key", json!("k")))),
        ("invalid", Request::of(with("order_id", json!("1")))),
        ("invalid", Request::of(with("order_id", json!(Uuid::now_v7()))).with(KEY, "both")),
        ("invalid", Request::of(order("bad")).with(KEY, "a b")),
        ("invalid", Request::of(with("order_id", json!(known_id)))),
        ("invalid", Request::of(order("bad")).with(KEY, "known")),
        (
            "invalid",
            Request::of(with("order_id", json!(made_ago(TimeDelta::hours(-25)).to_string()))),
        ),
        ("invalid", Request::of(order("bad")).made_ago(days(-2))),
        ("invalid", Request::of(order("bad")).with(KEY, "future").made_ago(days(-2))),
        ("expired", Request::of(with("order_id", json!(aged(31).to_string())))),
        ("expired", Request::of(order("bad")).made_ago(days(31))),
        ("expired", Request::of(order("bad")).with(KEY, "old").made_ago(days(7))),
    ]
}

async fn a_bad_record_is_dead_lettered_and_delays_no_other(world: World) {
    let world = taking_orders(world);
    // Otherwise the broker refuses a record from the future.
    let topic = &topic(&world).requests;
    world.alter_topic(topic, "message.timestamp.after.max.ms", &i64::MAX.to_string()).await;
    world.import(&[("a", 100)]);
    let (all, known_id) = (world.start("all").await, Uuid::now_v7());
    let mut known = order("known");
    known["order_id"] = json!(known_id);
    let known = [Request::of(known), Request::of(order("known")).with(KEY, "known")];
    request(&world, &known, Some(0)).await;

    let (classes, bad): (Vec<_>, Vec<_>) = bad(known_id).into_iter().unzip();
    request(&world, &bad, Some(0)).await;
    request(&world, &[Request::of(order("good"))], Some(0)).await;
    taken(&world).await;
    world.settled().await;

    let mut expected = BTreeMap::new();
    for class in classes {
        *expected.entry(class.to_owned()).or_insert(0) += 1;
        let labels = format!("class=\"{class}\",topic=\"{topic}\"");
        assert!(all.count("stocklock_dead_letters_total", &labels).await > 0, "{labels}");
    }
    assert_eq!(letters(&world), expected);
    assert_eq!(world.count_orders("COMPLETED").await, 3);
    let texts: Vec<_> = world
        .read_topic(&world.config.topics.order_requests.as_ref().expect("on").dead_letters)
        .iter()
        .map(|letter| header(letter, "stocklock.error.text").expect("a text"))
        .collect();
    for text in ["/lines/0/quantity: must be a whole number", "unknown product unknown", "/extra"] {
        assert!(texts.iter().any(|found| found.contains(text)), "{text}: {texts:#?}");
    }
    all.stop();
}

async fn the_keys_of_records_are_not_those_of_http(world: World) {
    let world = taking_orders(world);
    world.import(&[("a", 5)]);
    let ingest = world.start("ingest").await;
    let (api, body) = (Api::of(&ingest), order("same"));
    let by_http = api.post(&body.to_string(), &[(KEY, "k")]).await.is(202);

    request(&world, &vec![Request::of(&body).with(KEY, "k"); 3], None).await;
    taken(&world).await;

    assert_eq!(world.count_orders("PENDING").await, 2);
    let again = api.post(&body.to_string(), &[(KEY, "k")]).await.is(202);
    assert_eq!(again.order_id(), by_http.order_id());
    assert_eq!(ingest.count("stocklock_orders_ingested_total", "accepted").await, 2);
    assert_eq!(letters(&world), BTreeMap::new());
    ingest.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingest_without_an_intake_does_not_read_the_topic() {
    let world = taking_orders(World::new(Database::MySql, Strategy::Row).await);
    world.import(&[("a", 5)]);
    request(&world, &[Request::of(order("unread"))], None).await;

    let ingest = world.start_with("ingest", &[("STOCKLOCK__INGEST__INTAKE", "false")]).await;
    // Longer than a consumer needs to join its group.
    stays(Duration::from_secs(5), "no order", async || world.count_orders("PENDING").await == 0)
        .await;

    assert_eq!(ingest.metric("stocklock_rebalances_total", "").await, 0.0);
    ingest.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_order_store_away_records_wait_and_none_is_lost() {
    let world = taking_orders(World::new(Database::MySql, Strategy::Row).await);
    world.import(&[("a", 500)]);
    let (store, url) = Proxy::before(world.config.order_store.url.expose()).await;
    let ingest = world.start_with("ingest", &[("STOCKLOCK__ORDER_STORE__URL", &url)]).await;
    request(&world, &mixed(0..30), None).await;
    taken(&world).await;

    store.cut();
    request(&world, &mixed(30..330), None).await;
    // The committer has given up by then, and the intake tries again.
    wait_until("a batch fails", async || ingest.log().contains("batch failed")).await;
    let waiting = world.uncommitted(&world.config.ingest.group_id, &topic(&world).requests);
    store.mend();
    taken(&world).await;

    assert_eq!((waiting, world.count_orders("PENDING").await), (300, 330));
    assert_eq!(letters(&world), BTreeMap::new());
    ingest.ready().await;
    ingest.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_outbox_full_records_wait_until_the_broker_takes_events() {
    let world = taking_orders(World::new(Database::MySql, Strategy::Row).await);
    world.import(&[("a", 500)]);
    let cut_off = [("STOCKLOCK__KAFKA__BROKERS", "127.0.0.1:9")];
    let away = world.start_with("ingest", &cut_off).await;
    for _ in 0..3 {
        Api::of(&away).place(&order("outbox")).await.is(202);
    }
    away.kill();
    world.alter_topic(&world.config.topics.orders, "max.message.bytes", "1").await;
    request(&world, &mixed(0..9), None).await;

    let ingest = world.start_with("ingest", &[("STOCKLOCK__INGEST__OUTBOX_MAX", "2")]).await;
    ingest.shows("stocklock_outbox_pending", "", |pending| pending >= 3.0).await;
    stays(Duration::from_secs(2), "no more", async || world.count_orders("PENDING").await == 3)
        .await;
    let has_waited = ingest.log().contains("the broker lags behind");
    world.alter_topic(&world.config.topics.orders, "max.message.bytes", "1048588").await;
    taken(&world).await;

    assert!(has_waited, "{}", ingest.log());
    assert_eq!(world.count_orders("PENDING").await, 12);
    assert_eq!(letters(&world), BTreeMap::new());
}
