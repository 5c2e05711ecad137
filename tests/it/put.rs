//! `PUT /v1/orders/{id}` places an order under an id of the client, as often as it is repeated.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use futures::future::join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{
    Answer, Api, Role, World, aged, http_client, lines, made_ago, on_each_database, order_lines,
    wait_until,
};

const REPLAYED: &str = "idempotent-replayed";

async fn put(api: &Api, id: impl ToString, order: &Value) -> Answer {
    api.put(&id.to_string(), &order.to_string(), &[]).await
}

on_each_database!(
    a_repeated_id_makes_one_order_and_shows_its_present_state,
    a_new_id_is_a_young_uuid_v7,
    a_known_id_is_answered_at_any_age,
    equal_ids_at_the_same_instant_make_one_order,
    an_id_whose_commit_was_not_answered_makes_no_second_order,
    an_old_id_whose_event_was_lost_becomes_final_by_itself,
    an_order_that_cannot_be_read_fails_no_other_order,
);

async fn a_repeated_id_makes_one_order_and_shows_its_present_state(world: World) {
    world.import(&[("a", 5), ("b", 5)]);
    let ingest = world.start("ingest").await;
    let (api, id) = (Api::of(&ingest), Uuid::now_v7());
    let mut order = lines(&[("a", 1), ("b", 2)]);
    order["reference"] = json!("é ");

    let first = put(&api, id, &order).await.is(202);
    let pending = put(&api, id.to_string().to_uppercase(), &order).await.is(202);
    for (field, value) in [
        ("reference", json!("é")),
        ("customer_id", json!("c")),
        ("hold_seconds", json!(60)),
        ("lines", lines(&[("b", 2), ("a", 1)])["lines"].clone()),
    ] {
        let mut other = order.clone();
        other[field] = value;
        put(&api, id, &other).await.problem(422);
    }
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    let waited =
        api.put(&id.to_string(), &order.to_string(), &[("prefer", "wait=30")]).await.is(201);
    let completed = put(&api, id, &order).await.is(201);

    assert_eq!(first.body, json!({"order_id": id.to_string(), "status": "PENDING"}));
    assert_eq!(
        (first.header(REPLAYED), first.header("location")),
        ("", format!("/v1/orders/{id}").as_str())
    );
    for again in [pending, waited, completed] {
        assert_eq!((again.order_id(), again.header(REPLAYED)), (id.to_string().as_str(), "true"));
    }
    assert_eq!((world.available("a"), world.available("b")), (4, 3));
    world.verify();
}

async fn a_new_id_is_a_young_uuid_v7(world: World) {
    world.import(&[("a", 5)]);
    let ingest = world.start("ingest").await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]));

    for malformed in ["1", "%FF", &Uuid::now_v7().simple().to_string()] {
        put(&api, malformed, &order).await.problem(404);
    }
    put(&api, "c232ab00-9414-41ec-b3c8-9f6bdeced846", &order).await.problem(422);
    // The horizon is 30 days, and its margin one day.
    let hours = TimeDelta::hours;
    for refused in [made_ago(hours(29 * 24 + 1)), aged(31), made_ago(hours(-25))] {
        put(&api, refused, &order).await.problem(422);
    }
    let keyed = [("idempotency-key", "k")];
    api.put(&Uuid::now_v7().to_string(), &order.to_string(), &keyed).await.problem(400);
    let saved = world.count_orders("PENDING").await;
    for allowed in [made_ago(hours(29 * 24 - 1)), made_ago(hours(-23)), aged(0)] {
        put(&api, allowed, &order).await.is(202);
    }

    assert_eq!((saved, world.count_orders("PENDING").await), (0, 3));
}

async fn a_known_id_is_answered_at_any_age(world: World) {
    world.import(&[("a", 5)]);
    let saved = world.save_as(vec![(aged(80), order_lines(&[("a", 1)]))]).await[0].order_id;
    world.tamper_with_orders("UPDATE orders SET status = 'COMPLETED'").await;
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);

    let known = put(&api, saved, &lines(&[("a", 1)])).await.is(201);
    let other = put(&api, saved, &lines(&[("a", 2)])).await.problem(422);

    assert_eq!(
        (known.body["status"].as_str(), known.header(REPLAYED)),
        (Some("COMPLETED"), "true")
    );
    assert!(other.body["detail"].as_str().is_some_and(|text| text.contains("another request")));
}

