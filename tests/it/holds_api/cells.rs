//! Each request meets each state.

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use stocklock::domain::OrderId;

use super::{COLUMNS, Column, save_in, time};
use crate::harness::{Api, Database, Strategy, World, made_ago, on_each_database};

on_each_database!(
    each_request_is_answered_by_the_state_that_it_meets,
    an_order_too_old_for_a_release_is_neither_cancelled_nor_held_longer,
);

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_names_no_order_or_no_hold_is_refused() {
    let world = World::new(Database::MySql, Strategy::Row).await;
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
