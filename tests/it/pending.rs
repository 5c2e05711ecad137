//! An order whose event was lost stays pending, and is produced again.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use stocklock::{
    domain::{OrderEvent, OrderId},
    kafka::Producer,
    relay::{PendingPass, PendingWatch, Relay},
    store::NewOrder,
    telemetry::Metrics,
    wire::OrderEventCodec,
};

use crate::harness::{
    Role, World, aged, deliver, made_ago, made_at, new_order, on_each_database, on_two_stacks,
    order_lines,
};

fn relay(world: &World) -> Relay {
    let producer = Producer::new(&world.config.kafka).expect("a producer");
    let codec = Arc::new(OrderEventCodec::new().expect("the schema"));
    Relay::new(
        world.order_store(),
        producer,
        &world.config.topics.orders,
        codec,
        world.config.ingest.pending_after,
    )
}

/// A watch with the settings of the world: 5 minutes until an order is produced again.
fn watch(world: &World, metrics: &Metrics) -> PendingWatch {
    PendingWatch::new(relay(world), world.config.retention.horizon, metrics.clone())
}

/// The same of orders whose clients made the ids at another time than the orders were placed.
async fn lost_as(world: &World, ids: &[OrderId], placed_at: DateTime<Utc>) {
    let order = |id: &OrderId| NewOrder {
        order_id: *id,
        accepted_at: placed_at.trunc_subsecs(3),
        ..new_order()
    };
    let orders: Vec<_> = ids.iter().map(order).collect();
    world.order_store().place(&orders, Duration::ZERO).await.expect("saved");
    world.tamper_with_orders("DELETE FROM outbox_groups").await;
}

/// Saves orders of one unit of `a` whose events are lost: neither on the topic nor in the outbox.
async fn lost(world: &World, ids: Vec<OrderId>) -> Vec<OrderEvent> {
    let lines = order_lines(&[("a", 1)]);
    let saved = world.save_as(ids.into_iter().map(|id| (id, lines.clone())).collect()).await;
    world.tamper_with_orders("DELETE FROM outbox_groups").await;
    saved
}

fn produced(pass: PendingPass) -> usize {
    assert!(pass.is_complete);
    pass.produced
}

/// The orders on the topic, each as often as it is there.
fn on_topic(world: &World) -> Vec<OrderId> {
    let mut ids: Vec<_> = world.read_events().iter().map(|event| event.order_id).collect();
    ids.sort();
    ids
}

/// Waits until the age of the oldest pending order is as it should be.
async fn oldest_comes_to(role: &Role, is_right: impl Fn(f64) -> bool) {
    role.shows("stocklock_pending_oldest_seconds", "", is_right).await;
}

on_two_stacks!(an_order_whose_event_was_lost_becomes_final_by_itself,);

async fn an_order_whose_event_was_lost_becomes_final_by_itself(world: World) {
    world.import(&[("a", 100)]);
    lost(&world, (0..20).map(|_| OrderId::generate()).collect()).await;

    let ingest = world.start_with("ingest", &[("STOCKLOCK__INGEST__PENDING_AFTER", "2s")]).await;
    oldest_comes_to(&ingest, |age| age > 3.0).await;

    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    oldest_comes_to(&ingest, |age| age == 0.0).await;

    assert!(ingest.count("stocklock_pending_orders_total", "produced").await >= 20);
    assert_eq!(world.available("a"), 80);
    world.verify();
    ingest.stop();
}

on_each_database!(
    a_pass_produces_a_bounded_number_and_no_order_before_its_time,
    an_order_that_stays_pending_is_produced_ever_more_rarely,
    a_pass_produces_few_orders_that_stay_pending_again_and_again,
    an_order_that_cannot_be_read_keeps_no_other_from_being_published,
    an_order_that_is_committed_late_is_found_all_the_same,
    the_age_of_the_oldest_pending_order_is_shown_and_else_zero,
    an_order_too_old_to_be_decided_is_not_produced_again,
    a_scan_reads_a_part_at_a_time_and_misses_nothing,
    an_order_whose_id_is_old_or_ahead_is_produced_again,
    the_table_of_unscanned_orders_has_only_pending_ones,
    a_group_of_the_outbox_whose_orders_are_gone_is_deleted,
);

