//! Two workers that both believe they own a partition: the database decides, and it decides once.

use std::{collections::BTreeMap, sync::Arc};

use stocklock::{
    domain::{
        OrderEvent, OrderId, Reason, ReportedStatus,
        fold::{Decisions, Outcome},
    },
    store::{Guard, StockStore, StoreError},
};
use tokio::{sync::Barrier, task::JoinHandle};

use crate::harness::{
    Rival, Strategy, World, deliver, is_held_up_at, on_every_stack, order_lines, random_orders,
    release,
};

/// Begins to decide once all who wait at the barrier are there; again while others are in the way.
fn decide(
    store: StockStore,
    guard: Guard,
    events: Vec<OrderEvent>,
    start: Arc<Barrier>,
) -> JoinHandle<Decisions> {
    tokio::spawn(async move {
        start.wait().await;
        loop {
            match store.decide(&events, guard, chrono::Utc::now(), || true).await {
                Ok(decisions) => return decisions,
                Err(StoreError::Conflict(why)) => eprintln!("repeated: {why}"),
                Err(error) => panic!("{error}"),
            }
        }
    })
}

/// Fails the test unless each order was decided by one of the two, and both report the same of it.
fn check_decided_once(events: &[OrderEvent], one: &Decisions, other: &Decisions) {
    let by_both: Vec<_> =
        one.outcomes.keys().filter(|id| other.outcomes.contains_key(id)).collect();
    assert!(by_both.is_empty(), "decided twice: {by_both:?}");
    assert_eq!(one.outcomes.len() + other.outcomes.len(), events.len());
    let sorted = |decisions: &Decisions| {
        let statuses = decisions.statuses.iter().cloned();
        statuses.map(|status| (status.order_id, status)).collect::<BTreeMap<OrderId, _>>()
    };
    assert_eq!(sorted(one), sorted(other));
}

async fn decide_together(world: &World, guards: [Guard; 2], rounds: u64) {
    world.import(
        &(0..8)
            .map(|n| (["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"][n], 200))
            .collect::<Vec<_>>(),
    );
    let stores = [world.stock_store(&World::metrics()), world.stock_store(&World::metrics())];
    for round in 0..rounds {
        let events = world.save(&random_orders(round, 20, 8)).await;
        let start = Arc::new(Barrier::new(2));
        let one = decide(stores[0].clone(), guards[0], events.clone(), Arc::clone(&start));
        // The other has the same orders in another sequence.
        let other =
            decide(stores[1].clone(), guards[1], events.iter().rev().cloned().collect(), start);
        check_decided_once(&events, &one.await.unwrap(), &other.await.unwrap());
    }
    world.check_ledger(&stores[0]).await;
}

/// The guard that goes with the world's strategy.
fn guard(world: &World) -> Guard {
    if world.strategy == Strategy::Row { Guard::RowLocks } else { Guard::Versions }
}

on_every_stack!(
    a_batch_that_two_stores_decide_at_once_is_decided_once,
    two_workers_with_the_same_partition_do_each_order_once,
    an_order_that_two_workers_release_at_once_is_released_once,
);

async fn a_batch_that_two_stores_decide_at_once_is_decided_once(world: World) {
    decide_together(&world, [guard(&world); 2], 25).await;
}

async fn two_workers_with_the_same_partition_do_each_order_once(world: World) {
    world.import(&[("p0", 60), ("p1", 60), ("p2", 60)]);
    let workers = [world.worker(&World::metrics()), world.worker(&World::metrics())];

    for round in 0..8 {
        let events = world.save(&random_orders(round, 20, 3)).await;
        let (one, other) =
            tokio::join!(deliver(&workers[0], &events), deliver(&workers[1], &events));
        assert_eq!(one + other, 20);
    }

    assert_eq!(world.read_statuses().len(), 2 * 8 * 20, "not each worker reports all orders");
    world.check_ledger(&workers[0].store).await;
    world.replay_statuses(&world.compensator(&World::metrics())).await;
    world.verify();
}

async fn an_order_that_two_workers_release_at_once_is_released_once(world: World) {
    world.import(&[("a", 30), ("b", 30)]);
    let stores = [world.stock_store(&World::metrics()), world.stock_store(&World::metrics())];

    for _ in 0..15 {
        let events = world.save(&vec![order_lines(&[("b", 1), ("a", 2)]); 10]).await;
        stores[0]
            .decide(&events, guard(&world), chrono::Utc::now(), || true)
            .await
            .expect("decided");
        assert_eq!(
            (world_available(&stores[0], "a").await, world_available(&stores[0], "b").await),
            (10, 20)
        );
        let releases: Vec<_> = events.iter().map(release).collect();
        let start = Arc::new(Barrier::new(2));
        let one = decide(stores[0].clone(), guard(&world), releases.clone(), Arc::clone(&start));
        let other = decide(stores[1].clone(), guard(&world), releases, start);
        let (one, other) = (one.await.unwrap(), other.await.unwrap());
        assert_eq!(one.released.len() + other.released.len(), 10);
        assert_eq!(
            (world_available(&stores[0], "a").await, world_available(&stores[0], "b").await),
            (30, 30)
        );
    }

    world.check_ledger(&stores[0]).await;
}

