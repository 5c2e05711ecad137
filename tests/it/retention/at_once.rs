//! Purges beside other purges, beside decisions and releases, and purges that are interrupted.

use std::time::Instant;

use chrono::Utc;
use sqlx::{Connection as _, MySqlConnection};
use stocklock::store::Purged;

use super::{count, decided, snapshot, worker_of_old};
use crate::harness::{
    PATIENCE, Role, World, aged, deliver, on_each_database, on_two_stacks, order_lines, release,
};

on_each_database!(of_purges_at_once_one_works_and_in_batches,);

on_two_stacks!(
    purges_decisions_and_releases_at_once_keep_the_ledger_exact,
    a_purge_that_is_interrupted_has_happened_or_not,
);

async fn of_purges_at_once_one_works_and_in_batches(world: World) {
    world.import(&[("a", 100), ("b", 100)]);
    decided(&world, &[90; 10]).await;
    let (store, below) = (world.stock_store(&World::metrics()), aged(30));

    let mut rival = MySqlConnection::connect(world.config.stock_store.url.expose())
        .await
        .expect("the stock store");
    sqlx::raw_sql("START TRANSACTION; SELECT * FROM ledger_horizon FOR UPDATE")
        .execute(&mut rival)
        .await
        .expect("locked");

    assert_eq!(store.purge_outcomes(below, 4).await.expect("a purge"), Purged::Busy);
    assert_eq!(store.purge_movements(Utc::now(), 4).await.expect("a purge"), Purged::Busy);

    sqlx::raw_sql("ROLLBACK").execute(&mut rival).await.expect("free");
    for (rows, has_more) in [(4, true), (4, true), (2, false), (0, false)] {
        assert_eq!(
            store.purge_outcomes(below, 4).await.expect("a purge"),
            Purged::Done { rows, has_more }
        );
        world.check_ledger(&store).await;
    }

    assert_eq!(
        store.purge_outcomes(aged(40), 4).await.expect("a purge"),
        Purged::Done { rows: 0, has_more: false }
    );
    assert_eq!(store.purged_below().await.expect("the horizon"), below, "it does not go back");
}

async fn purges_decisions_and_releases_at_once_keep_the_ledger_exact(world: World) {
    world.import(&[("a", 1000), ("b", 2000)]);
    let old = decided(&world, &[60; 240]).await;
    let young = decided(&world, &[20; 60]).await;
    let new = world.save(&vec![order_lines(&[("b", 1), ("a", 1)]); 60]).await;
    let below = aged(31);

    let purging = (0..3).map(|_| {
        let store = world.stock_store(&World::metrics());
        tokio::spawn(async move {
            let begun = Instant::now();
            while store.purged_below().await.expect("the horizon") < below {
                store.purge_outcomes(below, 6).await.expect("a purge");
                assert!(begun.elapsed() < PATIENCE, "the deciders starve the purge");
            }
        })
    });
    let purging: Vec<_> = purging.collect();

    // A worker with a longer horizon releases old orders too. Which of them it still can release
    // depends on the moment.
    let work = [(worker_of_old(&world), old), (world.worker(&World::metrics()), young)].map(
        |(worker, orders)| {
            let (orders, new) = (orders, new.clone());
            tokio::spawn(async move {
                for (order, new) in orders.chunks(4).zip(new.iter().cycle()) {
                    let mut events: Vec<_> = order.iter().rev().map(release).collect();
                    events.push(new.clone());
                    deliver(&worker, &events).await;
                }
            })
        },
    );

    let store = world.stock_store(&World::metrics());
    while purging.iter().any(|task| !task.is_finished())
        || work.iter().any(|task| !task.is_finished())
    {
        world.check_ledger(&store).await;
    }
    for task in purging.into_iter().chain(work) {
        task.await.expect("done");
    }

    let snapshot = snapshot(&world).await;
    assert_eq!(
        (snapshot.outcomes, snapshot.corrupt),
        (120, vec![]),
        "60 young ones, released, and 60 new ones"
    );
    // Each old order either gave its units back or holds them for ever.
    let purged = count(
        world.config.stock_store.url.expose(),
        "SELECT CAST(SUM(held) AS SIGNED) FROM ledger_balances WHERE product_id = 'a'",
    )
    .await;
    assert_eq!(world.available("a"), 1000 - purged - 60);
    assert!((1..=240).contains(&purged), "{purged}");
}

/// Crashes a worker at its first purge, and answers how many outcomes are left then.
async fn crash_a_purge(world: &World, point: &str) -> u64 {
    Role::spawn(&world.env, "worker", &[("STOCKLOCK_CRASH_AT", point)]).crashed_at(point).await;
    world.check_ledger(&world.stock_store(&World::metrics())).await;
    snapshot(world).await.outcomes
}

async fn a_purge_that_is_interrupted_has_happened_or_not(world: World) {
    world.import(&[("a", 100), ("b", 100)]);
    decided(&world, &[60, 50, 40, 20]).await;

    assert_eq!(crash_a_purge(&world, "retention.booked").await, 4);
    let url = world.config.stock_store.url.expose();
    assert_eq!(count(url, "SELECT COUNT(*) FROM ledger_balances").await, 0);
    assert_eq!(crash_a_purge(&world, "retention.committed").await, 1);

    world.verify();
}