async fn a_pass_produces_a_bounded_number_and_no_order_before_its_time(world: World) {
    world.import(&[("a", 5000)]);
    let (metrics, now, after) = (World::metrics(), Utc::now(), TimeDelta::minutes(5));
    let mut watch = watch(&world, &metrics);
    let saved = lost(
        &world,
        (0..1200).map(|n| made_ago(TimeDelta::minutes(10) + TimeDelta::seconds(n))).collect(),
    )
    .await;
    lost(&world, vec![made_ago(TimeDelta::minutes(4))]).await;
    for expected in [500, 500, 200, 0] {
        assert_eq!(produced(watch.pass(now).await.expect("a pass")), expected);
    }
    let mut ids: Vec<_> = saved.iter().map(|event| event.order_id).collect();
    ids.sort();
    assert_eq!(on_topic(&world), ids, "each once, and not the one that is 4 minutes old");
    assert_eq!(metrics.pending_orders.with_label_values(&["produced"]).get(), 1200);

    // All but five become final. The five, and the younger order, come again after their time.
    deliver(&world.worker(&World::metrics()), &saved[5..]).await;
    world.replay_statuses(&world.compensator(&World::metrics())).await;
    assert_eq!(produced(watch.pass(now + after - TimeDelta::seconds(1)).await.expect("a pass")), 1);
    assert_eq!(produced(watch.pass(now + after).await.expect("a pass")), 5);
    assert_eq!(produced(watch.pass(now + after).await.expect("a pass")), 0);
}

async fn an_order_that_stays_pending_is_produced_ever_more_rarely(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let mut watch = watch(&world, &metrics);
    lost(&world, vec![made_ago(TimeDelta::minutes(6))]).await;

    for (minutes, expected) in
        [(0, 1), (5, 1), (10, 0), (15, 1), (30, 0), (35, 1), (74, 0), (75, 1)]
    {
        let pass = watch.pass(now + TimeDelta::minutes(minutes)).await.expect("a pass");
        assert_eq!(produced(pass), expected, "after {minutes} minutes");
    }
}

async fn a_pass_produces_few_orders_that_stay_pending_again_and_again(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let mut watch = watch(&world, &metrics);
    lost(&world, (0..120).map(|_| made_ago(TimeDelta::minutes(6))).collect()).await;

    for (minutes, expected) in
        [(0, 120), (5, 120), (15, 120), (35, 50), (36, 50), (37, 20), (38, 0)]
    {
        let pass = watch.pass(now + TimeDelta::minutes(minutes)).await.expect("a pass");
        assert_eq!(produced(pass), expected, "after {minutes} minutes");
    }
}

async fn an_order_that_cannot_be_read_keeps_no_other_from_being_published(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let (mut watch, relay) = (watch(&world, &metrics), relay(&world));
    let lines = order_lines(&[("a", 1)]);
    let ids = [3, 2, 1].map(|minutes| made_ago(TimeDelta::minutes(10 + minutes)));
    world.save_as(ids.iter().map(|id| (*id, lines.clone())).collect()).await;
    let damage = format!(
        "UPDATE orders SET `lines` = 'none' WHERE order_id = UNHEX('{}')",
        ids[0].uuid().simple()
    );
    world.tamper_with_orders(&damage).await;
    world
        .tamper_with_orders("UPDATE outbox_groups SET visible_at = created_at - INTERVAL 1 DAY")
        .await;

    assert_eq!(relay.sweep().await.expect("a sweep"), 2);
    let outbox = world.order_store().outbox_state().await.expect("the outbox");
    assert_eq!(outbox.pending, 1, "the corrupt order stays");
    assert_eq!(produced(watch.pass(now).await.expect("a pass")), 2);
    assert_eq!(on_topic(&world), [ids[1], ids[1], ids[2], ids[2]]);
}

async fn a_group_of_the_outbox_whose_orders_are_gone_is_deleted(world: World) {
    let relay = relay(&world);
    world.save(&vec![order_lines(&[("a", 1)]); 3]).await;
    let gone = "DELETE FROM orders; UPDATE outbox_groups SET visible_at = created_at";
    world.tamper_with_orders(gone).await;

    assert_eq!(relay.sweep().await.expect("a sweep"), 0);

    let outbox = world.order_store().outbox_state().await.expect("the outbox");
    assert_eq!((outbox.pending, on_topic(&world).len()), (0, 0));
}

async fn an_order_that_is_committed_late_is_found_all_the_same(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let mut watch = watch(&world, &metrics);
    // A later order is final already.
    lost(&world, vec![made_ago(TimeDelta::seconds(5))]).await;
    world.tamper_with_orders("UPDATE orders SET status = 'COMPLETED'").await;
    assert_eq!(produced(watch.pass(now).await.expect("a pass")), 0);

    let late = lost(&world, vec![made_ago(TimeDelta::seconds(40))]).await;
    assert_eq!(produced(watch.pass(now + TimeDelta::minutes(5)).await.expect("a pass")), 1);
    assert_eq!(on_topic(&world), [late[0].order_id]);
}

async fn the_age_of_the_oldest_pending_order_is_shown_and_else_zero(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let mut watch = watch(&world, &metrics);

    let mut shows = async |seconds: f64| {
        watch.pass(now).await.expect("a pass");
        let shown = metrics.pending_oldest.get();
        assert!((shown - seconds).abs() < 0.01, "{shown} instead of {seconds}");
    };

    shows(0.0).await;

    let made = |seconds| made_at(now - TimeDelta::seconds(seconds));
    lost(&world, vec![made(20)]).await;
    shows(20.0).await;
    lost(&world, vec![made(3600), made(7200)]).await;
    shows(7200.0).await;
    world.tamper_with_orders("UPDATE orders SET status = 'COMPLETED'").await;
    shows(0.0).await;
}

