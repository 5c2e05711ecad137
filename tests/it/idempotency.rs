//! An `Idempotency-Key` makes a repetition of a request safe.

use std::collections::BTreeSet;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Api, Database, Role, Strategy, World, http_client, lines, on_each_database, wait_for,
};

const REPLAYED: &str = "idempotent-replayed";

/// Places an order with a key.
async fn place(api: &Api, key: &str, order: &Value) -> Answer {
    api.post(&order.to_string(), &[("idempotency-key", key)]).await
}

/// Places an order with a key, and waits for its outcome.
async fn place_and_wait(api: &Api, key: &str, order: &Value) -> Answer {
    let headers = [("idempotency-key", key), ("prefer", "wait=30")];
    api.post(&order.to_string(), &headers).await
}

async fn count_all_orders(world: &World) -> i64 {
    let mut count = 0;
    for status in ["PENDING", "COMPLETED", "RESERVED", "FAILED", "CANCELLED"] {
        count += world.count_orders(status).await;
    }
    count
}

on_each_database!(
    a_repeated_key_makes_one_order_and_shows_its_present_state,
    a_key_with_another_request_is_refused,
    requests_are_compared_by_content_and_not_by_bytes,
    a_key_whose_order_was_not_saved_is_not_bound,
    equal_keys_at_the_same_instant_make_one_order,
    of_different_requests_with_one_key_the_first_one_counts,
    a_crash_between_commit_and_answer_makes_no_second_order,
    a_key_is_free_once_its_order_is_gone,
    a_key_is_answered_although_a_new_order_would_be_refused,
);

async fn a_repeated_key_makes_one_order_and_shows_its_present_state(world: World) {
    world.import(&[("a", 5)]);
    let ingest = world.start("ingest").await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 2)]));

    let first = place(&api, "k", &order).await.is(202);
    let pending = place(&api, "\"k\"", &order).await.is(202);
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    let waited = place_and_wait(&api, "k", &order).await.is(201);
    let completed = place(&api, "k", &order).await.is(201);
    let refused = place_and_wait(&api, "l", &lines(&[("a", 4)])).await.problem(409);
    let refused_again = place(&api, "l", &lines(&[("a", 4)])).await.problem(409);

    assert_eq!(first.header(REPLAYED), "");
    for again in [&pending, &waited, &completed] {
        assert_eq!(again.order_id(), first.order_id());
        assert_eq!(
            (again.header(REPLAYED), again.header("location")),
            ("true", first.header("location"))
        );
    }
    assert_eq!(waited.header("preference-applied"), "wait");
    assert_eq!(completed.header("preference-applied"), "");
    assert_eq!(completed.body, json!({"order_id": first.order_id(), "status": "COMPLETED"}));
    assert_eq!((refused.header(REPLAYED), refused_again.header(REPLAYED)), ("", "true"));
    assert_eq!(refused.body, refused_again.body);
    assert_eq!(refused_again.body["reason"], "INSUFFICIENT_STOCK");
    assert_eq!((count_all_orders(&world).await, world.available("a")), (2, 3));
    assert_eq!(ingest.count("stocklock_orders_ingested_total", "replayed").await, 4);
    world.verify();
}

async fn a_key_with_another_request_is_refused(world: World) {
    world.import(&[("a", 5), ("b", 5)]);
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    let order = lines(&[("a", 1), ("b", 2)]);
    let first = place(&api, "k", &order).await.is(202);

    for (field, value) in [
        ("reference", json!("r")),
        ("customer_id", json!("c")),
        ("hold_seconds", json!(60)),
        ("lines", lines(&[("a", 1), ("b", 3)])["lines"].clone()),
        ("lines", lines(&[("b", 2), ("a", 1)])["lines"].clone()),
        ("lines", lines(&[("a", 1)])["lines"].clone()),
    ] {
        let mut other = order.clone();
        other[field] = value;
        place(&api, "k", &other).await.problem(422);
    }

    assert_eq!(place(&api, "k", &order).await.is(202).order_id(), first.order_id());
    assert_eq!(place(&api, "K", &order).await.is(202).header(REPLAYED), "", "case counts");
    assert_eq!(count_all_orders(&world).await, 2);
}