async fn equal_ids_at_the_same_instant_make_one_order(world: World) {
    world.import(&[("a", 500)]);
    let (one, other) = (world.start("ingest").await, world.start("ingest").await);
    let apis = [Api::of(&one), Api::of(&other)];
    let (order, ids) = (lines(&[("a", 1)]), [(); 5].map(|()| Uuid::now_v7()));

    let requests = (0..200).map(|n| {
        let (api, id, order) = (&apis[n % 2], ids[n / 2 % 5], &order);
        async move { (id, put(api, id, order).await.is(202)) }
    });
    let answers = join_all(requests).await;
    let unrelated = join_all((0..20).map(|n| apis[n % 2].place(&order)));
    let unrelated = unrelated.await;

    for id in ids {
        let of_id: Vec<_> = answers.iter().filter(|(of, _)| *of == id).collect();
        let told: BTreeSet<_> = of_id.iter().map(|(_, answer)| answer.order_id()).collect();
        let new = of_id.iter().filter(|(_, answer)| answer.header(REPLAYED).is_empty()).count();
        assert_eq!((of_id.len(), told.len(), new), (40, 1, 1));
    }
    assert!(unrelated.iter().all(|answer| answer.status == 202));
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (25, 475));
    world.verify();
}

async fn an_id_whose_commit_was_not_answered_makes_no_second_order(world: World) {
    world.import(&[("a", 5)]);
    let doomed = Role::spawn(&world.env, "ingest", &[("STOCKLOCK_CRASH_AT", "ingest.committed")]);
    doomed.ready().await;
    let (id, order) = (Uuid::now_v7(), lines(&[("a", 1)]));
    let request = http_client().put(format!("{}/v1/orders/{id}", doomed.http));

    request.body(order.to_string()).send().await.expect_err("the connection breaks");
    doomed.crashed_at("ingest.committed").await;
    let ingest = world.start("ingest").await;
    let again = put(&Api::of(&ingest), id, &order).await.is(202);

    assert_eq!(again.header(REPLAYED), "true");
    assert_eq!(world.count_orders("PENDING").await, 1);
}

async fn an_old_id_whose_event_was_lost_becomes_final_by_itself(world: World) {
    world.import(&[("a", 10)]);
    let ingest = world.start_with("ingest", &[("STOCKLOCK__INGEST__PENDING_AFTER", "2s")]).await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]));
    // Once this order is produced again, the scan has passed all ids of the past.
    api.place(&order).await.is(202);
    ingest.shows("stocklock_pending_orders_total", "produced", |produced| produced >= 1.0).await;
    for id in [aged(20), made_ago(TimeDelta::seconds(10)), made_ago(TimeDelta::hours(-3))] {
        put(&api, id, &order).await.is(202);
    }
    let store = world.order_store();
    wait_until("the events are on the topic", async || {
        store.outbox_state().await.expect("the outbox").pending == 0
    })
    .await;

    // Ingest produces no event meanwhile.
    ingest.freeze();
    world.truncate_topic(&world.config.topics.orders).await;
    ingest.thaw();
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;

    ingest.shows("stocklock_pending_oldest_seconds", "", |age| age == 0.0).await;
    assert_eq!(world.available("a"), 6);
    world.verify();
}

async fn an_order_that_cannot_be_read_fails_no_other_order(world: World) {
    world.import(&[("a", 50)]);
    let ingest = world.start("ingest").await;
    let (api, id, order) = (Api::of(&ingest), Uuid::now_v7(), lines(&[("a", 1)]));
    put(&api, id, &order).await.is(202);
    world.tamper_with_orders("SET sql_mode = ''; UPDATE orders SET status = ''").await;

    for _ in 0..3 {
        let others = (0..10).map(async |_| api.place(&order).await);
        let (unreadable, others) =
            tokio::join!(put(&api, id, &order), futures::future::join_all(others));

        unreadable.is(500);
        for other in others {
            other.is(202);
        }
    }
}
