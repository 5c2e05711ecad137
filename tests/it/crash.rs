//! `kill -9` at every crash point and at random: the role is started again, and then no order is
//! lost and none is done twice.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{
    Database, PATIENCE, Role, Strategy, World, body, free_address, on_two_stacks, order_lines,
    place_all, random_orders, wait_until,
};

const PRODUCTS: usize = 12;
/// How often each role dies at random.
const LIVES: usize = 5;

fn import(world: &World, available: i64) {
    let ids: Vec<_> = (0..PRODUCTS).map(|n| format!("p{n}")).collect();
    world.import(&ids.iter().map(|id| (id.as_str(), available)).collect::<Vec<_>>());
}

fn bodies(seed: u64, count: usize) -> Vec<Value> {
    random_orders(seed, count, PRODUCTS).iter().map(body).collect()
}

/// Small batches, so that a load is many of them.
fn doomed(world: &World, role: &str, point: &str) -> Role {
    let small = [
        "STOCKLOCK__WORKER__BATCH_MAX",
        "STOCKLOCK__COMPENSATOR__BATCH_MAX",
        "STOCKLOCK__INGEST__GROUP_MAX",
    ];
    let mut settings = vec![("STOCKLOCK_CRASH_AT", point)];
    settings.extend(small.map(|key| (key, "20")));
    Role::spawn(&world.env, role, &settings)
}

/// Fails the test unless each acknowledged order is final and all invariants hold.
async fn check_nothing_lost(world: &World, acknowledged: &[String]) {
    world.settled().await;
    let ids: Vec<_> = acknowledged.iter().map(|id| id.parse().expect("an id")).collect();
    let decided = world.order_store().find_decided(&ids).await.expect("the order store");
    assert_eq!(decided.len(), acknowledged.len(), "acknowledged orders are final");
    world.verify();
    world.check_ledger(&world.stock_store(&World::metrics())).await;
}

/// Under load a worker dies at its crash point. Then a compensator dies at its own, once the worker
/// has reported statuses.
async fn crash_worker_and_compensator(world: World, worker_point: &str, compensator_point: &str) {
    import(&world, 100);
    let ingest = world.start("ingest").await;
    let acknowledged = place_all(&ingest.http, &bodies(3, 400), 32).await;
    assert_eq!(acknowledged.len(), 400);

    doomed(&world, "worker", &format!("{worker_point}@4")).crashed_at(worker_point).await;
    doomed(&world, "compensator", compensator_point).crashed_at(compensator_point).await;

    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    check_nothing_lost(&world, &acknowledged).await;
}

on_two_stacks!(
    a_worker_that_dies_with_its_locks_held_loses_nothing,
    a_worker_that_dies_in_its_transaction_loses_nothing,
    a_worker_that_dies_after_its_commit_loses_nothing,
    a_worker_that_dies_before_it_stores_its_offsets_does_nothing_twice,
);

async fn a_worker_that_dies_with_its_locks_held_loses_nothing(world: World) {
    crash_worker_and_compensator(world, "deduct.locked", "compensate.committed").await;
}

async fn a_worker_that_dies_in_its_transaction_loses_nothing(world: World) {
    crash_worker_and_compensator(world, "deduct.written", "compensate.written").await;
}

async fn a_worker_that_dies_after_its_commit_loses_nothing(world: World) {
    crash_worker_and_compensator(world, "deduct.committed", "compensate.committed").await;
}

async fn a_worker_that_dies_before_it_stores_its_offsets_does_nothing_twice(world: World) {
    crash_worker_and_compensator(world, "deduct.published", "compensate.written").await;
}

