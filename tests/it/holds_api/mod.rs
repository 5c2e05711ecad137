//! Clients cancel, confirm and extend orders over HTTP, as the table of orders says.

mod cells;
mod faults;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use stocklock::{
    domain::{OrderId, OrderStatus, Reason, ReportedStatus},
    store::NewOrder,
};

use crate::harness::{Api, World, lines, new_order, on_each_database, wait_for};

const HOLD_SECONDS: u32 = 600;
const LEASE: Duration = Duration::from_secs(60);

on_each_database!(
    a_held_order_is_confirmed_or_cancelled_or_expires,
    an_order_cancelled_before_its_decision_takes_no_stock,
    a_confirmation_and_a_cancel_at_once_leave_one_end,
    a_confirmation_and_the_end_of_a_hold_leave_one_end,
);

/// A state in which the tests save an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Pending,
    PendingHold,
    Reserved,
    Completed,
    Failed,
    Cancelled,
}

const COLUMNS: [Column; 6] = [
    Column::Pending,
    Column::PendingHold,
    Column::Reserved,
    Column::Completed,
    Column::Failed,
    Column::Cancelled,
];

/// Saves an order in a state, as workers and others report it.
async fn save_in(world: &World, column: Column, order_id: OrderId) {
    let has_hold = matches!(column, Column::PendingHold | Column::Reserved);
    let order = NewOrder {
        order_id,
        accepted_at: order_id.made_at(),
        hold_seconds: has_hold.then_some(HOLD_SECONDS),
        ..new_order()
    };
    let store = world.order_store();
    store.place(&[order], LEASE).await.expect("placed");
    let (status, source) = match column {
        Column::Pending | Column::PendingHold => return,
        Column::Reserved => (ReportedStatus::Reserved, "worker"),
        Column::Completed => (ReportedStatus::Completed, "worker"),
        Column::Failed => (ReportedStatus::Failed(Reason::InsufficientStock), "worker"),
        Column::Cancelled => (ReportedStatus::Cancelled(None), "shop"),
    };
    let now = Utc::now();
    let source = source.to_owned();
    let status = OrderStatus { order_id, status, source, occurred_at: now, reference: None };
    store.apply(&[status], now, world.config.retention.horizon, LEASE).await.expect("applied");
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().expect("a text").parse().expect("RFC 3339")
}

/// An order of one unit of `a` that is held, as a request body.
fn held(hold_seconds: i64, reference: &str) -> Value {
    let mut order = lines(&[("a", 1)]);
    order["hold_seconds"] = json!(hold_seconds);
    order["reference"] = json!(reference);
    order
}

/// Places an order that is held and waits until it is reserved. Returns its id.
async fn reserve(api: &Api, order: &Value) -> String {
    let reserved = api.place_and_wait(order, 60).await.is(201);
    assert_eq!(reserved.body["status"], "RESERVED");
    reserved.order_id().to_owned()
}

/// Waits until an order's announcement is on the topic. Returns its status and its reference.
async fn announced(world: &World, id: &str, source: &str) -> (ReportedStatus, Option<String>) {
    wait_for(async || {
        let statuses = world.read_statuses();
        let mut of_order = statuses.iter().filter(|status| status.order_id.to_string() == id);
        let found = of_order.find(|status| status.source == source);
        let found = found.ok_or(format!("{source} has announced nothing: {statuses:?}"))?;
        Ok::<_, String>((found.status.clone(), found.reference.clone()))
    })
    .await
}

