//! The levels of products on the topic `stock-levels`.

use std::collections::BTreeMap;

use apache_avro::{Schema, reader::datum::GenericDatumReader, types::Value};
use rdkafka::Message as _;

use crate::harness::{Api, Cli, World, lines, on_each_database, wait_until};

on_each_database!(
    the_levels_of_orders_imports_and_snapshots_are_published,
    a_killed_worker_and_a_killed_command_lose_no_level,
    with_levels_off_no_topic_is_needed,
);

/// Turns levels on. Returns the topic.
fn turn_on(world: &mut World) -> String {
    world.configure(&[("TOPICS__STOCK_LEVELS", "{name}.stock-levels")]);
    world.config.topics.stock_levels.clone().expect("configured")
}

/// The available units by product: of the last record, and of the record with the highest version.
fn read_levels(world: &World, topic: &str) -> [BTreeMap<String, i64>; 2] {
    let schema = Schema::parse_str(include_str!("../../schemas/stock_level.avsc")).unwrap();
    let reader = GenericDatumReader::builder(&schema).build().unwrap();
    let (mut last, mut highest) = (BTreeMap::new(), BTreeMap::<String, (i64, i64)>::new());
    for message in world.read_topic(topic) {
        let value = reader.read_value(&mut &message.payload().unwrap()[10..]).unwrap();
        let Value::Record(fields) = value else { panic!("no record") };
        let [Value::String(id), Value::Long(available), Value::Long(version), _] =
            [0, 1, 2, 3].map(|field: usize| fields[field].1.clone())
        else {
            panic!("{fields:?}")
        };
        assert_eq!(message.key(), Some(id.as_bytes()));
        last.insert(id.clone(), available);
        let known = highest.entry(id).or_insert((version, available));
        *known = (*known).max((version, available));
    }
    [last, highest.into_iter().map(|(id, (_, available))| (id, available)).collect()]
}

fn in_store(world: &World) -> BTreeMap<String, i64> {
    let shown = world.cli(&["--output", "json", "stock", "show"]).succeeds().json();
    let products = shown.as_array().unwrap().iter();
    let pair = |product: &serde_json::Value| {
        (product["product_id"].as_str().unwrap().to_owned(), product["available"].as_i64().unwrap())
    };
    products.map(pair).collect()
}

/// Waits until both kinds of readers know what is in the store.
async fn levels_are_those_of_the_store(world: &World, topic: &str) {
    let expected = in_store(world);
    wait_until("the levels", async || {
        read_levels(world, topic) == [expected.clone(), expected.clone()]
    })
    .await;
}

async fn the_levels_of_orders_imports_and_snapshots_are_published(mut world: World) {
    let topic = turn_on(&mut world);
    world.import(&[("a", 10), ("b", 5), ("idle", 1)]);
    let all = world.start("all").await;
    levels_are_those_of_the_store(&world, &topic).await;

    Api::of(&all).place_and_wait(&lines(&[("a", 2), ("b", 1)]), 30).await.is(201);
    levels_are_those_of_the_store(&world, &topic).await;
    world.cli(&["stock", "restock", "b", "3"]).succeeds();
    levels_are_those_of_the_store(&world, &topic).await;
    assert_eq!(in_store(&world), [("a", 8), ("b", 7), ("idle", 1)].map(owned).into());
    assert_eq!(all.count("stocklock_level_notes", "").await, 0);
    all.stop();

    let before = world.count_messages(&topic);
    world.cli(&["stock", "publish", "a", "nothing"]).exits(1);
    assert_eq!(world.count_messages(&topic), before + 1);
    let shown = world.cli(&["--output", "json", "stock", "publish"]).succeeds();
    assert_eq!(shown.json()["published"], 3);
    assert_eq!(world.count_messages(&topic), before + 4);
}

fn owned((id, available): (&str, i64)) -> (String, i64) {
    (id.to_owned(), available)
}

async fn a_killed_worker_and_a_killed_command_lose_no_level(mut world: World) {
    let topic = turn_on(&mut world);
    world.import(&[("a", 10), ("b", 5)]);
    let ingest = world.start("ingest").await;
    // No note of the import is left: the redelivered batch alone publishes the order's level.
    let first = world.start("worker").await;
    levels_are_those_of_the_store(&world, &topic).await;
    wait_until("no note", async || first.count("stocklock_level_notes", "").await == 0).await;
    first.stop();
    let dying = world.start_with("worker", &[("STOCKLOCK_CRASH_AT", "deduct.committed")]).await;
    Api::of(&ingest).place(&lines(&[("a", 2)])).await.is(202);
    dying.crashed_at("deduct.committed").await;
    let worker = world.start("worker").await;
    levels_are_those_of_the_store(&world, &topic).await;
    worker.stop();

    let mut env = world.env.clone();
    env.insert("STOCKLOCK_CRASH_AT".to_owned(), "levels.acknowledged".to_owned());
    let killed = Cli::run(&env, &["stock", "publish"]);
    assert!(killed.stderr().contains("crash point levels.acknowledged reached"));
    world.import(&[("b", 9)]);

    let _worker = world.start("worker").await;

    levels_are_those_of_the_store(&world, &topic).await;
    assert_eq!(in_store(&world), [("a", 8), ("b", 9)].map(owned).into());
}

async fn with_levels_off_no_topic_is_needed(world: World) {
    world.import(&[("a", 10)]);
    let all = world.start("all").await;

    Api::of(&all).place_and_wait(&lines(&[("a", 2)]), 30).await.is(201);

    assert_eq!(all.count("stocklock_levels_published_total", "").await, 0);
    world.cli(&["stock", "publish"]).exits(2);
    all.stop();
}
