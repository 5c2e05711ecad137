//! The levels of products on the topic `stock-levels`.

use std::collections::BTreeMap;

use apache_avro::{Schema, reader::datum::GenericDatumReader, types::Value};
use rdkafka::Message as _;
use serde_json::json;
use sqlx::Connection as _;

use crate::{
    adjustments_topic::{caught_up, configured, produce, request},
    harness::{Api, World, lines, on_each_database, wait_until},
};

on_each_database!(
    the_levels_of_orders_imports_and_snapshots_are_published,
    the_levels_of_adjustments_are_published_however_they_come,
    products_of_before_are_published_by_a_snapshot_alone,
    with_levels_off_nothing_is_noted_and_no_topic_is_needed,
);

/// A product's level, as a reader knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Known {
    pub(crate) version: i64,
    pub(crate) available: i64,
}

/// What readers of the topic know of each product.
pub(crate) struct Read {
    /// The last record of each product.
    pub(crate) last: BTreeMap<String, Known>,
    /// The record with the highest version.
    pub(crate) highest: BTreeMap<String, Known>,
    pub(crate) records: usize,
}

/// Turns levels on. Returns the topic.
pub(crate) fn turn_on(world: &mut World) -> String {
    world.configure(&[("TOPICS__STOCK_LEVELS", "{name}.stock-levels")]);
    world.config.topics.stock_levels.clone().expect("configured")
}

/// Reads the topic from its beginning.
pub(crate) fn read_levels(world: &World, topic: &str) -> Read {
    let schema = Schema::parse_str(include_str!("../../schemas/stock_level.avsc")).unwrap();
    let reader = GenericDatumReader::builder(&schema).build().unwrap();
    let mut read = Read { last: BTreeMap::new(), highest: BTreeMap::new(), records: 0 };
    for message in world.read_topic(topic) {
        let value = reader.read_value(&mut &message.payload().unwrap()[10..]).unwrap();
        let Value::Record(fields) = value else { panic!("no record") };
        let [Value::String(id), Value::Long(available), Value::Long(version), _] =
            [0, 1, 2, 3].map(|field: usize| fields[field].1.clone())
        else {
            panic!("{fields:?}")
        };
        assert_eq!(message.key(), Some(id.as_bytes()));
        let level = Known { version, available };
        read.last.insert(id.clone(), level);
        let known = read.highest.entry(id).or_insert(level);
        *known = (*known).max(level);
        read.records += 1;
    }
    read
}

/// The levels that the database has.
pub(crate) async fn in_store(world: &World) -> BTreeMap<String, Known> {
    let mut conn = sqlx::MySqlConnection::connect(world.config.stock_store.url.expose())
        .await
        .expect("the stock store");
    let sql = "SELECT CAST(product_id AS CHAR), version, available FROM products";
    let rows: Vec<(String, i64, i64)> =
        sqlx::query_as(sql).fetch_all(&mut conn).await.expect("products");
    rows.into_iter().map(|(id, version, available)| (id, Known { version, available })).collect()
}

async fn count_notes(world: &World) -> i64 {
    let mut conn = sqlx::MySqlConnection::connect(world.config.stock_store.url.expose())
        .await
        .expect("the stock store");
    sqlx::query_scalar("SELECT COUNT(*) FROM level_notes")
        .fetch_one(&mut conn)
        .await
        .expect("notes")
}

/// Waits until both kinds of readers know what is in the store: one that keeps the highest version,
/// and one that keeps the last record.
pub(crate) async fn levels_are_those_of_the_store(world: &World, topic: &str) {
    wait_until("the levels", async || {
        let (read, expected) = (read_levels(world, topic), in_store(world).await);
        read.last == expected && read.highest == expected
    })
    .await;
}

