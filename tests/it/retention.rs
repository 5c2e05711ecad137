//! Old rows are deleted. Neither the stock nor the result of `verify` changes.

mod at_once;

use std::{collections::BTreeSet, time::Duration};

use chrono::Utc;
use sqlx::{Connection as _, MySqlConnection};
use stocklock::{
    deduct::Worker,
    domain::{Horizon, OrderEvent, OrderId, OrderState},
    lock::Lease,
    retention::{PurgedStore, Purger},
    store::StockSnapshot,
};

use crate::harness::{
    Database, Strategy, World, aged, decide, deliver, header, is_held_up_at, on_each_database,
    on_two_stacks, order_lines, release, wait_until,
};

/// A worker that decides orders of any age, as one did when they were young.
fn worker_of_old(world: &World) -> Worker {
    let horizon = Horizon::new(Duration::from_secs(20 * 365 * 86_400));
    Worker {
        store: world.stock_store_with(&World::metrics(), horizon),
        ..world.worker(&World::metrics())
    }
}

/// Orders of one unit of `a` and two of `b`, made and decided so many days ago. Their events are on
/// the topic.
async fn decided(world: &World, ages_days: &[i64]) -> Vec<OrderEvent> {
    let lines = order_lines(&[("a", 1), ("b", 2)]);
    let saved =
        world.save_as(ages_days.iter().map(|days| (aged(*days), lines.clone())).collect()).await;
    world.produce_events(&saved).await;
    assert_eq!(deliver(&worker_of_old(world), &saved).await, saved.len());
    world.replay_statuses(&world.compensator(&World::metrics())).await;
    world.tamper_with_orders("DELETE FROM outbox_groups").await;
    saved
}

fn purger(world: &World, store: PurgedStore) -> Purger {
    Purger {
        store,
        ages: world.config.retention.clone(),
        lease: Lease::None,
        metrics: World::metrics(),
    }
}

/// Makes passes until no row is left to delete.
async fn purge(world: &World, store: PurgedStore) {
    let purger = purger(world, store);
    while purger.pass(Utc::now()).await.expect("a pass") {}
}

async fn purge_stock(world: &World) {
    purge(world, PurgedStore::Stock(world.stock_store(&World::metrics()).into())).await;
}

async fn snapshot(world: &World) -> StockSnapshot {
    world.stock_store(&World::metrics()).snapshot().await.expect("a snapshot")
}

async fn count(url: &str, sql: &'static str) -> i64 {
    let mut conn = MySqlConnection::connect(url).await.expect("a connection");
    sqlx::query_scalar(sql).fetch_one(&mut conn).await.expect("a count")
}

async fn orders_there(world: &World, ids: &[OrderId]) -> Vec<bool> {
    let store = world.order_store();
    let mut there = Vec::new();
    for id in ids {
        there.push(store.find(*id).await.expect("the order store").is_some());
    }
    there
}

fn expired(world: &World) -> usize {
    let letters = world.read_topic(&world.config.topics.orders_dlq);
    letters
        .iter()
        .filter(|letter| header(letter, "stocklock.error.class").as_deref() == Some("expired"))
        .count()
}

on_two_stacks!(
    a_purge_moves_old_outcomes_to_the_balances_and_changes_nothing_else,
    a_reset_to_the_earliest_after_a_purge_deducts_nothing_twice,
    a_worker_with_a_longer_horizon_does_not_decide_purged_orders,
);

