//! Releases that the broker or an earlier version lost are done in the end, and `verify` reports
//! the missing ones.

use stocklock::domain::{OrderId, OrderState};

use crate::harness::{Api, Database, Strategy, World, deliver, lines, on_two_stacks, order_lines};

const AGAIN_SOON: [(&str, &str); 1] = [("STOCKLOCK__INGEST__PENDING_AFTER", "1s")];

/// Completes orders, fails all but the first while no worker runs, and has the broker lose their
/// releases.
async fn lose_releases(world: &World, lose: impl AsyncFnOnce()) {
    world.import(&[("a", 10)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(api.place_and_wait(&lines(&[("a", 2)]), 30).await.is(201).order_id().to_owned());
    }
    all.stop();
    let compensator = world.start("compensator").await;
    for id in &ids[1..] {
        world.cli(&["order", "fail", id, "--reason", "payment"]).succeeds();
    }
    world.caught_up(&world.config.compensator.group_id, &world.config.topics.order_status).await;
    compensator.stop();
    assert_eq!(
        world.count_retained(&world.config.topics.orders),
        4 + 3,
        "the releases were acknowledged"
    );

    lose().await;
    assert_eq!(world.count_retained(&world.config.topics.orders), 0, "and lost");
}

/// Runs the roles, and fails the test unless the releases are done by themselves.
async fn check_units_come_back(world: &World) {
    assert_eq!((world.available("a"), world.count_orders("FAILED").await), (2, 3));
    let owed = world.cli(&["verify", "--settle", "0s"]).exits(2).stdout();
    assert_eq!(owed.matches("its stock is not released yet").count(), 3, "{owed}");

    let all = world.start_with("all", &AGAIN_SOON).await;
    world.has_available(&[("a", 8)]).await;
    world.verify();
    assert!(all.count("stocklock_owed_releases_total", "produced").await >= 3);
    all.stop();
    assert_eq!(world.order_store().owed_releases_state().await.expect("the order store").owed, 0);
}

on_two_stacks!(
    units_come_back_although_the_topic_was_truncated,
    units_come_back_although_the_topic_was_deleted,
);

async fn units_come_back_although_the_topic_was_truncated(world: World) {
    lose_releases(&world, async || world.truncate_topic(&world.config.topics.orders).await).await;
    // Published by the compensator with the usual patience of five minutes.
    world.tamper_with_orders("UPDATE owed_releases SET due_at = due_at - INTERVAL 5 MINUTE").await;
    check_units_come_back(&world).await;
}

async fn units_come_back_although_the_topic_was_deleted(world: World) {
    lose_releases(&world, async || world.recreate_topic(&world.config.topics.orders).await).await;
    world.tamper_with_orders("UPDATE owed_releases SET due_at = due_at - INTERVAL 5 MINUTE").await;
    check_units_come_back(&world).await;
}

/// A worker's RELEASED that the broker lost is as good as a lost release.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_report_of_a_release_is_repeated() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 10)]);

    let all = world.start_with("all", &AGAIN_SOON).await;
    let id =
        Api::of(&all).place_and_wait(&lines(&[("a", 2)]), 30).await.is(201).order_id().to_owned();
    all.stop();

    let compensator = world.start_with("compensator", &AGAIN_SOON).await;
    world.cli(&["order", "fail", &id, "--reason", "payment"]).succeeds();
    world.caught_up(&world.config.compensator.group_id, &world.config.topics.order_status).await;
    compensator.stop();
    let worker = world.start("worker").await;
    // An offset is committed once the report is on its topic.
    world.caught_up(&world.config.kafka.group_id, &world.config.topics.orders).await;
    worker.stop();
    assert_eq!(world.available("a"), 10, "the release is done");

    world.truncate_topic(&world.config.topics.order_status).await;
    assert_eq!(
        world.order_store().owed_releases_state().await.expect("the order store").owed,
        1,
        "it is still owed"
    );

    let all = world.start_with("all", &AGAIN_SOON).await;
    world.verify();
    all.stop();
}

/// A failover of the order store may lose a move whose release is done already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_was_released_is_not_pending_for_ever() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 10)]);
    let all = world.start_with("all", &AGAIN_SOON).await;
    let api = Api::of(&all);
    let id = api.place_and_wait(&lines(&[("a", 2)]), 30).await.is(201).order_id().to_owned();
    world.cli(&["order", "fail", &id, "--reason", "payment"]).succeeds();
    api.becomes(&id, "FAILED").await;
    world.has_available(&[("a", 10)]).await;
    world.verify();
    world.tamper_with_orders("UPDATE orders SET status = 'PENDING', reason = NULL").await;
    all.stop();

    let all = world.start_with("all", &AGAIN_SOON).await;

    Api::of(&all).becomes(&id, "CANCELLED").await;
    world.verify();
    assert_eq!(world.available("a"), 10);
    all.stop();
}

