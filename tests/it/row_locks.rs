//! A transaction locks the rows of its own products or orders, and no others.

use std::time::Duration;

use chrono::Utc;
use sqlx::{Connection, MySqlConnection};
use stocklock::{
    domain::{EventKind, OrderEvent, OrderId, OrderStatus, ReportedStatus, WORKER_SOURCE},
    store::{Guard, NewOrder},
};

use crate::harness::{World, on_each_database, random_orders};

/// Well below the time that a statement waits for a lock in the database. A wait that ends there
/// counts as a retry.
const PROMPT: Duration = Duration::from_secs(2);

async fn locked(url: &str, statement: &'static str) -> MySqlConnection {
    let mut rival = MySqlConnection::connect(url).await.unwrap();
    sqlx::raw_sql("START TRANSACTION").execute(&mut rival).await.unwrap();
    sqlx::raw_sql(statement).execute(&mut rival).await.unwrap();
    rival
}

fn placed(lines: &str) -> OrderEvent {
    OrderEvent {
        order_id: OrderId::generate(),
        kind: EventKind::Placed,
        lines: serde_json::from_str(lines).unwrap(),
        accepted_at: Utc::now(),
        hold_seconds: None,
        reference: None,
    }
}

on_each_database!(
    a_batch_does_not_wait_for_products_that_it_does_not_name,
    batches_that_name_the_same_products_in_any_order_never_deadlock,
    a_status_does_not_wait_for_orders_that_it_does_not_name,
);

async fn a_batch_does_not_wait_for_products_that_it_does_not_name(world: World) {
    world.import(&[("a", 5), ("b", 5), ("c", 5)]);
    let metrics = World::metrics();
    let stock = world.stock_store(&metrics);
    let url = world.config.stock_store.url.expose();
    let _rival = locked(url, "SELECT * FROM products WHERE product_id = 'b' FOR UPDATE").await;

    for guard in [Guard::RowLocks, Guard::Versions] {
        let batch = [placed(r#"[["a",1],["c",1]]"#)];
        assert_eq!(
            stock.decide(&batch, guard, Utc::now(), || true).await.expect("decided").outcomes.len(),
            1
        );
    }

    assert_eq!(
        metrics.retries.with_label_values(&["stock_store"]).get(),
        0,
        "the rival's lock was waited for"
    );

    let blocked = [placed(r#"[["b",1]]"#)];
    let deciding =
        tokio::time::timeout(PROMPT, stock.decide(&blocked, Guard::RowLocks, Utc::now(), || true))
            .await;
    assert!(deciding.is_err(), "the rival held no lock");
}

async fn batches_that_name_the_same_products_in_any_order_never_deadlock(world: World) {
    let products: Vec<_> = (0..12).map(|n| format!("p{n}")).collect();
    world.import(&products.iter().map(|id| (id.as_str(), 1_000_000)).collect::<Vec<_>>());
    let metrics = World::metrics();

    let deciders = (0..4).map(|decider| {
        let stock = world.stock_store(&metrics);
        tokio::spawn(async move {
            for round in 0..60 {
                let orders = random_orders(decider * 1_000 + round, 10, 12);
                let batch: Vec<_> = orders
                    .into_iter()
                    .map(|lines| OrderEvent { lines, ..placed(r#"[["a",1]]"#) })
                    .collect();
                let decisions = stock
                    .decide(&batch, Guard::RowLocks, Utc::now(), || true)
                    .await
                    .expect("decided");
                assert_eq!(decisions.outcomes.len(), 10);
            }
        })
    });
    futures::future::join_all(deciders).await.into_iter().for_each(|ended| ended.unwrap());

    // A deadlock (1213) is a conflict, and repeated.
    assert_eq!(metrics.retries.with_label_values(&["stock_store"]).get(), 0);
}

async fn a_status_does_not_wait_for_orders_that_it_does_not_name(world: World) {
    let metrics = World::metrics();
    let orders = world.order_store_with(&metrics);
    let new_order = || NewOrder {
        order_id: OrderId::generate(),
        reference: None,
        customer_id: None,
        hold_seconds: None,
        lines: serde_json::from_str(r#"[["a",1]]"#).unwrap(),
        accepted_at: Utc::now(),
    };

    let placed = [new_order(), new_order(), new_order()];
    orders.place(&placed, Duration::ZERO).await.unwrap();
    let url = world.config.order_store.url.expose();
    let _rival = locked(url, "SELECT * FROM orders ORDER BY order_id LIMIT 1 FOR UPDATE").await;
    let completed = |order: &NewOrder| OrderStatus {
        order_id: order.order_id,
        status: ReportedStatus::Completed,
        source: WORKER_SOURCE.to_owned(),
        occurred_at: Utc::now(),
        reference: None,
    };

    let others = [completed(&placed[1]), completed(&placed[2])];
    orders
        .apply(&others, Utc::now(), world.config.retention.horizon, Duration::ZERO)
        .await
        .expect("applied");
    assert_eq!(
        metrics.retries.with_label_values(&["order_store"]).get(),
        0,
        "the rival's lock was waited for"
    );

    let blocked = [completed(&placed[0])];
    let applying = tokio::time::timeout(
        PROMPT,
        orders.apply(&blocked, Utc::now(), world.config.retention.horizon, Duration::ZERO),
    )
    .await;
    assert!(applying.is_err(), "the rival held no lock");
}