async fn a_held_order_is_confirmed_or_cancelled_or_expires(world: World) {
    world.import(&[("a", 10)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    let begun = Utc::now();

    let kept = api.place_and_wait(&held(600, "cart-1"), 60).await.is(201).body;
    let (given_up, left) =
        (reserve(&api, &held(600, "cart-2")).await, reserve(&api, &held(1, "cart-3")).await);
    let kept_id = kept["order_id"].as_str().expect("an id");
    let shown = api.get(&format!("/v1/orders/{kept_id}")).await.is(200).body;
    let lasts = time(&kept["expires_at"]) - begun;
    let confirmed = api.request(kept_id, "confirm").await.is(200).body;
    let cancelled = api.request(&given_up, "cancel").await.is(200).body;
    let shown_expired = api.becomes(&left, "CANCELLED").await;

    assert_eq!((&kept["status"], &kept["expires_at"]), (&json!("RESERVED"), &shown["expires_at"]));
    assert!((600..660).contains(&lasts.num_seconds()), "the hold lasts {lasts}");
    assert_eq!(confirmed, json!({"order_id": kept_id, "status": "COMPLETED"}));
    assert_eq!(cancelled, json!({"order_id": given_up, "status": "CANCELLED"}));
    assert_eq!(shown_expired["reason"], "EXPIRED");
    let reference = |number: i64| Some(format!("cart-{number}"));
    let expired = ReportedStatus::Cancelled(Some(Reason::Expired));
    assert_eq!(
        announced(&world, kept_id, "ingest").await,
        (ReportedStatus::Completed, reference(1))
    );
    assert_eq!(
        announced(&world, &given_up, "ingest").await,
        (ReportedStatus::Cancelled(None), reference(2))
    );
    assert_eq!(announced(&world, &left, "compensator").await, (expired, reference(3)));
    world.has_available(&[("a", 9)]).await;
    world.verify();
}

async fn an_order_cancelled_before_its_decision_takes_no_stock(world: World) {
    world.import(&[("a", 10)]);
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    let placed = api.place(&lines(&[("a", 3)])).await.is(202).order_id().to_owned();

    api.request(&placed, "cancel").await.is(200);
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    let other = api.place_and_wait(&lines(&[("a", 1)]), 60).await.is(201);

    assert_eq!(other.body["status"], "COMPLETED");
    assert_eq!(announced(&world, &placed, "ingest").await.0, ReportedStatus::Cancelled(None));
    ingest.shows("stocklock_releases_owed", "", |owed| owed == 0.0).await;
    assert_eq!(api.get(&format!("/v1/orders/{placed}")).await.body["status"], "CANCELLED");
    world.has_available(&[("a", 9)]).await;
    world.verify();
}

async fn a_confirmation_and_a_cancel_at_once_leave_one_end(world: World) {
    const ORDERS: i64 = 20;
    world.import(&[("a", ORDERS)]);
    let (all, other) = (world.start("all").await, world.start("ingest").await);
    let (one, two) = (Api::of(&all), Api::of(&other));
    let order = held(600, "cart");
    let ids = futures::future::join_all((0..ORDERS).map(|_| reserve(&one, &order))).await;

    let both = ids
        .iter()
        .map(async |id| tokio::join!(one.request(id, "confirm"), two.request(id, "cancel")));
    let answers = futures::future::join_all(both).await;

    for (id, (confirmed, cancelled)) in ids.iter().zip(answers) {
        assert!([200, 409].contains(&confirmed.status), "{confirmed:?}");
        assert_eq!(cancelled.is(200).body["status"], "CANCELLED");
        assert_eq!(one.get(&format!("/v1/orders/{id}")).await.body["status"], "CANCELLED");
    }
    world.has_available(&[("a", ORDERS)]).await;
    world.verify();
}

async fn a_confirmation_and_the_end_of_a_hold_leave_one_end(world: World) {
    const ORDERS: i64 = 20;
    world.import(&[("a", ORDERS)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    let order = held(1, "cart");
    let ids = futures::future::join_all((0..ORDERS).map(|_| reserve(&api, &order))).await;

    // The sweep comes between two of these requests.
    let mut ends = Vec::new();
    for id in &ids {
        tokio::time::sleep(Duration::from_millis(90)).await;
        ends.push(api.request(id, "confirm").await);
    }

    let mut kept = 0;
    for (id, answer) in ids.iter().zip(ends) {
        let shown = api.get(&format!("/v1/orders/{id}")).await.is(200).body;
        if answer.status == 200 {
            kept += 1;
            assert_eq!(shown["status"], "COMPLETED", "{answer:?}");
        } else {
            let refused = answer.problem(409).body;
            assert_eq!(
                (&refused["order_status"], &refused["reason"]),
                (&json!("CANCELLED"), &json!("EXPIRED"))
            );
            assert_eq!(shown["status"], "CANCELLED");
        }
    }
    assert!((1..ORDERS).contains(&kept), "{kept} of {ORDERS} were confirmed in time");
    world.has_available(&[("a", ORDERS - kept)]).await;
    world.verify();
}