/// Places orders until one is not acknowledged, however long the ingest takes to its crash point.
async fn place_until_it_dies(ingest: &Role) -> Vec<String> {
    let begun = Instant::now();
    let mut acknowledged = Vec::new();
    for seed in 1000.. {
        let placed = place_all(&ingest.http, &bodies(seed, 100), 32).await;
        let died = placed.len() < 100;
        acknowledged.extend(placed);
        if died {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it did not die:\n{}", ingest.log());
    }
    acknowledged
}

/// An ingest dies under load. Another one publishes the orders that the first left in the outbox.
async fn crash_ingest(point: &str) {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    import(&world, 100);
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);

    let ingest = doomed(&world, "ingest", &format!("{point}@3"));
    ingest.ready().await;
    let acknowledged = place_until_it_dies(&ingest).await;
    ingest.crashed_at(point).await;

    let stored = world.order_store().outbox_state().await.expect("the outbox").pending;
    assert!(stored > 0, "the outbox is empty");

    let ingest = world.start("ingest").await;
    let mut all = place_all(&ingest.http, &bodies(6, 100), 32).await;
    assert_eq!(all.len(), 100);
    all.extend(acknowledged);

    check_nothing_lost(&world, &all).await;
    ingest.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingest_that_dies_after_its_commit_loses_nothing() {
    crash_ingest("ingest.committed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingest_that_dies_before_it_publishes_loses_nothing() {
    crash_ingest("relay.producing").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingest_that_dies_before_it_clears_its_outbox_does_nothing_twice() {
    crash_ingest("relay.produced").await;
}

/// The compensator dies while it applies another system's failure of an order. The order's release
/// must follow.
async fn crash_compensator_with_a_release(point: &str, failed_by_then: i64) {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    world.import(&[("a", 10)]);
    let ingest = world.start("ingest").await;
    let orders = world.save(&[order_lines(&[("a", 3)]), order_lines(&[("a", 4)])]).await;
    world.produce_events(&orders).await;
    world.report_failed(orders[0].order_id, "out of town").await;

    doomed(&world, "compensator", point).crashed_at(point).await;
    assert_eq!(world.count_orders("FAILED").await, failed_by_then);

    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    world.verify();
    assert_eq!((world.count_orders("FAILED").await, world.available("a")), (1, 6));
    ingest.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compensator_that_dies_before_its_commit_has_done_nothing() {
    crash_compensator_with_a_release("compensate.written", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compensator_that_dies_with_a_release_in_flight_loses_no_release() {
    crash_compensator_with_a_release("compensate.committed", 1).await;
}

/// Starts a role and kills it at a random moment, several times. The last life does not end before
/// the role has achieved something. Each life has a consumer group of its own: it does not wait
/// until the broker misses the life before, and reads the topic from its start.
async fn die_at_random(
    world: &World,
    role: &str,
    http: &str,
    seed: u64,
    has_achieved: impl AsyncFn() -> bool,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    for life in 0..LIVES {
        let group = format!("{}-{seed}-{life}", world.config.kafka.group_id);
        let of_compensators = format!("{group}-compensator");
        let settings = [
            ("STOCKLOCK__KAFKA__GROUP_ID", group.as_str()),
            ("STOCKLOCK__COMPENSATOR__GROUP_ID", of_compensators.as_str()),
            ("STOCKLOCK__HTTP__LISTEN", http),
        ];
        let running = Role::spawn(&world.env, role, &settings);
        // The moment is what is random here; there is no condition to wait for.
        tokio::time::sleep(Duration::from_millis(random.u64(1000..5000))).await;
        if life == LIVES - 1 {
            wait_until("the role has achieved something", &has_achieved).await;
        }
        running.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_killed_at_random_moments_lose_nothing_and_do_nothing_twice() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    import(&world, 600);
    let address = free_address();
    let url = format!("http://{address}");
    let (over, acknowledged) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let stock_store = world.stock_store(&World::metrics());
    let has_taken = async || acknowledged.lock().unwrap().len() > 50;
    let have_decided = async || stock_store.snapshot().await.expect("a snapshot").outcomes > 0;

    let killing = async {
        tokio::join!(
            die_at_random(&world, "ingest", &address, 1, has_taken),
            die_at_random(&world, "worker", &address, 2, have_decided),
            die_at_random(&world, "worker", &address, 3, have_decided),
            die_at_random(&world, "compensator", &address, 4, async || true),
        );
        over.store(true, Ordering::SeqCst);
    };
    let loading = async {
        let mut seed = 100;
        while !over.load(Ordering::SeqCst) {
            let placed = place_all(&url, &bodies(seed, 60), 8).await;
            acknowledged.lock().unwrap().extend(placed);
            seed += 1;
            // Ingest may be away: a pause between attempts, no wait for a condition.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };

    tokio::join!(killing, loading);

    let _all = world.start("all").await;
    check_nothing_lost(&world, &acknowledged.into_inner().unwrap()).await;
}
