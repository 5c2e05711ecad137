//! Adjustments from two clients and a topic, each sent twice, while workers of both strategies
//! drain a backlog: the ledger balances, and each request is done once.

use std::collections::BTreeMap;

use futures::future::join_all;
use serde_json::Value;

use crate::{
    adjustments_topic::{caught_up, configured, produce, request},
    harness::{Api, Database, Strategy, World, order_lines},
};

const PRODUCTS: usize = 20;
/// Requests that a client has open at a time.
const OPEN_REQUESTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_adjustments_beside_a_drain_are_done_once_each() {
    let world = World::new(Database::MySql, Strategy::Row).await;

    adjust_beside_a_drain(configured(world), 900, 2_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: 100,000 adjustments"]
async fn a_hundred_thousand_adjustments_beside_a_drain_are_done_once_each() {
    let world = World::new(Database::MySql, Strategy::Row).await;

    adjust_beside_a_drain(configured(world), 99_999, 50_000).await;
}

/// A third of the requests comes from each of two clients and from the topic.
async fn adjust_beside_a_drain(world: World, requests: usize, orders: usize) {
    let products: Vec<_> = (0..PRODUCTS).map(|n| format!("p{n}")).collect();
    let stock: Vec<_> = products.iter().map(|id| (id.as_str(), 1_000_000)).collect();
    world.import(&stock);
    let product = |n: usize| products[n % PRODUCTS].as_str();
    let order = |n: usize| order_lines(&[(product(n), 1), (product(n * 7 + 3), 2)]);
    let all: Vec<_> = (0..orders).map(order).collect();
    for orders in all.chunks(1_000) {
        let placed = world.save(orders).await;
        world.produce_events(&placed).await;
    }
    let wanted = |source: usize, n: usize| {
        let delta = if n.is_multiple_of(3) { -1 } else { 2 };
        request(&format!("{source}-{n}"), product(n + source), delta)
    };
    let each = requests / 3;

    let ingest = world.start("all").await;
    let redlock = world.start_with("worker", &[("STOCKLOCK__LOCK__STRATEGY", "redlock")]).await;
    let values: Vec<_> = (0..each).flat_map(|n| [wanted(0, n), wanted(0, n)]).collect();
    produce(&world, &values, None);
    let api = Api::of(&ingest);
    let send = async |source: usize, n: usize| {
        let value: Value = serde_json::from_slice(&wanted(source, n)).expect("JSON");
        let answers = join_all([api.adjust(&value), api.adjust(&value)]).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    };
    let client = async |source: usize| {
        for first in (0..each).step_by(OPEN_REQUESTS) {
            join_all((first..each.min(first + OPEN_REQUESTS)).map(|n| send(source, n))).await;
            if first.is_multiple_of(40) {
                world.cli(&["stock", "restock", product(first), "5"]).succeeds();
            }
        }
    };
    tokio::join!(client(1), client(2));
    caught_up(&world).await;
    world.settled().await;

    world.verify();
    let mut times = BTreeMap::<String, u32>::new();
    for product in &products {
        let listed = world.cli(&["--output", "json", "stock", "movements", product]).succeeds();
        for movement in listed.json().as_array().expect("a list") {
            if let Some(id) = movement["request_id"].as_str() {
                *times.entry(id.to_owned()).or_default() += 1;
            }
        }
    }
    assert_eq!(times.len(), 3 * each);
    let repeated: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(repeated.is_empty(), "{repeated:?}");
    drop((ingest, redlock));
}