async fn a_purge_moves_old_outcomes_to_the_balances_and_changes_nothing_else(world: World) {
    world.import(&[("a", 8), ("b", 100), ("c", 5)]);
    // The last one is refused: it holds nothing, as does the one that is released.
    let orders = decided(&world, &[400, 60, 40, 31, 29, 10, 0, 0]).await;
    decided(&world, &[50]).await;
    let worker = worker_of_old(&world);
    deliver(&worker, &[release(&orders[1])]).await;
    world
        .tamper_with_orders(&format!(
            "UPDATE orders SET status = 'FAILED' WHERE order_id = UNHEX('{}')",
            orders[1].order_id.uuid().simple()
        ))
        .await;
    let age = "UPDATE stock_movements SET created_at = created_at - INTERVAL 91 DAY
               WHERE product_id <> 'c'";
    world.tamper_with_stock(age).await;
    world.verify();
    let before = snapshot(&world).await;
    assert_eq!((before.outcomes, world.available("a")), (9, 1));

    purge_stock(&world).await;
    let after = snapshot(&world).await;
    assert_eq!((&after.available, &after.supplied), (&before.available, &before.supplied));
    assert!(
        after.held.iter().filter(|(_, held)| **held > 0).eq(before.held.iter()),
        "{after:?} {before:?}"
    );
    assert_eq!(
        (after.outcomes, after.corrupt.len()),
        (4, 0),
        "400, 60, 50, 40 and 31 days are beyond 30"
    );
    let url = world.config.stock_store.url.expose();
    assert_eq!(count(url, "SELECT COUNT(*) FROM stock_movements").await, 1);
    assert_eq!(
        count(url, "SELECT CAST(SUM(held) AS SIGNED) FROM ledger_balances").await,
        9,
        "three orders' units"
    );
    world.verify();

    // The younger ones go on as ever, and the ledger still finds what is corrupt.
    deliver(&world.worker(&World::metrics()), &[release(&orders[5])]).await;
    assert_eq!(world.available("a"), 2);
    world.check_ledger(&world.stock_store(&World::metrics())).await;
    world
        .tamper_with_stock("UPDATE ledger_balances SET held = held - 1 WHERE product_id = 'b'")
        .await;
    let text = world.cli(&["verify", "--settle", "0s"]).exits(1).stdout();
    assert!(text.contains("VIOLATED invariant 2: product b"), "{text}");
}

async fn a_reset_to_the_earliest_after_a_purge_deducts_nothing_twice(world: World) {
    world.import(&[("a", 100), ("b", 100)]);
    decided(&world, &[90, 33, 31, 29, 0]).await;
    purge_stock(&world).await;

    let group = format!("{}-again", world.config.kafka.group_id);
    let worker = world.start_with("worker", &[("STOCKLOCK__KAFKA__GROUP_ID", &group)]).await;
    world.caught_up(&group, &world.config.topics.orders).await;
    worker.stop();

    assert_eq!((expired(&world), world.available("a"), world.available("b")), (3, 95, 90));
    world.verify();
}

async fn a_worker_with_a_longer_horizon_does_not_decide_purged_orders(world: World) {
    world.import(&[("a", 100), ("b", 100)]);
    let orders = decided(&world, &[90, 33, 31, 29]).await;
    purge_stock(&world).await;

    // By its clock or its configuration this worker may decide all orders. One is known, one is
    // new.
    let worker = worker_of_old(&world);
    let new = world.save_as(vec![(aged(28), order_lines(&[("a", 1)]))]).await;
    let events = [
        orders[0].clone(),
        release(&orders[1]),
        orders[2].clone(),
        orders[3].clone(),
        new[0].clone(),
    ];

    let decisions = decide(&worker, &events).await.remove(0);
    let ids =
        |events: &[OrderEvent]| events.iter().map(|event| event.order_id).collect::<BTreeSet<_>>();
    assert_eq!(decisions.expired, ids(&orders[..3]));
    assert_eq!(decisions.outcomes.keys().copied().collect::<BTreeSet<_>>(), ids(&new));
    assert_eq!((world.available("a"), world.available("b")), (95, 92));
    assert_eq!(decide(&worker, &[release(&orders[0])]).await.remove(0).expired, ids(&orders[..1]));
    world.check_ledger(&world.stock_store(&World::metrics())).await;
}

on_each_database!(a_worker_that_waits_for_a_purge_does_not_decide_purged_orders,);

async fn a_worker_that_waits_for_a_purge_does_not_decide_purged_orders(world: World) {
    world.import(&[("a", 100), ("b", 100)]);
    let orders = decided(&world, &[33]).await;
    let id = orders[0].order_id.uuid().simple();
    let url = world.config.stock_store.url.expose();
    let mut purge = MySqlConnection::connect(url).await.expect("the stock store");
    let deletion =
        format!("START TRANSACTION; DELETE FROM order_outcomes WHERE order_id = UNHEX('{id}')");
    sqlx::raw_sql(&deletion).execute(&mut purge).await.expect("deleted");

    let worker = worker_of_old(&world);
    let deciding = tokio::spawn(async move { decide(&worker, &orders).await[0].expired.len() });
    is_held_up_at(&mut purge, &deciding, "INSERT INTO order_outcomes").await;

    let end = "UPDATE ledger_horizon SET purged_below = UNHEX('ffffffffffff70008000000000000000');
               COMMIT";
    sqlx::raw_sql(end).execute(&mut purge).await.expect("committed");

    assert_eq!(deciding.await.expect("no panic"), 1, "the order was decided");
    assert_eq!((world.available("a"), world.available("b")), (99, 98));
    assert_eq!(count(url, "SELECT COUNT(*) FROM order_outcomes").await, 0);
}

