//! `stocklock bench` on stores that it is told to use, and the laboratory on stores of its own.

use std::time::Duration;

use serde_json::Value;
use sqlx::{Connection, MySqlConnection};

use crate::{
    adjustments_topic::{configured, produce, request},
    harness::{Database, Strategy, World, lines, new_order, on_each_database, wait_for},
    levels::turn_on,
};

/// A load that takes a second or two.
const SMALL: &str = "--orders 400 --products 20 --zipf 1 --batch-max 100";

fn words(arguments: &str) -> Vec<&str> {
    arguments.split_whitespace().collect()
}

fn runs(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}

/// Runs of the shipped binary on the world's stores.
fn bench(world: &World, more: &str) -> Vec<Value> {
    let arguments = format!("--output json bench {SMALL} {more}");
    runs(&world.cli(&words(&arguments)).succeeds().stdout())
}

/// Runs of the laboratory.
fn lab(world: &World, more: &str) -> Vec<Value> {
    runs(&world.lab(&words(&format!("{SMALL} {more}"))).succeeds().stdout())
}

fn number(run: &Value, field: &str) -> f64 {
    run[field].as_f64().unwrap_or_else(|| panic!("{field}: {run}"))
}

fn strategies(runs: &[Value]) -> Vec<&str> {
    runs.iter().map(|run| run["strategy"].as_str().unwrap_or_default()).collect()
}

/// The databases and topics that a run made: their names begin with those of the world's.
async fn remains(world: &World) -> Vec<String> {
    let mut conn =
        MySqlConnection::connect(world.config.order_store.url.expose()).await.expect("the server");
    let databases = "SELECT CAST(schema_name AS CHAR) FROM information_schema.schemata
        WHERE schema_name LIKE CONCAT(DATABASE(), '_%')
            OR schema_name LIKE CONCAT(REPLACE(DATABASE(), '_orders', '_stock'), '_%')";
    let mut names: Vec<String> =
        sqlx::query_scalar(databases).fetch_all(&mut conn).await.expect("the databases");
    names.extend(world.topics().into_iter().filter(|topic| topic.starts_with("bench_")));
    names
}

async fn nothing_remains(world: &World) {
    wait_for(async || match remains(world).await {
        names if names.is_empty() => Ok(()),
        names => Err(format!("{names:?} remain")),
    })
    .await;
}

async fn count(world: &World, table: &str) -> i64 {
    let mut conn =
        MySqlConnection::connect(world.config.order_store.url.expose()).await.expect("the server");
    let sql = format!("SELECT COUNT(*) FROM {table}");
    sqlx::query_scalar(&sql).fetch_one(&mut conn).await.expect("a count")
}

fn is_a_verified_drain(run: &Value) {
    assert_eq!(
        (&run["mode"], &run["verified"], &run["orders"]),
        (&"drain".into(), &true.into(), &400.into())
    );
    let (orders, seconds) = (number(run, "orders_per_s"), number(run, "seconds"));
    // Both are rounded.
    assert!((orders * seconds - 400.0).abs() <= 0.0006 * orders + 0.06 * seconds, "{run}");
    assert!(number(run, "mean_batch") <= 100.0 && number(run, "lines") >= 400.0, "{run}");
    assert!(number(run, "peak_rss_mib") > 1.0 && number(run, "p50_ms") > 0.0, "{run}");
    let others = run["cpu_seconds_per_1000_orders_of_others"].as_object().expect("an object");
    assert!(seconds < 0.2 || others.contains_key("java"), "the broker works too: {run}");
}

on_each_database!(
    a_drain_on_the_configured_stores_is_measured_under_both_strategies,
    stores_that_are_not_empty_are_refused_unless_they_may_be_reused,
    latency_is_measured_at_a_given_rate,
    baskets_are_placed_as_they_are_but_for_the_invalid,
    a_file_without_orders_is_refused,
    the_laboratory_measures_a_drain_beside_the_ceiling,
    the_laboratory_measures_latency_beside_the_bare_way,
    workers_that_are_killed_and_join_meanwhile_change_nothing,
    orders_with_a_key_or_with_an_id_of_the_client_are_measured,
    the_lines_of_batches_are_measured_with_and_without_a_rate,
    records_of_the_intake_are_measured_with_and_without_a_rate,
    the_laboratory_measures_beside_open_holds,
    short_holds_end_in_time_while_the_compensators_die,
);

async fn a_drain_on_the_configured_stores_is_measured_under_both_strategies(world: World) {
    let runs = bench(&world, "");

    assert_eq!(strategies(&runs), ["row", "redlock"]);
    runs.iter().for_each(is_a_verified_drain);
    nothing_remains(&world).await;
    world.verify();
}

