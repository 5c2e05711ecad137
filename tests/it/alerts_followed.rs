//! More alerts fire on real faults. The steps of `docs/runbook.md` mend the faults.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::TimeDelta;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    alerts::{Alerts, roles, row_world},
    harness::{
        Api, Database, Masters, PATIENCE, PrivateKafka, Rival, Strategy, World, made_ago,
        order_lines, wait_for_within, wait_until,
    },
};

/// Places batches of orders of one unit of `a` until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    placing: JoinHandle<()>,
}

impl Load {
    fn start(api: &Api) -> Self {
        let (api, stop) = (api.clone(), Arc::new(AtomicBool::new(false)));
        let (batch, is_stopped) = (batch(50), Arc::clone(&stop));
        let placing = tokio::spawn(async move {
            while !is_stopped.load(Ordering::Relaxed) {
                api.place_batch(&batch).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { stop, placing }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.placing.await.expect("orders placed");
    }
}

fn batch(orders: usize) -> String {
    format!("{}\n", json!({"lines": [{"product_id": "a", "quantity": 1}]})).repeat(orders)
}

/// The run book: "If both strategies run side by side, finish the change from one to the other."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_both_strategies_raise_an_alert_until_one_is_left() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    let (ingest, worker, compensator) = roles(&world).await;
    let other = world.start_with("worker", &[("STOCKLOCK__LOCK__STRATEGY", "row")]).await;
    let roles = [
        ("ingest", &ingest),
        ("worker", &worker),
        ("other-worker", &other),
        ("compensator", &compensator),
    ];
    let alerts = Alerts::of(&roles).await;
    let load = Load::start(&Api::of(&ingest));

    alerts.fire(&["StocklockStaleWrites"]).await;
    worker.terminate();

    wait_for_within(2 * PATIENCE, async || {
        let firing = alerts.firing().await;
        let is_silent = !firing.contains("StocklockStaleWrites");
        if is_silent { Ok(()) } else { Err(format!("{firing:?} fire")) }
    })
    .await;
    load.stop().await;
    world.settled().await;
    worker.ended(0).await;
}

/// The database is slow, so batches hold their locks for long. The masters lose keys meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_decisions_and_lost_locks_raise_alerts_until_they_end() {
    let masters = Masters::start(3).await;
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    masters.serve(&mut world);
    world.configure(&[("LOCK__TTL", "1s")]);
    let (ingest, worker, compensator) = roles(&world).await;
    let roles = [("ingest", &ingest), ("worker", &worker), ("compensator", &compensator)];
    let alerts = Alerts::of(&roles).await;
    let api = Api::of(&ingest);

    // A session that someone has forgotten holds the product's row.
    let session = Rival::rename(&world, "a").await;
    api.place_batch(&batch(20)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    session.commit().await;
    alerts.fire(&["StocklockLatencyBudgetBurnFast"]).await;
    let load = Load::start(&api);
    wait_for_within(2 * PATIENCE, async || {
        let session = Rival::rename(&world, "a").await;
        for _ in 0..8 {
            masters.command::<String>("FLUSHALL").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        session.commit().await;
        let firing = alerts.firing().await;
        if firing.contains("StocklockLocksLost") { Ok(()) } else { Err(format!("{firing:?}")) }
    })
    .await;

    load.stop().await;
    alerts.resolve().await;
    world.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_replaced_again_and_again_raises_an_alert() {
    let world = row_world().await;
    let (ingest, worker, compensator) = roles(&world).await;
    let roles = [("ingest", &ingest), ("worker", &worker), ("compensator", &compensator)];
    let alerts = Alerts::of(&roles).await;

    for replaced in 1..=3 {
        world.recreate_topic(&world.config.topics.orders).await;
        let is_enough = |count: f64| count >= f64::from(replaced);
        worker.shows("stocklock_consumer_recreations_total", "", is_enough).await;
        worker.ready().await;
    }

    alerts.fire(&["StocklockConsumerRecreated"]).await;
    alerts.resolve().await;
}

/// The run book: "Mend the broker, or give the right that the error names."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_that_are_taken_away_raise_alerts_until_they_are_given_back() {
    let kafka = PrivateKafka::start();
    let world = World::on_brokers(Database::MySql, Strategy::Row, &kafka.address).await;
    let (topic, group) = (&world.config.topics.orders, &world.config.kafka.group_id);
    let (ingest, worker, compensator) = roles(&world).await;
    let roles = [("ingest", &ingest), ("worker", &worker), ("compensator", &compensator)];
    let alerts = Alerts::of(&roles).await;

    kafka.deny_reading(topic);
    alerts.fire(&["StocklockNotReady"]).await;
    worker.complains("refuses fetches").await;
    kafka.allow_reading(topic);
    alerts.resolve().await;

    kafka.deny_membership(group);
    alerts.fire(&["StocklockPollErrors"]).await;
    assert!(worker.log().contains("Group authorization failed"), "{}", worker.log());
    kafka.allow_membership(group);
    alerts.resolve().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_again_and_again_raises_an_alert() {
    let world = row_world().await;
    let (ingest, mut worker, compensator) = roles(&world).await;
    let roles = [("ingest", &ingest), ("worker", &worker), ("compensator", &compensator)];
    let alerts = Alerts::of(&roles).await;

    for restarts in 1..=3 {
        worker.restart();
        let changes = "changes(process_start_time_seconds{job=\"worker\"}[1m])";
        alerts.see(&format!("{changes} >= {restarts}")).await;
    }

    alerts.fire(&["StocklockRestarts"]).await;
    assert!(!alerts.firing().await.contains("StocklockRoleAbsent worker"));
}

/// No worker runs when an order passes the horizon. The run book: fail the order, dismiss its
/// release, and verify.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_and_a_release_beyond_the_horizon_raise_alerts() {
    let world = row_world().await;
    world.import(&[("a", 100)]);
    let nearly = TimeDelta::days(30) - TimeDelta::seconds(15);
    let id = made_ago(nearly);
    world.save_as(vec![(id, order_lines(&[("a", 1)]))]).await;
    world.tamper_with_orders("DELETE FROM outbox_groups").await;
    let soon = [("STOCKLOCK__INGEST__PENDING_AFTER", "1s")];
    let ingest = world.start_with("ingest", &soon).await;
    let compensator = world.start("compensator").await;
    let alerts = Alerts::of(&[("ingest", &ingest), ("compensator", &compensator)]).await;
    let id = id.to_string();

    alerts.fire(&["StocklockOrdersExpired"]).await;
    let worker = world.start("worker").await;
    wait_until("the worker dead-letters its event", async || {
        world.cli(&["dlq", "list", "--class", "expired"]).succeeds().stdout().contains(&id)
    })
    .await;
    let verified = world.cli(&["verify"]).succeeds().stdout();
    assert!(verified.contains(&format!("DEAD-LETTERED order {id}")), "{verified}");
    world.cli(&["order", "fail", &id, "--reason", "expired"]).succeeds();

    alerts.fire(&["StocklockReleasesExpired"]).await;
    let listed = world.cli(&["releases", "list"]).succeeds().stdout();
    assert!(listed.contains(&id), "{listed}");
    world.cli(&["releases", "dismiss", &id]).succeeds();
    world.verify();
    worker.stop();
}
