//! Processes that change stock or publish levels are killed, and no level is lost.

use serde_json::json;

use crate::{
    harness::{Api, Cli, World, http_client, lines, on_each_database, place_all, wait_until},
    levels::{in_store, levels_are_those_of_the_store, turn_on},
};

on_each_database!(
    a_killed_worker_loses_no_level,
    a_killed_ingest_loses_no_level,
    a_killed_command_loses_no_level,
);

/// Where a worker dies that decides an order.
const WORKER_DIES_AT: [&str; 5] = [
    "deduct.written",
    "deduct.committed",
    "levels.read",
    "levels.acknowledged",
    "deduct.published",
];

/// Runs a command that dies at a crash point: `name`, or `name@2` at the second time.
fn killed(world: &World, args: &[&str], point: &str) {
    let mut env = world.env.clone();
    env.insert("STOCKLOCK_CRASH_AT".to_owned(), point.to_owned());
    let ended = Cli::run(&env, args);
    let name = point.split('@').next().expect("a name");
    assert!(ended.stderr().contains(&format!("crash point {name} reached")), "{}", ended.stderr());
}

async fn no_notes_are_left(world: &World, topic: &str) {
    let worker = world.start("worker").await;
    levels_are_those_of_the_store(world, topic).await;
    wait_until("no note", async || worker.count("stocklock_level_notes", "").await == 0).await;
    worker.stop();
}

/// No note of the import is left: the redelivered batch alone publishes the order's level.
async fn a_killed_worker_loses_no_level(mut world: World) {
    let topic = turn_on(&mut world);
    world.import(&[("a", 10), ("b", 5)]);
    let ingest = world.start("ingest").await;
    no_notes_are_left(&world, &topic).await;

    for point in WORKER_DIES_AT {
        let dying = world.start_with("worker", &[("STOCKLOCK_CRASH_AT", point)]).await;
        Api::of(&ingest).place(&lines(&[("a", 1)])).await.is(202);
        dying.crashed_at(point).await;
        no_notes_are_left(&world, &topic).await;
    }

    assert_eq!((world.available("a"), world.available("b")), (5, 5));
}

async fn a_killed_ingest_loses_no_level(mut world: World) {
    let topic = turn_on(&mut world);
    world.import(&[("a", 10), ("b", 5)]);
    no_notes_are_left(&world, &topic).await;
    let before = in_store(&world).await;

    let placing = world.start_with("ingest", &[("STOCKLOCK_CRASH_AT", "ingest.committed")]).await;
    let placed = place_all(&placing.http, &[lines(&[("a", 2)])], 1).await;
    placing.crashed_at("ingest.committed").await;
    let adjusting = world.start_with("ingest", &[("STOCKLOCK_CRASH_AT", "ingest.adjusted")]).await;
    let adjustment = json!({"product_id": "b", "delta": 4, "reason": "count"});
    let body = json!({"request_id": "r-1", "adjustments": [adjustment]});
    let url = format!("{}/v1/stock/adjustments", adjusting.http);
    let answered = http_client().post(url).json(&body).send().await;
    adjusting.crashed_at("ingest.adjusted").await;

    assert!(placed.is_empty() && answered.is_err());
    let next = world.start("all").await;
    wait_until("the order is decided", async || world.available("a") == 8).await;
    levels_are_those_of_the_store(&world, &topic).await;
    assert_eq!(world.available("b"), 9);
    assert_ne!(in_store(&world).await, before);
    next.stop();
}

async fn a_killed_command_loses_no_level(mut world: World) {
    let topic = turn_on(&mut world);
    let products: Vec<_> = (0..2_500).map(|n| format!("p{n}")).collect();
    let stock = |available: i64| {
        let rows: Vec<_> = products.iter().map(|id| format!("{id},{id},{available}")).collect();
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = format!("product_id,name,available\n{}\n", rows.join("\n"));
        std::fs::write(file.path(), text).expect("written");
        file
    };
    let (first, second) = (stock(5), stock(7));
    let path = |file: &tempfile::NamedTempFile| file.path().display().to_string();
    world.cli(&["stock", "import", &path(&first)]).succeeds();
    no_notes_are_left(&world, &topic).await;

    // The first 1,000 products are imported, and the second thousand is rolled back.
    killed(&world, &["stock", "import", &path(&second)], "import.written@2");
    let available = [world.available("p0"), world.available("p999"), world.available("p1000")];
    no_notes_are_left(&world, &topic).await;
    // Another 1,000, and then the command dies between two chunks.
    killed(&world, &["stock", "import", &path(&second)], "import.committed@2");
    no_notes_are_left(&world, &topic).await;
    for point in ["levels.read", "levels.acknowledged", "levels.published"] {
        killed(&world, &["stock", "publish"], point);
        world.cli(&["stock", "restock", "p7", "1"]).succeeds();
        no_notes_are_left(&world, &topic).await;
    }

    assert_eq!(available, [7, 7, 5]);
    let now = ["p7", "p1999", "p2000"].map(|id| world.available(id));
    assert_eq!(now, [10, 7, 5]);
}