/// A run deletes its topics, so it must not use the configured ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_with_levels_on_leaves_the_configured_topics_alone() {
    let mut world = configured(World::new(Database::MySql, Strategy::Row).await);
    let levels = turn_on(&mut world);
    let adjustments = world.config.topics.stock_adjustments.clone().expect("configured");
    produce(&world, &[request("r-1", "a", 1)], None);

    let runs = bench(&world, "--strategy row");

    runs.iter().for_each(is_a_verified_drain);
    assert_eq!(world.count_messages(&levels), 0);
    assert_eq!(world.count_messages(&adjustments.requests), 1);
    assert_eq!(world.count_messages(&adjustments.dead_letters), 0);
    nothing_remains(&world).await;
}

async fn stores_that_are_not_empty_are_refused_unless_they_may_be_reused(world: World) {
    world.import(&[("somebodys", 7)]);

    let refused = world.cli(&words(&format!("bench {SMALL}"))).exits(2);
    let second = bench(&world, "--strategy row --reuse-stores");

    let error = refused.stderr();
    assert!(error.contains("stock_store.url: the store is not empty"), "{error}");
    is_a_verified_drain(&second[0]);
    world.order_store().place(&[new_order()], Duration::ZERO).await.expect("placed");
    let args = format!("bench {SMALL} --reuse-stores");
    let error = world.cli(&words(&args)).exits(2).stderr();
    assert!(error.contains("order_store.url: orders are pending"), "{error}");
    assert_eq!(world.available("somebodys"), 7);
    nothing_remains(&world).await;
}

async fn latency_is_measured_at_a_given_rate(world: World) {
    let runs = bench(&world, "--mode end-to-end --strategy row --rate 200");

    let [run] = runs.as_slice() else { panic!("one run: {runs:?}") };
    assert_eq!((&run["mode"], &run["verified"]), (&"end-to-end".into(), &true.into()));
    // 400 orders at 200 a second: an open loop takes its time.
    assert!((1.9..30.0).contains(&number(run, "seconds")), "{run}");
    let (p50, p99) = (number(run, "p50_ms"), number(run, "p99_ms"));
    assert!(0.0 < p50 && p50 <= p99 && p99 <= number(run, "max_ms"), "{run}");
    assert!(p50 < 1000.0 * number(run, "seconds"), "{run}");
}

async fn baskets_are_placed_as_they_are_but_for_the_invalid(world: World) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let baskets =
        [lines(&[("milk", 2), ("bread", 1)]), lines(&[("milk", 0)]), lines(&[("tea", 1)])];
    let text = baskets.map(|basket| basket.to_string()).join("\n");
    std::fs::write(file.path(), text).expect("written");
    let path = file.path().display().to_string();

    let args = ["--output", "json", "bench", "--baskets", &path, "--strategy", "redlock"];
    let run = world.cli(&args).succeeds().json();

    assert_eq!(
        (&run["orders"], &run["lines"], &run["verified"]),
        (&2.into(), &3.into(), &true.into())
    );
}

async fn a_file_without_orders_is_refused(world: World) {
    let refused = world.cli(&["bench", "--baskets", "/dev/null"]).exits(2);

    let error = refused.stderr();
    assert!(error.contains("/dev/null: no line is a valid order"), "{error}");
}

async fn the_laboratory_measures_a_drain_beside_the_ceiling(world: World) {
    world.import(&[("somebodys", 7)]);

    let runs = lab(&world, "--history 1000");

    assert_eq!(strategies(&runs), ["row", "redlock"]);
    for run in &runs {
        is_a_verified_drain(run);
        let (ratio, orders) = (number(run, "ratio_to_ceiling"), number(run, "orders_per_s"));
        let ceiling = number(run, "ceiling_orders_per_s");
        // All three are rounded.
        let error = 0.001 + 0.06 * ratio / ceiling + 0.06 / ceiling;
        assert!((ratio - orders / ceiling).abs() <= error, "{run}");
        assert_eq!(run["history"], 1000);
    }
    assert_eq!(world.available("somebodys"), 7, "the configured stores are not touched");
    nothing_remains(&world).await;
}

async fn the_laboratory_measures_latency_beside_the_bare_way(world: World) {
    let runs = lab(&world, "--mode end-to-end --strategy row --rate 200");

    let [run] = runs.as_slice() else { panic!("one run: {runs:?}") };
    assert_eq!((&run["mode"], &run["verified"]), (&"end-to-end".into(), &true.into()));
    let (bare_p50, bare_p99) = (number(run, "bare_p50_ms"), number(run, "bare_p99_ms"));
    assert!(0.0 < bare_p50 && bare_p50 <= bare_p99, "{run}");
    let ratio = number(run, "p99_ms") / bare_p99;
    assert!((number(run, "ratio_to_bare_p99") - ratio).abs() < 0.01, "{run}");
}