async fn the_levels_of_orders_imports_and_snapshots_are_published(mut world: World) {
    let topic = turn_on(&mut world);
    let warnings = world.cli(&["--output", "json", "setup"]).succeeds().json()["warnings"].clone();
    assert!(!warnings.to_string().contains(&topic), "{warnings}");
    world.import(&[("a", 10), ("b", 5), ("idle", 1)]);
    let all = world.start("all").await;
    levels_are_those_of_the_store(&world, &topic).await;

    Api::of(&all).place_and_wait(&lines(&[("a", 2), ("b", 1)]), 30).await.is(201);
    levels_are_those_of_the_store(&world, &topic).await;
    world.cli(&["stock", "restock", "b", "3"]).succeeds();
    levels_are_those_of_the_store(&world, &topic).await;
    let available = ["a", "b", "idle"].map(|id| world.available(id));
    assert_eq!(available, [8, 7, 1]);
    wait_until("no note", async || count_notes(&world).await == 0).await;
    all.stop();

    let before = world.count_messages(&topic);
    world.cli(&["stock", "publish", "a", "nothing"]).exits(1);
    assert_eq!(world.count_messages(&topic), before + 1);
    let shown = world.cli(&["--output", "json", "stock", "publish"]).succeeds();
    assert_eq!(shown.json()["published"], 3);
    assert_eq!(world.count_messages(&topic), before + 4);
}

async fn the_levels_of_adjustments_are_published_however_they_come(world: World) {
    let mut world = configured(world);
    let topic = turn_on(&mut world);
    world.import(&[("http", 10), ("topic", 10), ("cli", 10), ("refused", 10)]);
    let all = world.start("all").await;
    levels_are_those_of_the_store(&world, &topic).await;
    wait_until("no note", async || count_notes(&world).await == 0).await;
    let before = world.count_messages(&topic);
    let adjust = |id: &str, product: &str, delta: i64| {
        let adjustment = json!({"product_id": product, "delta": delta, "reason": "count"});
        json!({"request_id": id, "adjustments": [adjustment]})
    };
    let api = Api::of(&all);

    api.adjust(&adjust("r-1", "http", -3)).await.is(200);
    api.adjust(&adjust("r-2", "refused", -99)).await.is(409);
    produce(&world, &[request("r-3", "topic", 4)], None);
    caught_up(&world).await;
    world.cli(&["stock", "adjust", "cli", "-5", "--reason", "broken"]).succeeds();

    levels_are_those_of_the_store(&world, &topic).await;
    wait_until("no note", async || count_notes(&world).await == 0).await;
    let available = ["http", "topic", "cli", "refused"].map(|id| world.available(id));
    assert_eq!(available, [7, 14, 5, 10]);
    // A refused request changes nothing, so there is nothing to publish.
    let published = world.read_topic(&topic);
    let of_refused = published.iter().filter(|level| level.key() == Some(b"refused")).count();
    assert_eq!((of_refused, world.count_messages(&topic) >= before + 3), (1, true));
    world.verify();
    all.stop();
}

async fn products_of_before_are_published_by_a_snapshot_alone(mut world: World) {
    world.import(&[("a", 10), ("b", 5)]);
    let topic = turn_on(&mut world);
    assert_eq!((count_notes(&world).await, world.count_messages(&topic)), (0, 0));

    let shown = world.cli(&["stock", "publish"]).succeeds();

    assert_eq!(shown.stdout(), format!("2 levels published to {topic}\n"));
    levels_are_those_of_the_store(&world, &topic).await;
    assert_eq!((count_notes(&world).await, world.count_messages(&topic)), (0, 2));
}

async fn with_levels_off_nothing_is_noted_and_no_topic_is_needed(world: World) {
    let world = configured(world);
    world.import(&[("a", 10)]);
    let all = world.start("all").await;
    let adjustment = json!({"product_id": "a", "delta": 1, "reason": "count"});
    let adjustments = json!({"request_id": "r-1", "adjustments": [adjustment]});

    let api = Api::of(&all);
    api.place_and_wait(&lines(&[("a", 2)]), 30).await.is(201);
    api.adjust(&adjustments).await.is(200);
    produce(&world, &[request("r-2", "a", 1)], None);
    caught_up(&world).await;
    world.cli(&["stock", "restock", "a", "3"]).succeeds();
    world.cli(&["stock", "adjust", "a", "+1", "--reason", "count"]).succeeds();

    assert_eq!((count_notes(&world).await, world.available("a")), (0, 14));
    assert_eq!(all.count("stocklock_levels_published_total", "").await, 0);
    let measured = all.metrics().await;
    assert!(!measured.contains("level_notes\"") && measured.contains("\"decide\""), "{measured}");
    world.cli(&["stock", "publish"]).exits(2);
    all.stop();
}
