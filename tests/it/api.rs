//! Orders are placed and shown over HTTP as the contract promises.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::harness::{Api, Database, Strategy, World, lines};

async fn world(stock: &[(&str, i64)]) -> World {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(stock);
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_accepted_at_once_and_decided_later() {
    let world = world(&[("a", 5)]).await;
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);

    let accepted = api.place(&lines(&[("a", 2)])).await.is(202);
    let (id, location) = (accepted.order_id(), accepted.header("location"));

    assert_eq!(accepted.body, json!({"order_id": id, "status": "PENDING"}));
    assert_eq!(location, format!("/v1/orders/{id}"));
    assert_eq!(api.get(location).await.is(200).body["status"], "PENDING");

    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    assert_eq!(api.decided(id).await["status"], "COMPLETED");
    assert_eq!(world.available("a"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_is_answered_once_every_replica_shows_it() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let (one, other) = (world.start("ingest").await, world.start("ingest").await);
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    let replicas = [Api::of(&one), Api::of(&other)];

    for round in 0..10 {
        let (asked, elsewhere) = (&replicas[round % 2], &replicas[(round + 1) % 2]);
        let answer = asked.place_and_wait(&lines(&[("a", 1)]), 30).await;
        let shown = elsewhere.get(answer.header("location")).await.is(200).body;
        let id = answer.order_id().to_owned();
        if round < 5 {
            let answer = answer.is(201);
            assert_eq!(answer.body, json!({"order_id": id, "status": "COMPLETED"}));
            assert_eq!(answer.header("preference-applied"), "wait");
            assert_eq!((shown["status"].as_str(), shown.get("reason")), (Some("COMPLETED"), None));
        } else {
            let refused = answer.problem(409).body;
            assert_eq!(
                (&refused["order_status"], &refused["reason"]),
                (&json!("FAILED"), &json!("INSUFFICIENT_STOCK"))
            );
            assert_eq!(
                (&shown["status"], &shown["reason"]),
                (&json!("FAILED"), &json!("INSUFFICIENT_STOCK"))
            );
        }
    }

    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_is_not_decided_in_time_is_accepted() {
    let world = world(&[("a", 5)]).await;
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);

    let begun = Instant::now();
    let accepted = api.place_and_wait(&lines(&[("a", 1)]), 1).await.is(202);

    assert!(begun.elapsed() >= Duration::from_secs(1), "answered too soon: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "answered too late: {:?}", begun.elapsed());
    assert_eq!(accepted.body["status"], "PENDING");
    api.place_and_wait(&lines(&[("a", 1)]), 0).await.is(202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_preference_is_ignored() {
    let world = world(&[("a", 5)]).await;
    let ingest = world.start("ingest").await;
    let (api, order, begun) = (Api::of(&ingest), lines(&[("a", 1)]).to_string(), Instant::now());

    for malformed in [
        "wait",
        "wait=",
        "wait=soon",
        "wait=-30",
        "wait=30.5",
        "wait=30s",
        "waiting=30",
        "respond-async",
    ] {
        api.post(&order, &[("prefer", malformed)]).await.is(202);
    }

    // No worker decides these orders: a preference that counted would take 30 s.
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_shown_as_it_was_placed() {
    let world = world(&[("a", 9), ("b", 9)]).await;
    let all = world.start("all").await;
    let (api, begun) = (Api::of(&all), Utc::now());
    let longest = "é".repeat(128);
    let mut order = lines(&[("b", 2), ("a", 1), ("b", 3)]);
    order["reference"] = json!("PO-7 / \"quoted\" 😀");
    order["customer_id"] = json!(longest);
    let id = api.place_and_wait(&order, 30).await.is(201).order_id().to_owned();
    let shown = api.get(&format!("/v1/orders/{id}")).await.is(200).body;
    assert_eq!(shown["order_id"], id);
    assert_eq!(shown["status"], "COMPLETED");
    for name in ["reference", "customer_id", "lines"] {
        assert_eq!(shown[name], order[name], "{name}");
    }
    let (created, updated) = (time(&shown["created_at"]), time(&shown["updated_at"]));
    assert!(
        begun - created < chrono::TimeDelta::seconds(1)
            && created <= updated
            && updated <= Utc::now(),
        "{shown}"
    );
    assert_eq!(
        (world.available("a"), world.available("b")),
        (8, 4),
        "a repeated product is one demand"
    );

    let plain = api.place(&lines(&[("a", 1)])).await.is(202);
    let shown = api.get(plain.header("location")).await.is(200).body;
    let members: Vec<_> = shown.as_object().expect("an object").keys().collect();
    assert_eq!(
        members,
        ["created_at", "lines", "order_id", "status", "updated_at"],
        "a field without a value is left out"
    );
}

/// A time as RFC 3339 has it, in UTC.
fn time(value: &Value) -> DateTime<Utc> {
    let text = value.as_str().expect("a text");
    assert!(text.ends_with('Z'), "{text} is not in UTC");
    text.parse().expect("RFC 3339")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_product_is_sent_again_only_if_its_version_is_new() {
    let world = world(&[("a", 9)]).await;
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    let get = async |tags: &str| {
        api.send(reqwest::Method::GET, "/v1/products/a", &[("if-none-match", tags)], "").await
    };
    let first = api.get("/v1/products/a").await.is(200);
    let tag = first.header("etag").to_owned();

    for tags in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let unchanged = get(&tags).await.is(304);
        assert_eq!((unchanged.header("etag"), &unchanged.body), (tag.as_str(), &json!("")));
    }
    world.cli(&["stock", "restock", "a", "1"]).succeeds();
    let second = get(&tag).await.is(200);

    assert_eq!(tag, format!("\"{}\"", first.body["version"]));
    assert_eq!(second.body["available"], 10);
    assert_ne!(second.header("etag"), tag);
    assert!(second.body["version"].as_i64() > first.body["version"].as_i64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn products_are_shown_and_unknown_ones_are_not_found() {
    let odd = "a/b?c#d%20é".replace('é', "~");
    let world = world(&[("a", 9), ("A", 1), (&odd, 7)]).await;
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    let product = api.get("/v1/products/a").await.is(200).body;
    let version = product["version"].as_i64().expect("a version");
    let expected = json!({"product_id": "a", "name": "a", "available": 9, "version": version});
    assert_eq!(product, expected);
    assert_eq!(api.get("/v1/products/A").await.is(200).body["available"], 1);
    let product = api.get("/v1/products/a%2Fb%3Fc%23d%2520~").await.is(200).body;
    assert_eq!((&product["product_id"], &product["available"]), (&json!(odd), &json!(7)));

    let too_long = "a".repeat(65);
    for unknown in ["b", "a%20b", "%FF", "%C3%A9", &too_long] {
        api.get(&format!("/v1/products/{unknown}")).await.problem(404);
    }
    let (unknown, no_hyphens) =
        (uuid::Uuid::now_v7().to_string(), uuid::Uuid::now_v7().simple().to_string());
    for unknown in [&unknown, &no_hyphens, "1", "%FF", "%00"] {
        api.get(&format!("/v1/orders/{unknown}")).await.problem(404);
    }
}
