//! Locks that expire: under a stopped holder, by a clock that jumps, after a killed worker.

use std::time::Duration;

use stocklock::{config::LockStrategy, domain::OrderEvent};

use super::{produce, world_on};
use crate::harness::{
    Masters, Role, World, deliver, on_each_database, order_lines, wait_until_within,
};

on_each_database!(a_holder_that_is_stopped_for_longer_than_its_ttl_writes_nothing_stale,);

async fn a_holder_that_is_stopped_for_longer_than_its_ttl_writes_nothing_stale(mut world: World) {
    let masters = Masters::start(3).await;
    masters.serve(&mut world);
    world.config.lock.ttl = Duration::from_secs(30);
    world.import(&[("a", 1)]);
    let settings = [
        ("STOCKLOCK__LOCK__STRATEGY", "redlock"),
        ("STOCKLOCK__LOCK__TTL", "30s"),
        ("STOCKLOCK_STOP_AT", "deduct.read"),
    ];
    let stopped = Role::spawn(&world.env, "worker", &settings);
    stopped.ready().await;
    produce(&world, 1).await;
    stopped.stopped_at("deduct.read").await;

    let mut holders = 0;
    for number in 0..3 {
        holders += masters.keys_of(number, "*lock:a").await.len();
        // The database ends the session of a holder that is silent for longer than the TTL. So only
        // the masters' time passes.
        masters.turn_clock(number, Duration::from_secs(60)).await;
    }
    assert!(holders >= 2, "no majority had granted the key");
    // Another worker takes over the product, and sells the last unit.
    world.config.lock.strategy = LockStrategy::Redlock;
    let other = world.worker(&World::metrics());
    let orders = world.save(&[order_lines(&[("a", 1)])]).await;
    assert_eq!(deliver(&other, &orders).await, 1);
    assert_eq!(world.available("a"), 0);
    stopped.thaw();

    stopped.shows("stocklock_stale_writes_rejected_total", "", |rejected| rejected > 0.0).await;
    world.caught_up(&world.config.kafka.group_id, &world.config.topics.orders).await;
    assert_eq!(world.available("a"), 0);
    world.check_ledger(&other.store).await;
    stopped.stop();
    world.replay_statuses(&world.compensator(&World::metrics())).await;
    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_sell_nothing_twice() {
    let masters = Masters::start(3).await;
    let mut world = world_on(&masters).await;
    world.config.lock.ttl = Duration::from_secs(5);
    world.import(&[("a", 450), ("b", 450)]);
    let metrics = World::metrics();
    let events = world.save(&vec![order_lines(&[("a", 1), ("b", 1)]); 1_200]).await;
    let workers: Vec<_> = events
        .chunks(300)
        .map(|share: &[OrderEvent]| {
            let (worker, share) = (world.worker(&metrics), share.to_vec());
            tokio::spawn(async move {
                for batch in share.chunks(4) {
                    deliver(&worker, batch).await;
                }
            })
        })
        .collect();

    // Two of three masters jump a minute ahead again and again: each time all their keys are free.
    let mut jumps_at_work = 0;
    for minute in 1..=5 {
        for number in [0, 1] {
            masters.turn_clock(number, Duration::from_secs(60 * minute)).await;
        }
        jumps_at_work += usize::from(workers.iter().any(|worker| !worker.is_finished()));
        // Some batches run between two jumps.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for worker in workers {
        worker.await.unwrap();
    }

    assert!(jumps_at_work > 0, "no clock jumped while the workers were at work");
    assert_eq!((world.available("a"), world.available("b")), (0, 0));
    world.check_ledger(&world.stock_store(&World::metrics())).await;
    eprintln!("stale writes rejected: {}", metrics.stale_writes_rejected.get());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_a_killed_worker_vanish_within_their_ttl() {
    const TTL: Duration = Duration::from_secs(5);
    let masters = Masters::start(3).await;
    let world = world_on(&masters).await;
    world.import(&[("a", 10)]);
    let settings = [("STOCKLOCK_CRASH_AT", "deduct.locked"), ("STOCKLOCK__LOCK__TTL", "5s")];
    let doomed = Role::spawn(&world.env, "worker", &settings);
    doomed.ready().await;
    produce(&world, 1).await;

    doomed.crashed_at("deduct.locked").await;

    let keys = world.keys().await;
    assert!(keys.keys().any(|key| key.ends_with("lock:a")), "it held no lock: {keys:?}");
    assert!(keys.values().all(|left| (0..=5_000).contains(left)), "beyond the TTL: {keys:?}");
    wait_until_within(TTL, "the keys have expired", async || world.keys().await.is_empty()).await;
}