async fn requests_are_compared_by_content_and_not_by_bytes(world: World) {
    world.import(&[("a", 5)]);
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    let post = async |body: &str| api.post(body, &[("idempotency-key", "k")]).await.is(202);
    let line = r#"{"product_id":"a","quantity":1}"#;
    let first = post(&format!(r#"{{"reference":"é","lines":[{line}]}}"#)).await;

    for equal in [
        format!(r#"{{"lines":[{line}],"reference":"é"}}"#),
        format!(" {{\n\t\"reference\" : \"é\" , \"lines\" : [ {line} ]\r\n}} "),
        format!(r#"{{"reference":"\u00e9","customer_id":null,"lines":[{line}]}}"#),
        r#"{"reference":"é","lines":[{"quantity":1,"product_id":"\u0061"}]}"#.to_owned(),
    ] {
        let again = post(&equal).await;
        assert_eq!(
            (again.order_id(), again.header(REPLAYED)),
            (first.order_id(), "true"),
            "{equal}"
        );
    }
}

async fn a_key_whose_order_was_not_saved_is_not_bound(world: World) {
    world.import(&[("a", 5)]);
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);

    place(&api, "k", &lines(&[("b", 1)])).await.problem(422);
    place(&api, "k", &json!({"lines": []})).await.problem(422);
    for malformed in ["", "a b", "\"k", &"x".repeat(256)] {
        place(&api, malformed, &lines(&[("a", 1)])).await.problem(400);
    }
    let twice = [("idempotency-key", "k"), ("idempotency-key", "k")];
    api.post(&lines(&[("a", 1)]).to_string(), &twice).await.problem(400);
    let saved = count_all_orders(&world).await;
    let bound = place(&api, "k", &lines(&[("a", 1)])).await.is(202);

    assert_eq!((saved, bound.header(REPLAYED)), (0, ""));
}

/// 20 equal requests at each of two replicas, for each of 5 keys.
async fn equal_keys_at_the_same_instant_make_one_order(world: World) {
    world.import(&[("a", 500)]);
    let (one, other) = (world.start("ingest").await, world.start("ingest").await);
    let (apis, order) = ([Api::of(&one), Api::of(&other)], lines(&[("a", 1)]));

    let requests = (0..200).map(|n| {
        let (api, key, order) = (&apis[n % 2], format!("k{}", n / 2 % 5), &order);
        async move { (n / 2 % 5, place(api, &key, order).await.is(202)) }
    });
    let answers = join_all(requests).await;

    for key in 0..5 {
        let of_key: Vec<_> = answers.iter().filter(|(of, _)| *of == key).collect();
        let ids: BTreeSet<_> = of_key.iter().map(|(_, answer)| answer.order_id()).collect();
        let new = of_key.iter().filter(|(_, answer)| answer.header(REPLAYED).is_empty()).count();
        assert_eq!((of_key.len(), ids.len(), new), (40, 1, 1));
    }
    assert_eq!(count_all_orders(&world).await, 5);
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    assert_eq!(world.available("a"), 495);
    world.verify();
}

async fn of_different_requests_with_one_key_the_first_one_counts(world: World) {
    world.import(&[("a", 5)]);
    let (one, other) = (world.start("ingest").await, world.start("ingest").await);
    let apis = [Api::of(&one), Api::of(&other)];
    let orders = [1, 2, 3].map(|quantity| lines(&[("a", quantity)]));

    let requests = (0..60).map(|n| {
        let (api, order) = (&apis[n % 2], &orders[n % 3]);
        async move { (n % 3, place(api, "k", order).await) }
    });
    let answers = join_all(requests).await;

    let (taken, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(_, answer)| answer.status == 202);
    let ids: BTreeSet<_> = taken.iter().map(|(_, answer)| answer.order_id()).collect();
    let contents: BTreeSet<_> = taken.iter().map(|(content, _)| content).collect();
    assert_eq!((ids.len(), contents.len(), taken.len()), (1, 1, 20));
    for (_, answer) in refused {
        answer.problem(422);
    }
    assert_eq!(count_all_orders(&world).await, 1);
}

async fn a_crash_between_commit_and_answer_makes_no_second_order(world: World) {
    world.import(&[("a", 5)]);
    let doomed = Role::spawn(&world.env, "ingest", &[("STOCKLOCK_CRASH_AT", "ingest.committed")]);
    doomed.ready().await;
    let order = lines(&[("a", 1)]);
    let request = http_client()
        .post(format!("{}/v1/orders", doomed.http))
        .header("idempotency-key", "k")
        .body(order.to_string());

    request.send().await.expect_err("the connection breaks");
    doomed.crashed_at("ingest.committed").await;
    let ingest = world.start("ingest").await;
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    let again = place_and_wait(&Api::of(&ingest), "k", &order).await.is(201);

    assert_eq!(again.header(REPLAYED), "true");
    assert_eq!((count_all_orders(&world).await, world.available("a")), (1, 4));
    world.verify();
}

async fn a_key_is_free_once_its_order_is_gone(world: World) {
    world.import(&[("a", 5)]);
    let ingest = world.start("ingest").await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]));
    let first = place(&api, "k", &order).await.is(202);
    world.tamper_with_orders("DELETE FROM outbox_groups; DELETE FROM orders").await;

    let second = place(&api, "k", &lines(&[("a", 2)])).await.is(202);
    let again = place(&api, "k", &lines(&[("a", 2)])).await.is(202);

    assert_eq!(second.header(REPLAYED), "");
    assert_ne!(second.order_id(), first.order_id());
    assert_eq!((again.order_id(), again.header(REPLAYED)), (second.order_id(), "true"));
}