async fn workers_that_are_killed_and_join_meanwhile_change_nothing(world: World) {
    // One joins after 4 s, and the other is killed after 8 s, long before the last of 400 orders
    // is placed.
    let runs = lab(&world, "--mode end-to-end --rate 25 --churn 4s --skip-ceiling");

    for run in &runs {
        assert!(number(run, "killed") >= 1.0 && number(run, "joined") >= 1.0, "{run}");
        assert_eq!((&run["orders"], &run["verified"]), (&400.into(), &true.into()));
    }
    assert_eq!(runs.len(), 2);
}

async fn orders_with_a_key_or_with_an_id_of_the_client_are_measured(world: World) {
    let keyed = bench(&world, "--mode end-to-end --strategy row --identity key");
    let keys = count(&world, "idempotency_keys").await;
    let put = "--mode end-to-end --strategy row --identity order-id --reuse-stores";
    let put = bench(&world, put);

    assert_eq!((&keyed[0]["identity"], &keyed[0]["verified"]), (&"key".into(), &true.into()));
    assert_eq!((&put[0]["identity"], &put[0]["verified"]), (&"order-id".into(), &true.into()));
    assert_eq!(keys, 400);
    assert_eq!(count(&world, "orders").await, 800, "no request is a repetition");
}

async fn the_lines_of_batches_are_measured_with_and_without_a_rate(world: World) {
    let keyed = bench(&world, "--mode end-to-end --strategy row --via batch --identity key");
    let keys = count(&world, "idempotency_keys").await;
    let put = "--mode end-to-end --strategy row --via batch --identity order-id --rate 400";
    let put = bench(&world, &format!("{put} --reuse-stores"));

    for run in [&keyed[0], &put[0]] {
        assert_eq!((&run["via"], &run["verified"]), (&"batch".into(), &true.into()));
    }
    assert_eq!((keys, count(&world, "orders").await), (400, 800));
    assert!(number(&put[0], "seconds") >= 0.9, "{}", put[0]);
}

async fn records_of_the_intake_are_measured_with_and_without_a_rate(world: World) {
    let keyed = bench(&world, "--mode end-to-end --strategy row --via kafka --identity key");
    let keys = count(&world, "idempotency_keys").await;
    let put = "--mode end-to-end --strategy row --via kafka --identity order-id --rate 400";
    let put = bench(&world, &format!("{put} --reuse-stores"));
    let plain = bench(&world, "--mode end-to-end --strategy row --via kafka --reuse-stores");

    for run in [&keyed[0], &put[0], &plain[0]] {
        assert_eq!((&run["via"], &run["verified"]), (&"kafka".into(), &true.into()));
        assert!(number(run, "p50_ms") > 0.0, "{run}");
    }
    assert_eq!((keys, count(&world, "idempotency_keys").await), (400, 400));
    assert_eq!(count(&world, "orders").await, 1200);
    assert!(number(&put[0], "seconds") >= 0.9, "{}", put[0]);
    nothing_remains(&world).await;
}

async fn the_laboratory_measures_beside_open_holds(world: World) {
    let runs = lab(&world, "--strategy row --open-holds 1000 --skip-ceiling");

    let [run] = runs.as_slice() else { panic!("one run: {runs:?}") };
    is_a_verified_drain(run);
    assert_eq!(run["open_holds"], 1000);
    nothing_remains(&world).await;
}

async fn short_holds_end_in_time_while_the_compensators_die(world: World) {
    let arguments = "holds --holds 300 --rate 100 --seconds 1..3 --kill-every 1s";

    let run = world.lab(&words(arguments)).succeeds().json();

    assert_eq!((&run["verified"], &run["wrong"]), (&true.into(), &Value::Array(vec![])));
    assert!(number(&run, "kills") >= 2.0, "{run}");
    let (confirmed, expired) = (number(&run, "confirmed"), number(&run, "expired"));
    assert!(confirmed >= 30.0 && expired >= 30.0, "{run}");
    assert!((confirmed + expired - 300.0).abs() < 0.5, "{run}");
    let (earliest, latest) = (number(&run, "earliest_s"), number(&run, "latest_s"));
    assert!(0.0 <= earliest && earliest <= latest && latest <= 60.0, "{run}");
    nothing_remains(&world).await;
}
