//! A release is owed until a worker has reported that it is done, and published again until then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use stocklock::{
    domain::{EventKind, OrderEvent, OrderId, OrderState, Reason, ReportedStatus, WORKER_SOURCE},
    kafka::Producer,
    relay::{Relay, ReleasePass, ReleaseWatch},
    store::OwedRelease,
    telemetry::Metrics,
    wire::OrderEventCodec,
};

use crate::harness::{
    Database, Strategy, World, deliver, made_ago, on_each_database, order_lines, release,
};

/// A watch with the settings of the world: 5 minutes until a release is published again.
fn watch(world: &World, metrics: &Metrics) -> ReleaseWatch {
    let producer = Producer::new(&world.config.kafka).expect("a producer");
    let codec = Arc::new(OrderEventCodec::new().expect("the schema"));
    let (topic, after) = (&world.config.topics.orders, world.config.ingest.pending_after);
    let relay = Relay::new(world.order_store(), producer, topic, codec, after);
    ReleaseWatch::new(relay, world.config.retention.horizon, metrics.clone())
}

async fn owed(world: &World) -> BTreeMap<OrderId, OwedRelease> {
    let page =
        world.order_store().page_of_owed_releases(None, 10_000).await.expect("the order store");
    page.into_iter().map(|owed| (owed.order_id, owed)).collect()
}

/// Orders of one unit of `a` that failed, and whose release is owed and due.
async fn failed(world: &World, ids: Vec<OrderId>) -> Vec<OrderEvent> {
    let lines = order_lines(&[("a", 1)]);
    let saved = world.save_as(ids.into_iter().map(|id| (id, lines.clone())).collect()).await;
    let fail = "DELETE FROM outbox_groups; UPDATE orders SET status = 'FAILED', reason = 'payment';
                INSERT IGNORE INTO owed_releases (order_id, owed_at, due_at)
                SELECT order_id, created_at, UTC_TIMESTAMP(3) - INTERVAL 1 MINUTE FROM orders";
    world.tamper_with_orders(fail).await;
    saved
}

/// How many releases are on the topic.
fn on_topic(world: &World) -> usize {
    let events = world.read_events();
    assert!(events.iter().all(|event| event.kind == EventKind::Release));
    events.len()
}

fn published(published: usize) -> ReleasePass {
    ReleasePass { published, ..ReleasePass::default() }
}

on_each_database!(
    a_release_is_owed_until_the_worker_reports_it,
    owed_releases_are_published_again_ever_more_rarely,
    releases_that_stay_owed_are_published_rarely_and_delay_no_other,
    a_claimed_release_is_claimed_by_no_other_until_its_lease_expires,
    a_release_beyond_the_horizon_is_counted_once_and_verify_reports_it,
    a_release_of_an_order_that_cannot_be_read_delays_no_other,
);

async fn a_release_is_owed_until_the_worker_reports_it(world: World) {
    world.import(&[("a", 10)]);
    let (worker, compensator) =
        (world.worker(&World::metrics()), world.compensator(&World::metrics()));
    let orders = world.save(&[1, 99, 2, 3].map(|units| order_lines(&[("a", units)]))).await;
    // Completed; refused; released before; the worker never sees the last one.
    deliver(&worker, &orders[..3]).await;
    deliver(&worker, &[release(&orders[2])]).await;
    world.replay_statuses(&compensator).await;

    for order in &orders {
        world.report_failed(order.order_id, "payment").await;
    }
    world.replay_statuses(&compensator).await;

    let owing = owed(&world).await;
    assert!(
        [0, 3].iter().all(|index: &usize| owing.contains_key(&orders[*index].order_id)),
        "{owing:?}"
    );
    assert!(owing.values().all(|owed| owed.sent == 1), "published at once: {owing:?}");

    for order in &orders {
        deliver(&worker, &[release(order)]).await;
    }
    let reported =
        world.read_statuses().into_iter().filter(|said| said.status == ReportedStatus::Released);
    assert_eq!(reported.filter(|said| said.source == WORKER_SOURCE).count(), 5);
    world.replay_statuses(&compensator).await;
    assert_eq!((owed(&world).await, world.available("a")), (BTreeMap::new(), 10));
    world.verify();
}

async fn owed_releases_are_published_again_ever_more_rarely(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let mut watch = watch(&world, &metrics);
    failed(&world, vec![OrderId::generate(), OrderId::generate()]).await;

    for (minutes, expected) in
        [(0, 2), (4, 0), (5, 2), (14, 0), (15, 2), (34, 0), (35, 2), (74, 0), (75, 2)]
    {
        let pass = watch.pass(now + TimeDelta::minutes(minutes)).await.expect("a pass");
        assert_eq!(pass, published(expected), "after {minutes} minutes");
    }

    assert_eq!(on_topic(&world), 10);
    assert_eq!(metrics.owed_releases.with_label_values(&["produced"]).get(), 10);
    assert_eq!(metrics.releases_owed.get(), 2);
    let oldest = metrics.releases_owed_oldest.get();
    assert!((74.0 * 60.0..76.0 * 60.0).contains(&oldest), "owed for {oldest} s");
    let outbox = world.order_store().outbox_state().await.expect("the outbox");
    assert_eq!(
        (outbox.pending, outbox.oldest),
        (0, None),
        "releases do not count as orders to publish"
    );
}

