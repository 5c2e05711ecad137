//! Clients cancel, confirm and extend orders over HTTP, as the table of orders says.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use stocklock::{
    domain::{OrderId, OrderStatus, Reason, ReportedStatus},
    store::NewOrder,
};

use crate::harness::{
    Api, Role, World, lines, made_ago, new_order, on_each_database, wait_for, wait_until,
};

const HOLD_SECONDS: u32 = 600;
const LEASE: Duration = Duration::from_secs(60);

on_each_database!(
    each_request_is_answered_by_the_state_that_it_meets,
    an_order_too_old_for_a_release_is_neither_cancelled_nor_held_longer,
    a_held_order_is_confirmed_or_cancelled_or_expires,
    an_order_cancelled_before_its_decision_takes_no_stock,
    a_confirmation_and_a_cancel_at_once_leave_one_end,
    a_confirmation_and_the_end_of_a_hold_leave_one_end,
    a_crash_after_a_change_loses_neither_release_nor_announcement,
    a_crash_before_the_commit_of_a_change_changes_nothing,
    a_corrupt_order_fails_no_other_request,
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

/// Requests a change of an order: `cancel`, `confirm` or `extend`.
async fn request(api: &Api, id: &str, change: &str) -> (u16, Value) {
    let answer = match change {
        "extend" => api.extend(id, 7200).await,
        change => api.request(id, change).await,
    };
    if answer.status == 409 {
        assert_eq!(answer.header("content-type"), "application/problem+json", "{answer:?}");
        let body = &answer.body;
        return (409, json!({"status": body["order_status"], "reason": body["reason"]}));
    }
    let mut body = answer.body;
    assert_eq!(body["order_id"], id, "{body}");
    body.as_object_mut().expect("an object").remove("order_id");
    (answer.status, body)
}

/// The status and the body without the order's id, as the table of orders says.
fn expected(column: Column, change: &str) -> (u16, Value) {
    let refused = |status: &str, reason: &str| (409, json!({"status": status, "reason": reason}));
    let done = |status: u16, state: &str| (status, json!({"status": state}));
    match (column, change) {
        (Column::Failed, _) => refused("FAILED", "INSUFFICIENT_STOCK"),
        (_, "cancel") => done(200, "CANCELLED"),
        (Column::Cancelled, _) => refused("CANCELLED", "CANCELLED"),
        (Column::Pending | Column::PendingHold, "confirm") => done(202, "PENDING"),
        (Column::Pending | Column::PendingHold, _) => refused("PENDING", "PENDING"),
        (Column::Reserved, "extend") => done(200, "RESERVED"),
        (Column::Completed, "extend") => refused("COMPLETED", "COMPLETED"),
        (Column::Reserved | Column::Completed, _) => done(200, "COMPLETED"),
    }
}

async fn each_request_is_answered_by_the_state_that_it_meets(world: World) {
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);

    for column in COLUMNS {
        for change in ["cancel", "confirm", "extend"] {
            let order_id = OrderId::generate();
            save_in(&world, column, order_id).await;
            let id = order_id.to_string();

            // Twice: a repeated request is answered alike.
            for _ in 0..2 {
                let (status, mut body) = request(&api, &id, change).await;

                let expires_at = body.as_object_mut().expect("an object").remove("expires_at");
                assert_eq!(
                    (status, &body),
                    (expected(column, change).0, &expected(column, change).1),
                    "{column:?} meets {change}"
                );
                let shown = api.get(&format!("/v1/orders/{id}")).await.is(200).body;
                assert_eq!(shown["status"], body["status"], "{column:?} meets {change}");
                if change == "extend" && column == Column::Reserved {
                    assert_eq!(expires_at.as_ref(), Some(&shown["expires_at"]), "{shown}");
                    let left = time(&shown["expires_at"]) - Utc::now();
                    assert!((7190..=7200).contains(&left.num_seconds()), "{left}");
                } else {
                    assert_eq!(expires_at, None, "{column:?} meets {change}");
                }
            }
        }
    }

    let closed = async |how: &str| {
        ingest.count("stocklock_holds_closed_total", &format!(r#"how="{how}""#)).await
    };
    assert_eq!((closed("cancelled").await, closed("confirmed").await), (1, 1));
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().expect("a text").parse().expect("RFC 3339")
}

async fn an_order_too_old_for_a_release_is_neither_cancelled_nor_held_longer(world: World) {
    let ingest = world.start_with("ingest", &[("STOCKLOCK__ORDERS__HOLD_MAX", "20d")]).await;
    let api = Api::of(&ingest);
    let (old, held) = (made_ago(TimeDelta::hours(29 * 24 + 1)), made_ago(TimeDelta::days(20)));
    save_in(&world, Column::Completed, old).await;
    save_in(&world, Column::Reserved, held).await;

    let cancelled = api.request(&old.to_string(), "cancel").await.problem(409);
    let too_long = api.extend(&held.to_string(), 10 * 86_400).await.problem(409);
    let extended = api.extend(&held.to_string(), 8 * 86_400).await.is(200);

    assert_eq!(cancelled.body["order_status"], "COMPLETED");
    assert!(cancelled.body["detail"].to_string().contains("too old"), "{cancelled:?}");
    assert_eq!(too_long.body["order_status"], "RESERVED");
    assert_eq!(extended.body["status"], "RESERVED");
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

/// A client whose request may get no answer.
async fn request_of_doomed(ingest: &Role, id: &str) -> bool {
    let url = format!("{}/v1/orders/{id}/cancel", ingest.http);
    reqwest::Client::new().post(url).send().await.is_ok()
}

async fn a_crash_after_a_change_loses_neither_release_nor_announcement(world: World) {
    const POINT: &str = "ingest.changes_committed";
    world.import(&[("a", 10)]);
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    let doomed = world.start_with("ingest", &[("STOCKLOCK_CRASH_AT", POINT)]).await;
    let mut order = lines(&[("a", 4)]);
    order["reference"] = json!("cart");
    let id = Api::of(&doomed).place_and_wait(&order, 60).await.is(201).order_id().to_owned();

    let is_answered = request_of_doomed(&doomed, &id).await;
    doomed.crashed_at(POINT).await;
    let is_announced = world.read_statuses().iter().any(|status| status.source == "ingest");
    let available = world.available("a");
    let mended = world.start("ingest").await;

    assert!(!is_answered && !is_announced && available == 6, "{is_answered} {is_announced}");
    assert_eq!(
        announced(&world, &id, "ingest").await,
        (ReportedStatus::Cancelled(None), Some("cart".into()))
    );
    world.has_available(&[("a", 10)]).await;
    assert_eq!(Api::of(&mended).request(&id, "cancel").await.is(200).body["status"], "CANCELLED");
    world.verify();
}

async fn a_crash_before_the_commit_of_a_change_changes_nothing(world: World) {
    const POINT: &str = "ingest.changed";
    world.import(&[("a", 10)]);
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    let doomed = world.start_with("ingest", &[("STOCKLOCK_CRASH_AT", POINT)]).await;
    let id = reserve(&Api::of(&doomed), &held(600, "cart")).await;

    let is_answered = request_of_doomed(&doomed, &id).await;
    doomed.crashed_at(POINT).await;
    let mended = world.start("ingest").await;
    let api = Api::of(&mended);

    assert!(!is_answered);
    assert_eq!(api.get(&format!("/v1/orders/{id}")).await.body["status"], "RESERVED");
    api.request(&id, "cancel").await.is(200);
    world.has_available(&[("a", 10)]).await;
    world.verify();
}

async fn a_corrupt_order_fails_no_other_request(world: World) {
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    let ids: Vec<_> = (0..20).map(|_| OrderId::generate()).collect();
    for id in &ids {
        save_in(&world, Column::Completed, *id).await;
    }
    let corrupt = ids[7].uuid().simple();
    let sql = format!(
        "SET sql_mode = ''; UPDATE orders SET status = '' WHERE order_id = UNHEX('{corrupt}')"
    );
    world.tamper_with_orders(&sql).await;

    let requests = ids.iter().map(async |id| api.request(&id.to_string(), "confirm").await);
    let answers = futures::future::join_all(requests).await;

    for (number, answer) in answers.into_iter().enumerate() {
        if number == 7 {
            answer.problem(500);
        } else {
            answer.is(200);
        }
    }
    let transactions = ingest.count("stocklock_transaction_seconds_count", "change_orders").await;
    assert!(transactions < 20, "{transactions} transactions of 20 requests that came together");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_names_no_order_or_no_hold_is_refused() {
    let world = World::new(crate::harness::Database::MySql, crate::harness::Strategy::Row).await;
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    let order_id = OrderId::generate();
    save_in(&world, Column::Reserved, order_id).await;
    let path = |change: &str| format!("/v1/orders/{order_id}/{change}");
    let post = async |path: &str, headers: &[(&str, &str)], body: &str| {
        api.send(reqwest::Method::POST, path, headers, body).await
    };

    for id in [&OrderId::generate().to_string(), "1", "%FF", "%00"] {
        for change in ["cancel", "confirm"] {
            api.request(id, change).await.problem(404);
        }
        api.extend(id, 60).await.problem(404);
    }
    for body in ["", "{", "{}x"] {
        post(&path("extend"), &[], body).await.problem(400);
    }
    for (body, pointer) in [
        ("{}", "/hold_seconds"),
        (r#"{"hold_seconds":0}"#, "/hold_seconds"),
        (r#"{"hold_seconds":86401}"#, "/hold_seconds"),
        (r#"{"hold_seconds":1,"x":1}"#, "/x"),
    ] {
        assert_eq!(post(&path("extend"), &[], body).await.problem(422).blamed(), [pointer]);
    }
    for change in ["cancel", "confirm", "extend"] {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        post(&path(change), &form, "hold_seconds=1").await.problem(415);
        let got = api.get(&path(change)).await.problem(405);
        assert_eq!(got.header("allow"), "POST");
    }
    let shown = api.get(&format!("/v1/orders/{order_id}")).await.is(200).body;
    assert_eq!(shown["status"], "RESERVED");
    for body in ["{", r#"{"x":1}"#, "[]"] {
        post(&path("confirm"), &[("content-type", "application/json")], body).await.is(200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_outbox_refuses_no_change() {
    let world = World::new(crate::harness::Database::MySql, crate::harness::Strategy::Row).await;
    world.import(&[("a", 10)]);
    let settings =
        [("STOCKLOCK__KAFKA__BROKERS", "127.0.0.1:9"), ("STOCKLOCK__INGEST__OUTBOX_MAX", "1")];
    let ingest = world.start_with("ingest", &settings).await;
    let api = Api::of(&ingest);
    let order_id = OrderId::generate();
    save_in(&world, Column::Reserved, order_id).await;
    wait_until("the outbox is full", async || api.place(&lines(&[("a", 1)])).await.status == 503)
        .await;

    let cancelled = api.request(&order_id.to_string(), "cancel").await.is(200);

    assert_eq!(cancelled.body["status"], "CANCELLED");
}
