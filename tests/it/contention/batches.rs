//! What a worker does with a batch whose products others hold, or whose locks it loses.

use std::{sync::Arc, time::Duration};

use stocklock::{
    deduct::Worker,
    domain::OrderEvent,
    kafka::{Done, Handler as _},
};
use tokio::{task::JoinHandle, time::Instant};

use super::{key, lock_by_rslock, redlock_world, rslock};
use crate::harness::{
    Masters, Rival, World, decide, delivered, is_held_up_at, order_lines, random_orders, stays,
    wait_for_within, wait_until,
};

/// Handles a batch once. Returns a letter for each order: `d` if it is decided, `-` if it is
/// deferred.
async fn handle(worker: &Worker, events: &[OrderEvent]) -> String {
    let decoded: Vec<_> = events.iter().map(|event| worker.decode(&delivered(event))).collect();
    let Done { handled, deferred } = worker.handle(&decoded).await.expect("handled");
    worker.publish(&handled).await.expect("published");
    let letter = |number: usize| match handled.decisions.outcomes.get(&events[number].order_id) {
        Some(_) => 'd',
        None if deferred.contains(&number) => '-',
        None => '?',
    };
    (0..events.len()).map(letter).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_only_a_minority_refuses_is_free() {
    let masters = Masters::start(3).await;
    let mut world = redlock_world().await;
    masters.serve(&mut world);
    world.import(&[("hot", 10), ("b", 10)]);
    let worker = world.worker(&World::metrics());
    let mut orders = vec![order_lines(&[("hot", 1)])];
    orders.extend(vec![order_lines(&[("b", 1)]); 3]);
    let events = world.save(&orders).await;

    wait_until("b counts as free", async || {
        for number in 0..3 {
            masters.set(number, &key(&world, "hot"), Some(world.config.lock.ttl)).await;
        }
        masters.set(2, &key(&world, "b"), Some(world.config.lock.ttl)).await;
        match handle(&worker, &events).await.as_str() {
            "-ddd" => true,
            // One of the two masters that grant b answered too late.
            "----" => false,
            others => panic!("{others}"),
        }
    })
    .await;
}

/// No majority refuses either of the two keys, and none grants both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_orders_whose_keys_single_masters_hold_are_deferred() {
    let masters = Masters::start(3).await;
    let mut world = redlock_world().await;
    masters.serve(&mut world);
    world.import(&[("a", 10), ("b", 10), ("c", 10)]);
    let worker = world.worker(&World::metrics());
    let mut orders = vec![order_lines(&[("a", 1)]), order_lines(&[("b", 1)])];
    orders.extend(vec![order_lines(&[("c", 1)]); 3]);
    let events = world.save(&orders).await;
    masters.set(0, &key(&world, "a"), Some(Duration::from_secs(5))).await;
    masters.set(1, &key(&world, "b"), Some(Duration::from_secs(5))).await;

    let handled = handle(&worker, &events).await;

    // The worker does not wait for a slow master, and a key that it alone refuses is free then.
    assert!(handled.ends_with("ddd") && handled[..2].contains('-'), "{handled}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_of_free_products_are_decided_and_none_overtakes() {
    let mut world = redlock_world().await;
    world.import(&[("a", 10), ("b", 10), ("c", 10), ("d", 10)]);
    let worker = world.worker(&World::metrics());
    let orders = [
        &[("a", 1)][..],
        &[("a", 1), ("b", 1)],
        &[("c", 1)],
        &[("b", 1), ("d", 1)],
        &[("c", 2)],
        &[("d", 1)],
    ];
    let events = world.save(&orders.map(order_lines)).await;
    let other = lock_by_rslock(&world, "a").await;

    // Two of six can be decided, which is fewer than half: the worker waits before it decides them.
    let begun = Instant::now();
    assert_eq!(handle(&worker, &events).await, "--d-d-");
    assert!(begun.elapsed() >= world.config.lock.wait, "after {:?}", begun.elapsed());

    // Half of the next batch can be decided: the worker does not wait.
    let deferred: Vec<_> = [0, 1, 3, 5].map(|number: usize| events[number].clone()).into();
    let more = world.save(&vec![order_lines(&[("c", 1)]); 4]).await;
    world.config.lock.wait = Duration::from_secs(20);
    let patient = world.worker(&World::metrics());
    let begun = Instant::now();
    assert_eq!(handle(&patient, &[&deferred[..], &more].concat()).await, "----dddd");
    assert!(begun.elapsed() < world.config.lock.wait, "after {:?}", begun.elapsed());

    rslock(&world).unlock(&other).await;
    assert_eq!(handle(&patient, &deferred).await, "dddd");
    world.check_ledger(&worker.store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_stop_at_the_first_deferred_order() {
    let world = redlock_world().await;
    world.import(&[("a", 100), ("b", 100)]);
    let (group_id, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    let other = lock_by_rslock(&world, "a").await;
    let mut events = world.save(&[order_lines(&[("a", 1)])]).await;
    let blocked = events[0].order_id;
    events.extend(world.save(&vec![order_lines(&[("b", 1)]); 40]).await);
    world.produce_events(&events).await;

    let worker = world.start_with("worker", &[("STOCKLOCK__LOCK__TTL", "2s")]).await;

    world.has_available(&[("a", 100), ("b", 60)]).await;
    // In the partition of the deferred order no offset passes it. All others are committed.
    let deferred = world.count_from(blocked, topic);
    wait_until("the offsets of the other orders are committed", async || {
        world.uncommitted(group_id, topic) <= deferred
    })
    .await;
    stays(Duration::from_secs(7), "no offset passes the deferred order", async || {
        world.uncommitted(group_id, topic) == deferred
    })
    .await;
    assert_eq!((world.available("a"), world.available("b")), (100, 60));

    // The orders come again, and the next worker finds their outcomes.
    worker.kill();
    let worker = world.start("worker").await;
    rslock(&world).unlock(&other).await;
    world.caught_up(group_id, topic).await;
    assert_eq!((world.available("a"), world.available("b")), (99, 60));
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_are_held_until_the_commit() {
    let world = redlock_world().await;
    world.import(&[("a", 5)]);
    let worker = Arc::new(world.worker(&World::metrics()));
    let events = world.save(&[order_lines(&[("a", 3)])]).await;
    let mut rival = Rival::adjust(&world, "a", 1).await;
    let deciding: JoinHandle<String> = {
        let (worker, events) = (Arc::clone(&worker), events.clone());
        tokio::spawn(async move { handle(&worker, &events).await })
    };
    is_held_up_at(&mut rival.conn, &deciding, "UPDATE JSON_TABLE").await;

    let refused = rslock(&world).lock(key(&world, "a").as_str(), Duration::from_secs(1)).await;

    assert!(refused.is_err(), "the key is free while the transaction is open");
    rival.commit().await;
    assert_eq!(deciding.await.unwrap(), "d");
    let free = lock_by_rslock(&world, "a").await;
    rslock(&world).unlock(&free).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_committed_under_locks_that_were_lost() {
    let mut world = redlock_world().await;
    world.config.lock.ttl = Duration::from_secs(6);
    world.import(&[("a", 5)]);
    let metrics = World::metrics();
    let worker = Arc::new(world.worker(&metrics));
    let events = world.save(&[order_lines(&[("a", 3)])]).await;
    // The write comes late, and would not be stale.
    let mut rival = Rival::rename(&world, "a").await;
    let deciding = {
        let (worker, messages) = (Arc::clone(&worker), vec![worker.decode(&delivered(&events[0]))]);
        tokio::spawn(async move {
            worker.handle(&messages).await.map(|done| done.handled.decisions.outcomes.len())
        })
    };
    is_held_up_at(&mut rival.conn, &deciding, "UPDATE JSON_TABLE").await;

    assert!(world.delete_keys().await >= 2, "no majority of the masters held the key");
    wait_until("the worker notices the loss", async || {
        metrics.lock_failures.with_label_values(&["lost"]).get() > 0
    })
    .await;
    rival.commit().await;

    let error = deciding.await.unwrap().expect_err("lost");
    assert_eq!(error.to_string(), "the locks were lost before the commit");
    assert_eq!(world.available("a"), 5);
    assert_eq!(metrics.stale_writes_rejected.get(), 0, "a write was stale");
    assert_eq!(handle(&worker, &events).await, "d");
    assert_eq!(world.available("a"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_of_ours_stays_in_redis() {
    let mut world = redlock_world().await;
    world.config.lock.ttl = Duration::from_secs(2);
    world.import(&["p0", "p1", "p2", "p3", "p4", "p5"].map(|id| (id, 500)));
    let events = world.save(&random_orders(3, 200, 6)).await;

    let workers = events.chunks(50).map(|share| {
        let (worker, share) = (world.worker(&World::metrics()), share.to_vec());
        tokio::spawn(async move {
            for batch in share.chunks(5) {
                decide(&worker, batch).await;
            }
        })
    });
    futures::future::join_all(workers).await.into_iter().for_each(|ended| ended.unwrap());

    // A claim that a master answers late may be the last to set a key.
    wait_for_within(2 * world.config.lock.ttl, async || {
        let keys = world.keys().await;
        assert!(keys.values().all(|left| (0..=2_000).contains(left)), "beyond the TTL: {keys:?}");
        if keys.is_empty() { Ok(()) } else { Err(format!("{keys:?}")) }
    })
    .await;
}
