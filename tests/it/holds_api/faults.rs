//! Changes while something fails.

use std::time::{Duration, Instant};

use serde_json::json;
use stocklock::domain::{OrderId, ReportedStatus};

use super::{Column, announced, held, reserve, save_in};
use crate::harness::{
    Api, Database, Proxy, Role, Strategy, World, http_client, lines, on_each_database, wait_until,
};

on_each_database!(
    a_crash_after_a_change_loses_neither_release_nor_announcement,
    a_crash_before_the_commit_of_a_change_changes_nothing,
    a_corrupt_order_fails_no_other_request,
);

/// A client whose request may get no answer.
async fn request_of_doomed(ingest: &Role, id: &str) -> bool {
    let url = format!("{}/v1/orders/{id}/cancel", ingest.http);
    http_client().post(url).send().await.is_ok()
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
async fn a_full_outbox_refuses_no_change() {
    let world = World::new(Database::MySql, Strategy::Row).await;
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

/// An answer of 503 promises that nothing was changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_answered_in_time_while_the_store_is_away_or_hangs() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (store, url) = Proxy::before(world.config.order_store.url.expose()).await;
    let settings =
        [("STOCKLOCK__ORDER_STORE__URL", url.as_str()), ("STOCKLOCK__INGEST__DEADLINE", "1s")];
    let ingest = world.start_with("ingest", &settings).await;
    let api = Api::of(&ingest);
    let order_id = OrderId::generate();
    save_in(&world, Column::Reserved, order_id).await;
    let id = order_id.to_string();
    api.request(&id, "confirm").await.is(200);

    store.cut();
    let away = api.request(&id, "cancel").await.problem(503);
    store.mend();
    wait_until("an order is changed again", async || api.extend(&id, 60).await.status == 409).await;
    let after_cut = api.get(&format!("/v1/orders/{id}")).await.is(200).body;
    store.hang();
    let begun = Instant::now();
    let hanging = api.request(&id, "cancel").await;
    let took = begun.elapsed();
    store.mend();

    assert!(away.header("retry-after").parse::<u64>().is_ok(), "{away:?}");
    assert_eq!(after_cut["status"], "COMPLETED");
    assert!([503, 504].contains(&hanging.status), "{hanging:?}");
    assert!(took < Duration::from_secs(3), "the answer took {took:?}");
    wait_until("the order is cancelled", async || api.request(&id, "cancel").await.status == 200)
        .await;
}
