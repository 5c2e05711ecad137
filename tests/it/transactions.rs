//! A transaction whose caller goes away in the middle of it.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{Connection as _, MySqlConnection};
use stocklock::store::{Database as Pool, OrderStore, StoreName};

use crate::harness::{Api, Role, World, lines, new_order, on_each_database, wait_until};

const LEASE: Duration = Duration::from_secs(60);

on_each_database!(
    half_of_a_dropped_transaction_is_not_committed_by_the_next,
    each_role_measures_its_transactions_by_name_and_from_the_start,
);

/// How often `role` has run each transaction that its `/metrics` shows, by name.
async fn transactions(role: &Role) -> BTreeMap<String, u64> {
    let metrics = role.metrics().await;
    let counts = metrics.lines().filter_map(|line| {
        let series = line.strip_prefix("stocklock_transaction_seconds_count{name=\"")?;
        let (name, count) = series.split_once("\"} ")?;
        Some((name.to_owned(), count.parse().expect("a count")))
    });
    counts.collect()
}

fn names(transactions: &BTreeMap<String, u64>) -> Vec<&str> {
    transactions.keys().map(String::as_str).collect()
}

async fn half_of_a_dropped_transaction_is_not_committed_by_the_next(world: World) {
    let mut config = world.config.order_store.clone();
    config.pool_max = 1;
    let pool = Pool::open(&config, StoreName::OrderStore, LEASE, World::metrics())
        .expect("the order store");
    let store = OrderStore::new(pool);
    let (dropped, next) = (new_order(), new_order());

    // The order's row goes in; its outbox row waits for this rival.
    let mut rival = MySqlConnection::connect(config.url.expose()).await.expect("the order store");
    sqlx::raw_sql("START TRANSACTION").execute(&mut rival).await.expect("begun");
    let insert = "INSERT INTO outbox_groups VALUES (?, '', 0, NOW(3), NOW(3), NULL)";
    let insert = sqlx::query(insert).bind(dropped.order_id.as_bytes().as_slice());
    insert.execute(&mut rival).await.expect("inserted");
    let placing = store.place(std::slice::from_ref(&dropped), LEASE);
    tokio::time::timeout(Duration::from_secs(1), placing)
        .await
        .expect_err("it waits for the rival");
    sqlx::raw_sql("ROLLBACK").execute(&mut rival).await.expect("rolled back");

    store.place(&[next], LEASE).await.expect("placed");
    assert_eq!(world.count_orders("PENDING").await, 1, "half of the dropped order is there");
    store.place(&[dropped], LEASE).await.expect("placed again");
    assert_eq!(world.count_orders("PENDING").await, 2);
    assert_eq!(store.outbox_state().await.expect("the outbox").pending, 2);
}

async fn each_role_measures_its_transactions_by_name_and_from_the_start(world: World) {
    world.import(&[("a", 10)]);
    let ingest = world.start("ingest").await;
    let worker = world.start("worker").await;
    let compensator = world.start("compensator").await;
    let [at_ingest, at_worker, at_compensator] = [
        transactions(&ingest).await,
        transactions(&worker).await,
        transactions(&compensator).await,
    ];

    Api::of(&ingest).place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);
    // The client is answered before the last transaction is observed.
    for (role, name) in [(&ingest, "place"), (&worker, "decide"), (&compensator, "apply_statuses")]
    {
        wait_until(name, async || transactions(role).await[name] > 0).await;
    }

    assert_eq!(
        names(&at_ingest),
        [
            "adjust",
            "change_orders",
            "claim_announcements",
            "claim_outbox",
            "claim_releases",
            "expire_releases",
            "forget_announcements",
            "forget_published",
            "place",
            "schedule_releases",
        ]
    );
    assert_eq!(names(&at_worker), ["decide", "purge_movements", "purge_outcomes"]);
    assert_eq!(
        names(&at_compensator),
        [
            "apply_statuses",
            "end_holds",
            "forget_announcements",
            "purge_orders",
            "schedule_releases"
        ]
    );
    let before = (at_ingest["place"], at_worker["decide"], at_compensator["apply_statuses"]);
    assert_eq!(before, (0, 0, 0));
}
