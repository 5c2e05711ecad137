//! Workers come and go under load: what one leaves, another takes, and nothing is lost or twice.

use std::time::Instant;

use crate::harness::{
    Database, PATIENCE, Role, Strategy, World, body, on_two_stacks, order_lines, place_all, random_orders,
};

/// Waits until a worker has decided something itself.
async fn works(worker: &Role) {
    let begun = Instant::now();
    while worker.count("stocklock_orders_decided_total", "").await == 0 {
        assert!(begun.elapsed() < PATIENCE, "it decides nothing:\n{}", worker.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Waits until a worker has had partitions taken away.
async fn gave_up(worker: &Role) {
    let begun = Instant::now();
    while worker.count("stocklock_rebalances_total", "revoke").await == 0 {
        assert!(begun.elapsed() < PATIENCE, "it keeps its partitions:\n{}", worker.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Waits until a worker has got all partitions, which takes until the session of one that was killed has run out.
async fn owns_all(worker: &Role) {
    let begun = Instant::now();
    loop {
        let log = worker.log();
        let count = |what: &str| -> usize {
            let lists = log.lines().filter(|line| line.contains(what)).filter_map(|line| line.split(['[', ']']).nth(1));
            lists.map(|list| list.split(',').filter(|id| !id.trim().is_empty()).count()).sum()
        };
        if count("partitions assigned") - count("partitions taken away") == 4 {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "it never got all partitions:\n{log}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

on_two_stacks! {
    async fn workers_that_come_and_go_under_load_lose_nothing_and_do_nothing_twice(world: World) {
        let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
        world.import(&[("p0", 900), ("p1", 900), ("p2", 900)]);
        let (ingest, _compensator) = (world.start("ingest").await, world.start("compensator").await);
        let (first, second) = (world.start("worker").await, world.start("worker").await);
        let (over, load) = (tokio_util::sync::CancellationToken::new(), ingest.http.clone());
        let loading = tokio::spawn({
            let over = over.clone();
            async move {
                let (mut acknowledged, mut seed) = (Vec::new(), 0);
                while !over.is_cancelled() {
                    let bodies: Vec<_> = random_orders(seed, 50, 3).iter().map(body).collect();
                    acknowledged.extend(place_all(&load, &bodies, 4).await);
                    seed += 1;
                }
                acknowledged
            }
        });
        tokio::join!(works(&first), works(&second));
        let third = world.start("worker").await;
        works(&third).await;
        gave_up(&first).await;
        first.stop();
        third.kill();
        // The killed one's partitions come to the second once its session has run out.
        owns_all(&second).await;
        over.cancel();
        let acknowledged = loading.await.unwrap();
        world.settled().await;
        let total = world.count_orders("COMPLETED").await + world.count_orders("FAILED").await;
        assert_eq!(total, i64::try_from(acknowledged.len()).unwrap());
        world.verify();
        second.stop();
        assert_eq!(world.uncommitted(group, topic), 0, "a graceful stop commits what it did");
    }
}

/// What was decided and not reported must come again: the status is all that brings it to the order store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_cannot_report_its_outcomes_keeps_its_offsets() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    world.import(&[("a", 100)]);
    let orders = world.save(&vec![order_lines(&[("a", 1)]); 10]).await;
    world.produce_events(&orders).await;
    // No broker takes a topic of this name.
    let mute = Role::spawn(&world.env, "worker", &[("STOCKLOCK__TOPICS__ORDER_STATUS", "no such topic")]);
    mute.listening().await;
    let begun = Instant::now();
    while mute.count("stocklock_retries_total", "kafka").await == 0 {
        assert!(begun.elapsed() < PATIENCE, "it reports, or does not try:\n{}", mute.log());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(world.available("a") < 100, "orders were decided");
    mute.stop();
    assert_eq!(world.uncommitted(group, topic), 10);
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (10, 90));
    world.verify();
}
