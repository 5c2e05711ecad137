//! `stocklock bench`: it measures the real pipeline, says what it found, and leaves nothing behind.

use serde_json::Value;
use sqlx::{Connection, MySqlConnection};

use crate::harness::{World, lines, on_each_database, wait_for};

const SMALL: [&str; 10] = [
    "--output",
    "json",
    "bench",
    "--orders",
    "400",
    "--products",
    "20",
    "--zipf",
    "1",
    "--batch-max",
];

fn bench(world: &World, more: &[&str]) -> Vec<Value> {
    let args: Vec<_> = SMALL.iter().chain(&["100"]).chain(more).copied().collect();
    let stdout = world.cli(&args).succeeds().stdout();
    stdout.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}

fn number(run: &Value, field: &str) -> f64 {
    run[field].as_f64().unwrap_or_else(|| panic!("{field}: {run}"))
}

/// The databases and topics that the bench made: their names begin with those of the world's.
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

on_each_database!(a_drain_is_measured_under_both_strategies_beside_the_ceiling,);

async fn a_drain_is_measured_under_both_strategies_beside_the_ceiling(world: World) {
    let runs = bench(&world, &["--history", "1000"]);

    let strategies: Vec<_> =
        runs.iter().map(|run| run["strategy"].as_str().unwrap_or_default()).collect();
    assert_eq!(strategies, ["row", "redlock"]);
    for run in &runs {
        assert_eq!(
            (&run["mode"], &run["verified"], &run["orders"]),
            (&"drain".into(), &true.into(), &400.into())
        );
        let (orders, seconds) = (number(run, "orders_per_s"), number(run, "seconds"));
        // Both are rounded.
        assert!((orders * seconds - 400.0).abs() <= 0.0006 * orders + 0.06 * seconds, "{run}");
        let ratio = number(run, "ratio_to_ceiling");
        let ceiling = number(run, "ceiling_orders_per_s");
        assert!(
            (ratio - orders / ceiling).abs() <= 0.001 + 0.06 * ratio / ceiling + 0.06 / ceiling,
            "{run}"
        );
        assert!(number(run, "mean_batch") <= 100.0 && number(run, "lines") >= 400.0, "{run}");
        assert!(number(run, "peak_rss_mib") > 1.0, "{run}");
        assert!(number(run, "history") == 1000.0 && number(run, "p50_ms") > 0.0, "{run}");
        let others = run["cpu_seconds_per_1000_orders_of_others"].as_object().expect("an object");
        assert!(seconds < 0.2 || others.contains_key("java"), "the broker works too: {run}");
    }

    wait_for(async || match remains(&world).await {
        names if names.is_empty() => Ok(()),
        names => Err(format!("{names:?} remain")),
    })
    .await;
}

on_each_database!(latency_is_measured_at_a_given_rate,);

async fn latency_is_measured_at_a_given_rate(world: World) {
    let runs = bench(&world, &["--mode", "end-to-end", "--strategy", "row", "--rate", "200"]);

    let [run] = runs.as_slice() else { panic!("one run: {runs:?}") };
    assert_eq!((&run["mode"], &run["verified"]), (&"end-to-end".into(), &true.into()));
    // 400 orders at 200 a second: an open loop takes its time.
    assert!((1.9..30.0).contains(&number(run, "seconds")), "{run}");
    let (p50, p99) = (number(run, "p50_ms"), number(run, "p99_ms"));
    assert!(0.0 < p50 && p50 <= p99 && p99 <= number(run, "max_ms"), "{run}");
    assert!(p50 < 1000.0 * number(run, "seconds"), "{run}");
    let (bare_p50, bare_p99) = (number(run, "bare_p50_ms"), number(run, "bare_p99_ms"));
    assert!(0.0 < bare_p50 && bare_p50 <= bare_p99, "{run}");
    assert!((number(run, "ratio_to_bare_p99") - p99 / bare_p99).abs() < 0.01, "{run}");
}

on_each_database!(workers_that_are_killed_and_join_meanwhile_change_nothing,);

async fn workers_that_are_killed_and_join_meanwhile_change_nothing(world: World) {
    // A worker joins after 4 s, and another is killed after 8 s, long before the last of 400
    // orders.
    let churn = ["--mode", "end-to-end", "--rate", "25", "--churn", "4s", "--skip-ceiling"];
    let runs = bench(&world, &churn);

    for run in &runs {
        assert!(number(run, "killed") >= 1.0 && number(run, "joined") >= 1.0, "{run}");
        assert_eq!((&run["orders"], &run["verified"]), (&400.into(), &true.into()));
    }
    assert_eq!(runs.len(), 2);
}

on_each_database!(baskets_are_placed_as_they_are_but_for_the_invalid,);

async fn baskets_are_placed_as_they_are_but_for_the_invalid(world: World) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let baskets =
        [lines(&[("milk", 2), ("bread", 1)]), lines(&[("milk", 0)]), lines(&[("tea", 1)])];
    std::fs::write(file.path(), baskets.map(|basket| basket.to_string()).join("\n"))
        .expect("written");

    let path = file.path().display().to_string();
    let args = [
        "--output",
        "json",
        "bench",
        "--baskets",
        &path,
        "--strategy",
        "redlock",
        "--skip-ceiling",
    ];

    let run = world.cli(&args).succeeds().json();

    assert_eq!(
        (&run["orders"], &run["lines"], &run["verified"]),
        (&2.into(), &3.into(), &true.into())
    );
}

on_each_database!(a_file_without_orders_is_refused,);

async fn a_file_without_orders_is_refused(world: World) {
    let refused = world.cli(&["bench", "--baskets", "/dev/null"]).exits(2);

    assert!(
        refused.stderr().contains("/dev/null: no line is a valid order"),
        "{}",
        refused.stderr()
    );
}