async fn world_available(store: &StockStore, id: &str) -> i64 {
    let snapshot = store.snapshot().await.expect("a snapshot");
    snapshot
        .available
        .iter()
        .find(|(product, _)| product.as_str() == id)
        .map_or(0, |(_, available)| *available)
}

/// Decides one order while a rival changes its product between the reading and the writing.
async fn decide_on_stale_stock(world: &World, wanted: i64, rival: i64) -> Outcome {
    world.import(&[("a", 5)]);
    let metrics = World::metrics();
    let store = world.stock_store(&metrics);
    let events = world.save(&[order_lines(&[("a", wanted)])]).await;
    let mut rival = Rival::adjust(world, "a", rival).await;
    let decision =
        decide(store.clone(), Guard::Versions, events.clone(), Arc::new(Barrier::new(1)));
    is_held_up_at(&mut rival.conn, &decision, "UPDATE JSON_TABLE").await;
    rival.commit().await;
    let decisions = decision.await.unwrap();
    assert!(metrics.stale_writes_rejected.get() >= 1, "the stale write was rejected");
    world.check_ledger(&store).await;
    decisions.outcomes[&events[0].order_id].clone()
}

on_every_stack!(
    a_deduction_that_rests_on_stale_stock_is_rejected,
    a_refusal_that_rests_on_stale_stock_is_rejected,
    a_worker_that_waited_for_its_rows_sees_its_rival_s_decision,
    a_fleet_of_both_strategies_decides_each_order_once,
);

async fn a_deduction_that_rests_on_stale_stock_is_rejected(world: World) {
    let outcome = decide_on_stale_stock(&world, 3, -4).await;

    assert!(matches!(outcome, Outcome::Failed(_)), "1 was left: {outcome:?}");
    assert_eq!(world.available("a"), 1);
}

async fn a_refusal_that_rests_on_stale_stock_is_rejected(world: World) {
    let outcome = decide_on_stale_stock(&world, 7, 4).await;

    assert!(matches!(outcome, Outcome::Completed(_)), "9 were there: {outcome:?}");
    assert_eq!(world.available("a"), 2);
}

async fn a_worker_that_waited_for_its_rows_sees_its_rival_s_decision(world: World) {
    world.import(&[("a", 5)]);
    let metrics = World::metrics();
    let store = world.stock_store(&metrics);
    let events = world.save(&[order_lines(&[("a", 3)])]).await;

    let mut rival = Rival::adjust(&world, "a", 1).await;
    let insert = "INSERT INTO order_outcomes (order_id, outcome, reason, `lines`, decided_at)
                  VALUES (?, 'FAILED', 'INSUFFICIENT_STOCK', '[]', NOW(3))";
    let id = events[0].order_id;
    sqlx::query(insert)
        .bind(id.as_bytes().as_slice())
        .execute(&mut rival.conn)
        .await
        .expect("decided");
    // A release has to know what is recorded. A batch of orders alone is at first assumed new.
    let other = world.save(&[order_lines(&[("a", 1)])]).await;
    let batch = vec![events[0].clone(), release(&other[0])];

    let decision = decide(store, Guard::RowLocks, batch, Arc::new(Barrier::new(1)));
    is_held_up_at(&mut rival.conn, &decision, "SELECT").await;
    rival.commit().await;
    let decisions = decision.await.unwrap();

    assert!(!decisions.outcomes.contains_key(&id));
    let refused = ReportedStatus::Failed(Reason::InsufficientStock);
    let statuses: Vec<_> =
        decisions.statuses.iter().map(|status| (status.order_id, status.status.clone())).collect();
    assert_eq!(statuses, [(id, refused), (other[0].order_id, ReportedStatus::Released)]);
    let retries = metrics.retries.with_label_values(&["stock_store"]).get();
    assert_eq!(retries, 0, "it needs no second run to see it");
    assert_eq!(world.available("a"), 6);
}

async fn a_fleet_of_both_strategies_decides_each_order_once(world: World) {
    decide_together(&world, [Guard::RowLocks, Guard::Versions], 25).await;
}