async fn a_key_is_answered_although_a_new_order_would_be_refused(world: World) {
    world.import(&[("a", 5), ("b", 5)]);
    let before = world.start("ingest").await;
    let (api, order) = (Api::of(&before), lines(&[("b", 1)]));
    let first = place(&api, "k", &order).await.is(202);
    before.kill();
    world.tamper_with_stock("DELETE FROM products WHERE product_id = 'b'").await;
    // Its outbox stays full.
    let settings =
        [("STOCKLOCK__KAFKA__BROKERS", "127.0.0.1:9"), ("STOCKLOCK__INGEST__OUTBOX_MAX", "1")];
    let ingest = world.start_with("ingest", &settings).await;
    let api = Api::of(&ingest);

    let unknown_product = place(&api, "new", &order).await.problem(422);
    let repeated = place(&api, "k", &order).await.is(202);
    let other = place(&api, "k", &lines(&[("b", 2)])).await.problem(422);
    let full = wait_for(async || {
        let answer = api.place(&lines(&[("a", 1)])).await;
        if answer.status == 503 { Ok(answer) } else { Err("the outbox is never full") }
    });
    full.await;
    let repeated_at_full = place(&api, "k", &order).await.is(202);

    assert_eq!(unknown_product.blamed(), ["/lines/0/product_id"]);
    assert!(other.blamed().is_empty(), "{other:?}");
    for again in [repeated, repeated_at_full] {
        assert_eq!((again.order_id(), again.header(REPLAYED)), (first.order_id(), "true"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_wait_for_one_order_all_receive_its_outcome() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let ingest = world.start("ingest").await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]));
    place(&api, "k", &order).await.is(202);

    let waiting = join_all((0..5).map(|_| place_and_wait(&api, "k", &order)));
    let deciding = async { (world.start("worker").await, world.start("compensator").await) };
    let (answers, _roles) = tokio::join!(waiting, deciding);

    for answer in answers {
        assert_eq!(answer.is(201).header(REPLAYED), "true");
    }
}
