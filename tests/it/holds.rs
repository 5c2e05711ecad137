//! Holds: orders that keep their stock until they are confirmed or their hold ends.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection as _, MySqlConnection};
use stocklock::{
    compensate::{Compensator, HoldSweep},
    domain::{OrderEvent, OrderStatus, ReportedStatus},
    store::{Change, NewOrder},
};

use crate::harness::{World, deliver, new_order, on_each_database, release};

const HOLD_SECONDS: u32 = 60;

on_each_database!(
    a_hold_that_is_due_is_ended_once_and_its_stock_returns,
    two_sweeps_at_once_end_each_hold_once,
    a_crash_after_the_end_of_a_hold_loses_no_announcement,
    a_confirmation_before_the_sweep_wins_although_the_hold_is_due,
    an_order_confirmed_while_pending_is_completed_and_announced,
    a_reported_confirmation_that_comes_too_late_is_counted,
    a_hold_of_an_order_that_is_not_reserved_is_closed,
    a_hold_counts_from_the_decision_also_if_it_is_repeated,
    an_order_that_the_store_refuses_to_change_delays_no_other_hold,
    a_hold_without_an_order_is_closed,
    a_late_status_does_not_make_its_batch_run_again,
);

/// Saves an order with a hold and the reference `cart-7`, and returns its event.
async fn save_held(world: &World) -> OrderEvent {
    let order = NewOrder {
        hold_seconds: Some(HOLD_SECONDS),
        reference: Some("cart-7".into()),
        ..new_order()
    };
    let lease = std::time::Duration::from_secs(60);
    world.order_store().place(std::slice::from_ref(&order), lease).await.expect("placed");
    order.into_event()
}

/// Saves an order with a hold, and lets a worker and the compensator reserve it.
async fn reserve(world: &World, compensator: &Compensator) -> OrderEvent {
    let event = save_held(world).await;
    deliver(&world.worker(&World::metrics()), std::slice::from_ref(&event)).await;
    world.replay_statuses(compensator).await;
    assert_eq!(state(world, &event).await, ("RESERVED".into(), None));
    event
}

/// The state and the reason of an order.
async fn state(world: &World, event: &OrderEvent) -> (String, Option<String>) {
    let order = world.order_store().find(event.order_id).await.expect("the order store");
    let order = order.expect("the order");
    (order.summary.state.to_string(), order.summary.reason)
}

async fn expires_at(world: &World, event: &OrderEvent) -> Option<DateTime<Utc>> {
    let mut conn = MySqlConnection::connect(world.config.order_store.url.expose()).await.unwrap();
    let query = sqlx::query_scalar("SELECT expires_at FROM holds WHERE order_id = ?");
    query.bind(event.order_id.as_bytes().as_slice()).fetch_optional(&mut conn).await.unwrap()
}

async fn announcements_left(world: &World) -> i64 {
    let mut conn = MySqlConnection::connect(world.config.order_store.url.expose()).await.unwrap();
    sqlx::query_scalar("SELECT COUNT(*) FROM announcements").fetch_one(&mut conn).await.unwrap()
}

/// The announcements on the topic.
fn announced(world: &World) -> Vec<OrderStatus> {
    let mut statuses = world.read_statuses();
    statuses.retain(|status| status.source != "worker" && status.source != "payments");
    statuses
}

/// A time at which the holds of the tests have ended.
fn after_the_hold() -> DateTime<Utc> {
    Utc::now() + TimeDelta::seconds((HOLD_SECONDS + 1).into())
}

async fn pass(compensator: &Compensator, now: DateTime<Utc>) -> usize {
    let ended = HoldSweep::new(compensator.clone()).pass(now).await.expect("a pass");
    compensator.relay.drain().await;
    compensator.announcer.drain().await;
    ended
}

async fn a_hold_that_is_due_is_ended_once_and_its_stock_returns(world: World) {
    world.import(&[("a", 10)]);
    let metrics = World::metrics();
    let compensator = world.compensator(&metrics);
    let order = reserve(&world, &compensator).await;
    assert_eq!(world.available("a"), 9);

    assert_eq!(pass(&compensator, Utc::now()).await, 0, "the hold is not due");
    let is_open = metrics.holds_open.get();
    let later = after_the_hold() + TimeDelta::seconds(30);
    assert_eq!(pass(&compensator, later).await, 1);
    let lag = metrics.hold_expiry_lag.get();
    assert_eq!(pass(&compensator, later).await, 0, "the hold is ended already");

    assert_eq!(state(&world, &order).await, ("CANCELLED".into(), Some("EXPIRED".into())));
    let announced = announced(&world);
    let [said] = &announced[..] else { panic!("one announcement: {announced:?}") };
    assert_eq!((said.order_id, said.source.as_str()), (order.order_id, "compensator"));
    assert_eq!(said.reference.as_deref(), Some("cart-7"));
    assert_eq!(announcements_left(&world).await, 0);
    assert_eq!(is_open, 1);
    assert!((30.0..40.0).contains(&lag), "{lag} s");
    world.replay_orders(&world.worker(&World::metrics())).await;
    world.replay_statuses(&compensator).await;
    assert_eq!(world.available("a"), 10);
    world.verify();
}

