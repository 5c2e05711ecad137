//! The programs of `examples/`, run as their README says.

use serde_json::{Value, json};

use crate::harness::{Api, Database, Program, Registry, Strategy, World};

fn records(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

/// Runs each command of a program, with the registry or without it.
async fn every_command_works(mut world: World, program: impl Fn() -> Program) {
    world.configure(&[("INGEST__INTAKE", "true"), ("TOPICS__STOCK_LEVELS", "{name}.stock-levels")]);
    world.import(&[("a", 10), ("b", 5)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    let topics = &world.config.topics;
    let (brokers, statuses) = (&world.config.kafka.brokers, &topics.order_status);
    let requests = &topics.order_requests.as_ref().expect("the intake is on").requests;
    let levels = topics.stock_levels.as_ref().expect("levels are on");

    let placed = program().run(&["place-by-kafka", brokers, requests, statuses, "a", "2"], "");
    let repeated = program().run(&["place-by-http", &all.http, "a", "3"], "");
    let [by_kafka] = &records(&placed)[..] else { panic!("not one outcome: {placed}") };
    let id = by_kafka["order_id"].as_str().expect("an id");
    let failed = program().run(&["fail", brokers, statuses, id, "payment declined"], "");
    world.verify();
    let followed = program().run(&["follow-levels", brokers, levels, "3"], "");

    assert_eq!(by_kafka["status"], "COMPLETED");
    assert_eq!(api.get(&format!("/v1/orders/{id}")).await.body["reference"], by_kafka["reference"]);
    let [first, second] = &records(&repeated)[..] else { panic!("not two answers: {repeated}") };
    assert_eq!((&first["code"], &first["replayed"]), (&json!(201), &json!(false)));
    assert_eq!((&second["code"], &second["replayed"]), (&json!(201), &json!(true)));
    assert_eq!(first["order_id"], second["order_id"]);
    let reported: Vec<_> = records(&failed).iter().map(|each| each["status"].clone()).collect();
    assert_eq!(reported, ["COMPLETED", "FAILED", "RELEASED"]);
    assert_eq!(api.becomes(id, "FAILED").await["reason"], "payment declined");
    let counts = (world.count_orders("COMPLETED").await, world.count_orders("FAILED").await);
    assert_eq!(counts, (1, 1));
    let mut levels = records(&followed);
    levels.sort_by_key(|level| level["product_id"].to_string());
    assert_eq!(levels.len(), 2, "{followed}");
    for (level, (product, available)) in levels.iter().zip([("a", 7), ("b", 5)]) {
        let stored = api.get(&format!("/v1/products/{product}")).await.body;
        assert_eq!(
            (&level["product_id"], &level["available"]),
            (&json!(product), &json!(available))
        );
        assert_eq!(level["version"], stored["version"]);
    }
    assert_eq!(all.count("stocklock_dead_letters_total", "").await, 0);
    all.stop();
}

/// As stocklock writes without a registry, and with one.
async fn every_command_works_with_and_without_a_registry(
    database: Database,
    program: impl Fn() -> Program,
) {
    every_command_works(World::new(database, Strategy::Row).await, &program).await;
    let url = Registry::shared().await.url();
    let world = World::with_registry(database, &url).await;
    every_command_works(world, || program().env("SCHEMA_REGISTRY", &url)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_python_example_works() {
    let program = || Program::python("examples/python/client.py");
    every_command_works_with_and_without_a_registry(Database::MySql, program).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_java_example_works() {
    let program = || Program::java("examples/java/Client.java");
    every_command_works_with_and_without_a_registry(Database::MariaDb, program).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_the_go_example_works() {
    let program = || Program::go("examples/go");
    every_command_works_with_and_without_a_registry(Database::MySql, program).await;
}