async fn releases_that_stay_owed_are_published_rarely_and_delay_no_other(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let mut watch = watch(&world, &metrics);
    failed(&world, (0..170).map(|_| OrderId::generate()).collect()).await;
    world.tamper_with_orders("UPDATE owed_releases SET sent = 3").await;
    failed(&world, (0..20).map(|_| OrderId::generate()).collect()).await;

    let mut pass =
        async |seconds: i64| watch.pass(now + TimeDelta::seconds(seconds)).await.expect("a pass");

    assert_eq!(pass(0).await, ReleasePass { published: 70, postponed: 120, expired: 0 });
    assert_eq!(pass(59).await, published(0));
    assert_eq!(pass(60).await, published(50));
    assert_eq!(pass(61).await, published(0));
    assert_eq!(pass(120).await, published(50));
    assert_eq!(pass(180).await, published(20));
    assert_eq!(pass(181).await, published(0));
}

async fn a_claimed_release_is_claimed_by_no_other_until_its_lease_expires(world: World) {
    // The store keeps milliseconds.
    let (store, now) = (world.order_store(), Utc::now().trunc_subsecs(3));
    failed(&world, (0..300).map(|_| OrderId::generate()).collect()).await;

    let claim = async |seconds: i64| {
        let now = now + TimeDelta::seconds(seconds);
        let claimed =
            store.claim_releases(now, now + TimeDelta::seconds(15), 200).await.expect("a claim");
        assert_eq!(claimed.owed.len(), claimed.events.len());
        claimed.owed.into_iter().map(|release| release.order_id).collect::<BTreeSet<_>>()
    };

    let (first, second) = (claim(0).await, claim(1).await);
    assert_eq!((first.len(), second.len(), first.intersection(&second).count()), (200, 100, 0));
    assert_eq!(claim(14).await.len(), 0);
    assert_eq!(claim(15).await, first);
    assert_eq!(store.owed_releases_state().await.expect("a count").owed, 300);
}