async fn an_order_too_old_to_be_decided_is_not_produced_again(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let mut watch = watch(&world, &metrics);
    let [_ancient, old] = [lost(&world, vec![aged(31)]).await, lost(&world, vec![aged(29)]).await];

    assert_eq!(produced(watch.pass(now).await.expect("a pass")), 1);
    let pass = watch.pass(now + TimeDelta::days(2)).await.expect("a pass");
    assert_eq!(pass, PendingPass { produced: 0, expired: 1, is_complete: true });
    assert_eq!(metrics.pending_orders.with_label_values(&["expired"]).get(), 1);
    assert_eq!(on_topic(&world), [old[0].order_id]);
}

async fn a_scan_reads_a_part_at_a_time_and_misses_nothing(world: World) {
    let mut ids: Vec<_> = (0..10).map(|n| made_ago(TimeDelta::minutes(60 - n))).collect();
    ids.sort();
    lost(&world, ids.clone()).await;
    for final_one in [0, 1, 4, 5, 6, 7, 9] {
        let hex = ids[final_one].uuid().simple();
        world
            .tamper_with_orders(&format!(
                "UPDATE orders SET status = 'FAILED' WHERE order_id = UNHEX('{hex}')"
            ))
            .await;
    }

    let store = world.order_store();
    for (limit, pending_max) in [(1, 9), (3, 9), (10, 1), (100, 2), (4, 1)] {
        let (mut after, mut found) = (aged(1), Vec::new());
        loop {
            let scan =
                store.scan_pending(after, aged(0), limit, pending_max).await.expect("a scan");
            assert!(scan.pending.len() <= pending_max);
            found.extend(scan.pending);
            let Some(last) = scan.last else { break };
            assert!(last > after);
            after = last;
        }
        assert_eq!(found, [ids[2], ids[3], ids[8]], "{limit}, {pending_max}");
    }
}

async fn an_order_whose_id_is_old_or_ahead_is_produced_again(world: World) {
    let (metrics, now) = (World::metrics(), Utc::now());
    let mut watch = watch(&world, &metrics);
    // The scan has passed all ids of the past.
    lost(&world, vec![made_ago(TimeDelta::minutes(2))]).await;
    world.tamper_with_orders("UPDATE orders SET status = 'COMPLETED'").await;
    assert_eq!(produced(watch.pass(now).await.expect("a pass")), 0);
    let mut odd = [aged(20), made_ago(TimeDelta::seconds(40)), made_ago(TimeDelta::hours(-23))];
    odd.sort();
    lost_as(&world, &odd, now).await;

    for (minutes, expected) in [(2, 0), (5, 3), (9, 0), (10, 3)] {
        let pass = watch.pass(now + TimeDelta::minutes(i64::from(minutes))).await.expect("a pass");
        assert_eq!(produced(pass), expected, "after {minutes} minutes");
        let age = metrics.pending_oldest.get();
        assert!((age - 60.0 * f64::from(minutes)).abs() < 1.0, "{age} after {minutes} minutes");
    }

    let mut expected = [odd, odd].concat();
    expected.sort();
    assert_eq!(on_topic(&world), expected);
}

async fn the_table_of_unscanned_orders_has_only_pending_ones(world: World) {
    let (metrics, now, store) = (World::metrics(), Utc::now(), world.order_store());
    let mut watch = watch(&world, &metrics);
    let all = async || store.read_unscanned(aged(4000), 100).await.expect("a page");
    let ids = async || all().await.iter().map(|order| order.order_id).collect::<Vec<_>>();
    let mut odd: Vec<_> = (10..20).map(aged).collect();
    odd.sort();
    let scanned = [made_ago(TimeDelta::seconds(20)), made_ago(TimeDelta::seconds(-20))];

    lost_as(&world, &[odd.as_slice(), &scanned].concat(), now).await;
    let before = ids().await;
    let decided = format!(
        "UPDATE orders SET status = 'COMPLETED' WHERE order_id < UNHEX('{}')",
        odd[4].uuid().simple()
    );
    world.tamper_with_orders(&decided).await;
    watch.pass(now).await.expect("a pass");

    assert_eq!(before, odd);
    assert_eq!(ids().await, odd[4..]);
    assert!(all().await.iter().all(|order| order.is_pending));
    // The horizon is 30 days.
    let later = now + TimeDelta::days(15) + TimeDelta::minutes(1);
    watch.pass(later).await.expect("a pass");
    assert_eq!(ids().await, odd[5..]);
}