async fn two_sweeps_at_once_end_each_hold_once(world: World) {
    world.import(&[("a", 100)]);
    let compensator = world.compensator(&World::metrics());
    let mut orders = Vec::new();
    for _ in 0..20 {
        orders.push(save_held(&world).await);
    }
    deliver(&world.worker(&World::metrics()), &orders).await;
    world.replay_statuses(&compensator).await;

    let other = world.compensator(&World::metrics());
    let now = after_the_hold();
    let (one, two) = tokio::join!(pass(&compensator, now), pass(&other, now));

    assert_eq!(one + two, 20);
    assert_eq!(announced(&world).len(), 20);
    world.replay_orders(&world.worker(&World::metrics())).await;
    assert_eq!(world.available("a"), 100);
}

async fn a_crash_after_the_end_of_a_hold_loses_no_announcement(world: World) {
    world.import(&[("a", 10)]);
    let compensator = world.compensator(&World::metrics());
    let order = reserve(&world, &compensator).await;

    // The process dies after the commit: it publishes nothing, and its leases end.
    let (now, horizon) = (after_the_hold(), world.config.retention.horizon);
    let none = std::time::Duration::ZERO;
    let store = world.order_store();
    let due = store.find_due_holds(now, None, 10).await.expect("the holds");
    store.end_holds(&due, now, horizon, none).await.expect("ended");
    assert_eq!((due.len(), announced(&world).len()), (1, 0));

    assert_eq!(compensator.announcer.sweep().await.expect("a sweep"), 1);
    assert_eq!(compensator.announcer.sweep().await.expect("a sweep"), 0);

    let announced = announced(&world);
    assert_eq!(announced.len(), 1);
    assert_eq!(
        (announced[0].order_id, announced[0].status.as_str()),
        (order.order_id, "CANCELLED")
    );
}

async fn a_confirmation_before_the_sweep_wins_although_the_hold_is_due(world: World) {
    world.import(&[("a", 10)]);
    let compensator = world.compensator(&World::metrics());
    let order = reserve(&world, &compensator).await;
    let late = after_the_hold();

    let confirm = [(order.order_id, Change::Confirm)];
    let (horizon, lease) = (world.config.retention.horizon, std::time::Duration::ZERO);
    world.order_store().change(&confirm, late, horizon, lease).await.expect("changed");
    assert_eq!(pass(&compensator, late).await, 0);
    compensator.announcer.sweep().await.expect("a sweep");

    assert_eq!(state(&world, &order).await, ("COMPLETED".into(), None));
    let announced = announced(&world);
    let [said] = &announced[..] else { panic!("one announcement: {announced:?}") };
    assert_eq!((said.status.as_str(), said.source.as_str()), ("COMPLETED", "ingest"));
    assert_eq!((world.available("a"), expires_at(&world, &order).await), (9, None));
    world.verify();
}

async fn an_order_confirmed_while_pending_is_completed_and_announced(world: World) {
    world.import(&[("a", 10)]);
    let compensator = world.compensator(&World::metrics());
    let order = save_held(&world).await;
    world.report(order.order_id, ReportedStatus::Confirmed, "payments").await;
    world.replay_statuses(&compensator).await;
    assert_eq!(state(&world, &order).await, ("PENDING".into(), None));

    deliver(&world.worker(&World::metrics()), std::slice::from_ref(&order)).await;
    world.replay_statuses(&compensator).await;

    assert_eq!(state(&world, &order).await, ("COMPLETED".into(), None));
    let announced = announced(&world);
    let [said] = &announced[..] else { panic!("one announcement: {announced:?}") };
    assert_eq!((said.status.as_str(), said.source.as_str()), ("COMPLETED", "compensator"));
    assert_eq!(expires_at(&world, &order).await, None);
}

async fn a_reported_confirmation_that_comes_too_late_is_counted(world: World) {
    world.import(&[("a", 10)]);
    let metrics = World::metrics();
    let compensator = world.compensator(&metrics);
    let order = reserve(&world, &compensator).await;
    assert_eq!(pass(&compensator, after_the_hold()).await, 1);

    world.report(order.order_id, ReportedStatus::Confirmed, "payments").await;
    world.replay_statuses(&compensator).await;

    assert_eq!(metrics.confirmations_too_late.get(), 1);
    assert_eq!(state(&world, &order).await, ("CANCELLED".into(), Some("EXPIRED".into())));
    assert_eq!(world.count_messages(&world.config.topics.order_status_dlq), 0);
}