async fn a_release_beyond_the_horizon_is_counted_once_and_verify_reports_it(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let mut watch = watch(&world, &metrics);
    let kept = TimeDelta::days(30);
    let orders = failed(
        &world,
        vec![made_ago(kept + TimeDelta::minutes(1)), made_ago(kept - TimeDelta::hours(1))],
    )
    .await;
    let [old, young] = [0, 1].map(|index: usize| orders[index].order_id);
    for (days, expected) in [(0, (1, 1)), (0, (0, 0)), (1, (0, 1)), (40, (0, 0))] {
        let pass = watch.pass(now + TimeDelta::days(days)).await.expect("a pass");
        assert_eq!((pass.published, pass.expired), expected, "after {days} days");
    }
    assert_eq!(metrics.owed_releases.with_label_values(&["expired"]).get(), 2);
    assert_eq!((metrics.releases_owed.get(), on_topic(&world)), (0, 1));

    let text = world.cli(&["verify", "--settle", "0s"]).exits(1).stdout();
    assert!(
        text.contains(&format!("VIOLATED invariant 3: order {old}: its release was still owed")),
        "{text}"
    );
    let listed = world.cli(&["--output", "json", "releases", "list"]).succeeds().stdout();
    assert_eq!(
        (listed.lines().count(), listed.matches(r#""expired":true"#).count()),
        (2, 2),
        "{listed}"
    );
    let refused =
        world.cli(&["releases", "dismiss", &old.to_string(), &young.to_string()]).exits(2);
    assert!(
        refused.stderr().contains(&format!("order {young} is not beyond the horizon")),
        "{}",
        refused.stderr()
    );
    world.cli(&["releases", "dismiss", &old.to_string()]).succeeds();
    world.cli(&["releases", "dismiss", &old.to_string()]).exits(1);
    assert_eq!(owed(&world).await.into_keys().collect::<Vec<_>>(), [young]);
}

async fn a_release_of_an_order_that_cannot_be_read_delays_no_other(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let mut watch = watch(&world, &metrics);
    let orders = failed(&world, vec![OrderId::generate(), OrderId::generate()]).await;
    let damaged = orders[0].order_id;
    let damage = format!(
        "UPDATE orders SET `lines` = 'none' WHERE order_id = UNHEX('{}')",
        damaged.uuid().simple()
    );
    world.tamper_with_orders(&damage).await;

    for (minutes, expected) in [(0, 1), (1, 0), (5, 1)] {
        let pass = watch.pass(now + TimeDelta::minutes(minutes)).await.expect("a pass");
        assert_eq!(pass, published(expected), "after {minutes} minutes");
    }

    assert_eq!(owed(&world).await[&damaged].sent, 2, "it is not published ever more rarely");
}

/// A batch of statuses leaves the same releases owed as the statuses one by one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_statuses_owes_what_they_would_owe_one_by_one() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let compensator = world.compensator(&World::metrics());
    let orders = world.save(&vec![order_lines(&[("a", 1)]); 6]).await;
    let ids: Vec<_> = orders.iter().map(|order| order.order_id).collect();
    let failed = || (ReportedStatus::Failed(Reason::parse("payment")), "payments");
    let [completed, released] =
        [ReportedStatus::Completed, ReportedStatus::Released].map(|status| (status, WORKER_SOURCE));
    let said = [
        vec![completed.clone()],
        vec![failed(), released.clone()],
        vec![failed(), released.clone(), completed.clone()],
        vec![completed.clone(), failed()],
        vec![(ReportedStatus::Cancelled(None), "shop"), completed, released.clone()],
        vec![(ReportedStatus::Cancelled(Some(Reason::parse("EXPIRED"))), "compensator")],
    ];
    for (id, statuses) in ids.iter().zip(said) {
        for (status, source) in statuses {
            world.report(*id, status, source).await;
        }
    }
    world.replay_statuses(&compensator).await;

    let owing: Vec<_> = owed(&world).await.into_keys().collect();
    let mut expected = vec![ids[2], ids[3], ids[5]];
    expected.sort();
    assert_eq!(owing, expected);
    assert_eq!(world.count_orders("COMPLETED").await, 1);
    assert_eq!((world.count_orders("FAILED").await, world.count_orders("CANCELLED").await), (3, 2));
    let expired =
        world.order_store().find(ids[5]).await.expect("the order store").expect("the order");
    assert_eq!(
        (expired.summary.state, expired.summary.reason.as_deref()),
        (OrderState::Cancelled, Some("EXPIRED"))
    );
}

/// Every status of our own roles meets an order in every state, and none of an order that is not
/// there or too old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_status_of_our_own_roles_is_dead_lettered() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let (old, lines) = (made_ago(TimeDelta::days(30)), order_lines(&[("a", 1)]));
    let mut ids: Vec<_> = (0..4).map(|_| OrderId::generate()).collect();
    ids.push(old);
    world.save_as(ids.iter().map(|id| (*id, lines.clone())).collect()).await;
    let states = ["PENDING", "COMPLETED", "FAILED", "CANCELLED", "COMPLETED"];
    for (id, state) in ids.iter().zip(states) {
        let set = format!(
            "UPDATE orders SET status = '{state}' WHERE order_id = UNHEX('{}')",
            id.uuid().simple()
        );
        world.tamper_with_orders(&set).await;
    }
    ids.push(OrderId::generate());
    for id in &ids {
        world.report(*id, ReportedStatus::Released, WORKER_SOURCE).await;
        for source in ["ingest", "compensator"] {
            world.report(*id, ReportedStatus::Completed, source).await;
            world.report(*id, ReportedStatus::Cancelled(None), source).await;
        }
    }
    let compensator = world.start("compensator").await;
    world.caught_up(&world.config.compensator.group_id, &world.config.topics.order_status).await;
    compensator.stop();

    assert_eq!(world.count_messages(&world.config.topics.order_status_dlq), 0);
    // An order whose stock was released holds nothing, so it is not completed.
    assert_eq!(
        (world.count_orders("PENDING").await, world.count_orders("COMPLETED").await),
        (0, 0)
    );
    assert_eq!((world.count_orders("CANCELLED").await, world.count_orders("FAILED").await), (4, 1));
}

/// Releases that the outbox of an earlier version held are owed after the upgrade.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_in_an_earlier_outbox_are_owed_after_the_upgrade() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let orders = world.save(&[order_lines(&[("a", 1)]), order_lines(&[("a", 1)])]).await;
    let before = format!(
        "DROP TABLE owed_releases; DELETE FROM _sqlx_migrations WHERE version IN (4, 7);
         DELETE FROM outbox_groups;
         CREATE TABLE outbox (
             order_id BINARY(16), kind ENUM ('PLACED', 'RELEASE'), created_at DATETIME(3),
             visible_at DATETIME(3), PRIMARY KEY (order_id, kind));
         INSERT INTO outbox
         SELECT order_id, 'PLACED', created_at, created_at FROM orders UNION ALL
         SELECT UNHEX('{}'), 'RELEASE', '2026-01-02 03:04:05', UTC_TIMESTAMP(3)",
        orders[1].order_id.uuid().simple()
    );
    world.tamper_with_orders(&before).await;
    world.cli(&["setup"]).succeeds();

    let owed_at: Vec<_> =
        owed(&world).await.into_iter().map(|(id, owed)| (id, owed.owed_at)).collect();
    let moved_at: DateTime<Utc> = "2026-01-02T03:04:05Z".parse().expect("a time");
    assert_eq!(owed_at, [(orders[1].order_id, moved_at)]);
    assert_eq!(
        world.order_store().outbox_state().await.expect("the outbox").pending,
        2,
        "the orders placed stay"
    );
}