/// What `verify` says of a release depends on how long it is owed and on whether a worker runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_owed_for_long_is_a_violation_while_workers_run() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    world.import(&[("a", 10)]);
    let (placed, verify) =
        (world.save(&[order_lines(&[("a", 1)])]).await, ["verify", "--settle", "0s"]);
    deliver(&world.worker(&World::metrics()), &placed).await;
    let since = |minutes: i64| {
        format!(
            "UPDATE orders SET status = 'FAILED';
             REPLACE INTO owed_releases
         SELECT order_id, UTC_TIMESTAMP(3) - INTERVAL {minutes} MINUTE, 1, '2100-01-01' FROM orders"
        )
    };
    world.tamper_with_orders(&since(9)).await;
    let young = world.cli(&verify).exits(2).stdout();
    assert!(young.contains("its stock is not released yet"), "{young}");
    world.tamper_with_orders(&since(11)).await;
    let old = world.cli(&verify).exits(2).stdout();
    assert!(old.contains("owed for more than ten minutes, and no worker runs"), "{old}");

    let worker = world.start("worker").await;
    let text = world.cli(&verify).exits(1).stdout();
    let violation = "its release has been owed for more than ten minutes while workers run";
    assert!(
        text.contains(&format!("VIOLATED invariant 3: order {}: {violation}", placed[0].order_id)),
        "{text}"
    );
    let silent = ["verify", "--settle", "0s", "--set", "kafka.brokers=127.0.0.1:9"];
    let unknown = world.cli(&silent).exits(2).stdout();
    assert!(unknown.contains("Kafka does not say whether workers run"), "{unknown}");
    world.tamper_with_orders(&since(9)).await;
    world.cli(&verify).exits(2);
    worker.stop();
}

/// An earlier version forgot a release once the broker had acknowledged it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_that_an_earlier_version_lost_are_named_and_owed_again() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    world.import(&[("a", 10)]);
    let placed = world.save(&vec![order_lines(&[("a", 1)]); 5]).await;
    deliver(&world.worker(&World::metrics()), &placed[..4]).await;
    let compensator = world.compensator(&World::metrics());
    world.replay_statuses(&compensator).await;
    // Completed; failed; cancelled; released already; never decided.
    let set = |order: usize, state: &str| {
        format!(
            "UPDATE orders SET status = '{state}' WHERE order_id = UNHEX('{}');",
            placed[order].order_id.uuid().simple()
        )
    };
    let states =
        [set(1, "FAILED"), set(2, "CANCELLED"), set(3, "FAILED"), set(4, "FAILED")].concat();
    world.tamper_with_orders(&states).await;
    world
        .tamper_with_stock(&format!(
            "UPDATE order_outcomes SET outcome = 'RELEASED' WHERE order_id = UNHEX('{}');
         UPDATE products SET available = available + 1",
            placed[3].order_id.uuid().simple()
        ))
        .await;
    let lost: Vec<OrderId> =
        [1, 2, 4].iter().map(|order: &usize| placed[*order].order_id).collect();

    let text = world.cli(&["verify", "--settle", "0s"]).exits(1).stdout();
    assert_eq!(text.matches("its release is neither done nor owed").count(), 3, "{text}");
    assert!(
        lost.iter().all(|id| text.contains(&format!("VIOLATED invariant 3: order {id}"))),
        "{text}"
    );
    let owe = ["--output", "json", "releases", "owe"];
    let listed = world.cli(&[&owe[..], &["--dry-run"]].concat()).succeeds().json();
    let mut named: Vec<OrderId> = serde_json::from_value::<Vec<String>>(listed["lost"].clone())
        .expect("ids")
        .iter()
        .map(|id| id.parse().expect("an id"))
        .collect();
    named.sort();
    assert_eq!((named, &listed["owed"]), (lost, &0.into()));
    assert_eq!(world.cli(&owe).succeeds().json()["owed"], 3);
    assert_eq!(world.cli(&owe).succeeds().json()["owed"], 0, "they are owed already");

    let all = world.start("all").await;
    world.has_available(&[("a", 9)]).await;
    world.verify();
    all.stop();
    let states = [0, 1, 2].map(|order: usize| placed[order].order_id);
    for (id, state) in
        states.into_iter().zip([OrderState::Completed, OrderState::Failed, OrderState::Cancelled])
    {
        let order =
            world.order_store().find(id).await.expect("the order store").expect("the order");
        assert_eq!(order.summary.state, state);
    }
}