async fn a_hold_of_an_order_that_is_not_reserved_is_closed(world: World) {
    world.import(&[("a", 10)]);
    let compensator = world.compensator(&World::metrics());
    let order = save_held(&world).await;
    let stray = "INSERT INTO holds SELECT order_id, '2001-01-01' FROM orders";
    world.tamper_with_orders(stray).await;

    assert_eq!(pass(&compensator, Utc::now()).await, 0);

    assert_eq!(expires_at(&world, &order).await, None);
    assert_eq!(state(&world, &order).await, ("PENDING".into(), None));
}

async fn a_hold_counts_from_the_decision_also_if_it_is_repeated(world: World) {
    world.import(&[("a", 10)]);
    let (worker, compensator) =
        (world.worker(&World::metrics()), world.compensator(&World::metrics()));
    let order = save_held(&world).await;
    deliver(&worker, std::slice::from_ref(&order)).await;
    let age = "UPDATE order_outcomes SET decided_at = decided_at - INTERVAL 40 SECOND";
    world.tamper_with_stock(age).await;
    let age = "UPDATE orders SET created_at = created_at - INTERVAL 50 SECOND";
    world.tamper_with_orders(age).await;

    // The topic forgets the report, and the order's event is delivered again.
    let repeated = worker.store.decide(
        std::slice::from_ref(&order),
        stocklock::store::Guard::RowLocks,
        Utc::now(),
        || true,
    );
    let reports = repeated.await.expect("decided").statuses;
    let (now, horizon) = (Utc::now(), world.config.retention.horizon);
    let lease = std::time::Duration::ZERO;
    compensator.store.apply(&reports, now, horizon, lease).await.expect("applied");

    let left = expires_at(&world, &order).await.expect("a hold") - Utc::now();
    assert!((10..=20).contains(&left.num_seconds()), "{left} are left of 60 s");
    let released = [release(&order)];
    deliver(&worker, &released).await;
}

async fn an_order_that_the_store_refuses_to_change_delays_no_other_hold(world: World) {
    world.import(&[("a", 10)]);
    let metrics = World::metrics();
    let compensator = world.compensator(&metrics);
    let orders = [
        reserve(&world, &compensator).await,
        reserve(&world, &compensator).await,
        reserve(&world, &compensator).await,
    ];
    let refused = &orders[0];
    let refuse = format!(
        "CREATE TRIGGER refuse BEFORE UPDATE ON orders FOR EACH ROW
         IF NEW.status = 'CANCELLED' AND HEX(NEW.order_id) = '{}' THEN
             SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one';
         END IF",
        refused.order_id.uuid().simple().to_string().to_uppercase()
    );
    world.tamper_with_orders(&refuse).await;

    let ended = pass(&compensator, after_the_hold()).await;

    assert_eq!(ended, 2);
    assert_eq!(state(&world, refused).await.0, "RESERVED");
    assert_eq!(state(&world, &orders[2]).await.0, "CANCELLED");
    world.tamper_with_orders("DROP TRIGGER refuse").await;
    assert_eq!(pass(&compensator, after_the_hold()).await, 1);
}

async fn a_hold_without_an_order_is_closed(world: World) {
    let compensator = world.compensator(&World::metrics());
    let orphan =
        "INSERT INTO holds VALUES (UNHEX('0198f2a0000070008000000000000001'), '2001-01-01')";
    world.tamper_with_orders(orphan).await;

    assert_eq!(pass(&compensator, Utc::now()).await, 0);

    let mut conn = MySqlConnection::connect(world.config.order_store.url.expose()).await.unwrap();
    let left: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM holds").fetch_one(&mut conn).await.unwrap();
    assert_eq!(left, 0);
}

async fn a_late_status_does_not_make_its_batch_run_again(world: World) {
    world.import(&[("a", 10)]);
    let metrics = World::metrics();
    let (worker, store) = (world.worker(&World::metrics()), world.order_store_with(&metrics));
    let orders =
        world.save(&[1, 1, 99].map(|units| crate::harness::order_lines(&[("a", units)]))).await;
    let cancel = [(orders[0].order_id, Change::Cancel)];
    let (now, horizon, lease) =
        (Utc::now(), world.config.retention.horizon, std::time::Duration::ZERO);
    store.change(&cancel, now, horizon, lease).await.expect("changed");
    deliver(&worker, &orders).await;

    // The first order is cancelled meanwhile. The last release was never owed.
    let mut statuses = world.read_statuses();
    statuses.push(OrderStatus {
        order_id: orders[2].order_id,
        status: ReportedStatus::Released,
        ..statuses[0].clone()
    });
    store.apply(&statuses, now, horizon, lease).await.expect("applied");

    let states = [state(&world, &orders[0]), state(&world, &orders[1]), state(&world, &orders[2])];
    let states = futures::future::join_all(states).await;
    let states: Vec<_> = states.iter().map(|(state, _)| state.as_str()).collect();
    assert_eq!(states, ["CANCELLED", "COMPLETED", "FAILED"]);
    assert_eq!(metrics.retries.with_label_values(&["order_store"]).get(), 0);
}
