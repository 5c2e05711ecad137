//! The backlog is measured by the roles that run, and each role shows what it measures itself.

use std::time::{Duration, Instant};

use crate::harness::{Api, Database, Role, Strategy, World, lines, order_lines};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_workers_away_ingest_and_the_compensator_show_the_backlog() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 50)]);
    let (ingest, compensator) = (world.start("ingest").await, world.start("compensator").await);
    let (orders, topic) =
        (&world.config.topics.orders, format!("topic=\"{}\"", world.config.topics.orders));

    for _ in 0..3 {
        Api::of(&ingest).place(&lines(&[("a", 1)])).await.is(202);
    }

    for role in [&ingest, &compensator] {
        role.shows("stocklock_consumer_lag", &topic, |lag| lag == 3.0).await;
        role.shows("stocklock_consumer_lag_seconds", &topic, |age| age >= 10.0).await;
    }
    ingest.shows("stocklock_pending_oldest_seconds", "", |age| age >= 10.0).await;

    let worker = world.start("worker").await;
    world.caught_up(&world.config.kafka.group_id, orders).await;
    for role in [&ingest, &compensator] {
        role.shows("stocklock_consumer_lag", &topic, |lag| lag == 0.0).await;
        assert!(!role.metrics().await.contains(&topic), "the worker shows it");
    }
    ingest.shows("stocklock_pending_oldest_seconds", "", |age| age == 0.0).await;
    worker.shows("stocklock_consumer_lag_seconds", &topic, |age| age == 0.0).await;
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_shows_the_age_of_the_first_message_that_it_has_not_handled() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 50)]);
    world.produce_events(&world.save(&[order_lines(&[("a", 1)])]).await).await;
    // The age of the message is what is tested.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let nowhere = [("STOCKLOCK__STOCK_STORE__URL", "mysql://u:p@127.0.0.1:9/stock")];

    let begun = Instant::now();
    let worker = Role::spawn(&world.env, "worker", &nowhere);
    worker.listening().await;

    // The message is older than the worker; the gauge is up to 5 s behind.
    let topic = &world.config.topics.orders;
    let is_older = |age: f64| age > begun.elapsed().as_secs_f64() + 3.0;
    worker.shows("stocklock_consumer_lag_seconds", topic, is_older).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_shows_no_zeros_for_what_it_does_not_measure() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    for (role, own, others) in [
        (
            "ingest",
            vec![
                "stocklock_orders_ingested_total",
                "stocklock_outbox_pending",
                "stocklock_pending_oldest_seconds",
            ],
            vec![
                "stocklock_stale_writes",
                "stocklock_compensations",
                "stocklock_rebalances",
                "stocklock_redis_master",
            ],
        ),
        (
            "worker",
            vec![
                "stocklock_stale_writes_rejected_total",
                "stocklock_rebalances_total",
                r#"table="order_outcomes""#,
            ],
            vec![
                "stocklock_outbox",
                "stocklock_pending",
                "stocklock_orders_ingested",
                "stocklock_compensations",
            ],
        ),
        (
            "compensator",
            vec![
                "stocklock_compensations_total",
                "stocklock_rebalances_total",
                r#"table="orders""#,
            ],
            vec![
                "stocklock_outbox",
                "stocklock_pending",
                "stocklock_lock",
                r#"table="order_outcomes""#,
            ],
        ),
    ] {
        let started = world.start(role).await;
        let shown = started.metrics().await;
        for name in own {
            assert!(shown.contains(name), "{role} does not show {name}:\n{shown}");
        }
        for name in others {
            assert!(!shown.contains(name), "{role} shows {name}:\n{shown}");
        }
        started.stop();
    }
}
