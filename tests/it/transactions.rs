//! A transaction whose caller goes away in the middle of it.

use std::time::Duration;

use sqlx::{Connection as _, MySqlConnection};
use stocklock::store::{Database as Pool, OrderStore, Role};

use crate::harness::{World, new_order, on_each_database};

const LEASE: Duration = Duration::from_secs(60);

on_each_database!(half_of_a_dropped_transaction_is_not_committed_by_the_next,);

async fn half_of_a_dropped_transaction_is_not_committed_by_the_next(world: World) {
    let mut config = world.config.order_store.clone();
    config.pool_max = 1;
    let pool =
        Pool::open(&config, Role::OrderStore, LEASE, World::metrics()).expect("the order store");
    let store = OrderStore::new(pool);
    let (dropped, next) = (new_order(), new_order());

    // The order's row goes in; its outbox row waits for this rival.
    let mut rival = MySqlConnection::connect(config.url.expose()).await.expect("the order store");
    sqlx::raw_sql("START TRANSACTION").execute(&mut rival).await.expect("begun");
    let insert = "INSERT INTO outbox (order_id, kind, created_at, visible_at)
                  VALUES (?, 'PLACED', NOW(3), NOW(3))";
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