on_each_database!(old_orders_that_are_final_are_deleted_and_no_others,);

async fn old_orders_that_are_final_are_deleted_and_no_others(world: World) {
    world.import(&[("a", 100), ("b", 100)]);
    let old = decided(&world, &[400, 100, 91, 89, 0]).await;
    let pending = world.save_as(vec![(aged(95), order_lines(&[("a", 1)]))]).await[0].order_id;
    world.tamper_with_orders("DELETE FROM outbox_groups").await;
    let keys = "INSERT INTO idempotency_keys
                SELECT '', CONCAT('k', d), REPEAT('x', 32), REPEAT('y', 16),
                       UTC_TIMESTAMP(3) - INTERVAL d DAY
                FROM (SELECT 8 AS d UNION SELECT 6) AS ages";
    world.tamper_with_orders(keys).await;
    let owing = old[1].order_id;
    let owe = format!(
        "INSERT INTO owed_releases VALUES (UNHEX('{}'), UTC_TIMESTAMP(3), 1, NULL)",
        owing.uuid().simple()
    );
    world.tamper_with_orders(&owe).await;
    purge(&world, PurgedStore::Orders(world.order_store().into())).await;
    let mut ids: Vec<_> = old.iter().map(|event| event.order_id).collect();
    ids.push(pending);
    assert_eq!(orders_there(&world, &ids).await, [false, true, false, true, true, true]);
    world.cli(&["releases", "dismiss", &owing.to_string()]).succeeds();
    assert_eq!(
        count(world.config.order_store.url.expose(), "SELECT COUNT(*) FROM idempotency_keys").await,
        1
    );

    // Outcomes whose orders were purged are no violation, and neither are orders whose outcomes
    // were.
    let text = world.cli(&["verify", "--settle", "0s"]).exits(2).stdout();
    assert!(
        text.contains(&format!("NOT SETTLED order {pending}")) && !text.contains("VIOLATED"),
        "{text}"
    );
    purge_stock(&world).await;
    let text = world.cli(&["verify", "--settle", "0s"]).exits(1).stdout();
    let names = text.matches("VIOLATED").count() == 1
        && text.contains(&format!("invariant 3: order {pending}: is PENDING"));
    assert!(names, "it can never be decided: {text}");
    world.tamper_with_orders("UPDATE orders SET status = 'FAILED' WHERE status = 'PENDING'").await;
    world.verify();
    // A younger one's outcome must be there.
    let young = old[4].order_id.uuid().simple();
    world
        .tamper_with_stock(&format!("DELETE FROM order_outcomes WHERE order_id = UNHEX('{young}')"))
        .await;
    let text = world.cli(&["verify", "--settle", "0s"]).exits(1).stdout();
    assert!(text.contains("is COMPLETED, and no worker decided it"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_running_roles_delete_old_rows_and_count_them() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 100), ("b", 100)]);
    let orders = decided(&world, &[100, 40, 0]).await;

    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    for (role, table, rows) in [(&worker, "order_outcomes", 2), (&compensator, "orders", 1)] {
        wait_until(&format!("{rows} rows of {table} are deleted"), async || {
            role.count("stocklock_retention_deleted_total", table).await >= rows
        })
        .await;
        assert_eq!(role.count("stocklock_retention_deleted_total", "").await, rows);
        role.shows("stocklock_retention_passes_total", "complete", |passes| passes >= 1.0).await;
        assert_eq!(role.count("stocklock_retention_passes_total", "failed").await, 0);
    }

    worker.stop();
    compensator.stop();
    let ids: Vec<_> = orders.iter().map(|event| event.order_id).collect();
    assert_eq!(orders_there(&world, &ids).await, [false, true, true]);
    assert_eq!(
        world.order_store().find(ids[1]).await.unwrap().unwrap().summary.state,
        OrderState::Completed
    );
    world.verify();
}
