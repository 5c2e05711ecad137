//! Ingest while one of its dependencies is away: an order is accepted and durable, or it is refused
//! and not saved.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{
    Api, Database, PATIENCE, Proxy, Strategy, World, lines, on_each_database, wait_until,
};

/// Where nobody listens.
const NOWHERE: &str = "127.0.0.1:9";

on_each_database!(with_the_stock_store_away_the_worker_decides_about_unknown_products,);

async fn with_the_stock_store_away_the_worker_decides_about_unknown_products(world: World) {
    world.import(&[("a", 5)]);
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    let nowhere = format!("mysql://u:p@{NOWHERE}/stock");
    let ingest = world.start_with("ingest", &[("STOCKLOCK__STOCK_STORE__URL", &nowhere)]).await;
    let api = Api::of(&ingest);

    let unchecked = api.place(&lines(&[("a", 1), ("unknown", 1)])).await.is(202);
    let failed = api.decided(unchecked.order_id()).await;
    assert_eq!(
        (&failed["status"], &failed["reason"]),
        (&json!("FAILED"), &json!("UNKNOWN_PRODUCT"))
    );

    let refused = api.place_and_wait(&lines(&[("unknown", 1)]), 30).await.problem(409);
    assert_eq!(refused.body["reason"], "UNKNOWN_PRODUCT");
    api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);

    let away = api.get("/v1/products/a").await.problem(503);
    assert!(away.header("retry-after").parse::<u64>().is_ok(), "{away:?}");
    api.get("/v1/products/a/movements").await.problem(503);
    let adjustment = json!({"product_id": "a", "delta": 1, "reason": "count"});
    api.adjust(&json!({"request_id": "r", "adjustments": [adjustment]})).await.problem(503);

    assert_eq!(world.available("a"), 4);
    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_kafka_away_an_order_waits_in_the_outbox_for_a_later_sweep() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    let cut_off = world.start_with("ingest", &[("STOCKLOCK__KAFKA__BROKERS", NOWHERE)]).await;
    let accepted = Api::of(&cut_off).place(&lines(&[("a", 2)])).await.is(202);
    cut_off.shows("stocklock_outbox_pending", "", |pending| pending >= 1.0).await;
    assert_eq!(world.count_orders("PENDING").await, 1);
    cut_off.kill();

    let mended = world.start("ingest").await;
    assert_eq!(Api::of(&mended).decided(accepted.order_id()).await["status"], "COMPLETED");
    assert_eq!(world.available("a"), 3);
    world.verify();
    mended.shows("stocklock_outbox_pending", "", |pending| pending == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_order_store_away_orders_are_refused_until_it_is_back() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let (store, url) = Proxy::before(world.config.order_store.url.expose()).await;
    let ingest = world.start_with("ingest", &[("STOCKLOCK__ORDER_STORE__URL", &url)]).await;
    let api = Api::of(&ingest);
    let before = api.place(&lines(&[("a", 1)])).await.is(202);

    store.cut();
    let refused = api.place(&lines(&[("a", 1)])).await.problem(503);
    assert!(refused.header("retry-after").parse::<u64>().is_ok(), "{refused:?}");
    api.get(before.header("location")).await.problem(503);

    store.mend();
    ingest.ready().await;
    api.get(before.header("location")).await.is(200);
    wait_until("an order is accepted", async || api.place(&lines(&[("a", 1)])).await.status == 202)
        .await;

    assert_eq!(world.count_orders("PENDING").await, 2);
}

/// The answer tells apart what is surely not saved, which may be sent again, from what may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_may_be_sent_again_is_not_saved() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let (store, url) = Proxy::before(world.config.order_store.url.expose()).await;
    let settings = [
        ("STOCKLOCK__ORDER_STORE__URL", url.as_str()),
        ("STOCKLOCK__INGEST__GROUP_MAX", "1"),
        ("STOCKLOCK__INGEST__DEADLINE", "1s"),
    ];
    let ingest = world.start_with("ingest", &settings).await;
    let api = Api::of(&ingest);
    let order = lines(&[("a", 1)]);

    let (mut accepted, mut unknown, mut round) = (0, 0, 0);
    let (begun, mut took) = (Instant::now(), Duration::from_millis(8));
    // A cut comes some time in what it takes to place an order here and now.
    while round < 8 || unknown == 0 {
        assert!(begun.elapsed() < PATIENCE, "no commit was broken off");
        round += 1;
        let placing = futures::future::join_all((0..8).map(|_| api.place(&order)));
        let fault = async {
            // The moment of the cut is what is tested.
            tokio::time::sleep(took * (1 + round % 7) / 4).await;
            store.cut();
        };
        let (answers, ()) = tokio::join!(placing, fault);
        for answer in answers {
            match answer.status {
                202 => accepted += 1,
                504 => {
                    assert!(answer.body["order_id"].is_string(), "{answer:?}");
                    unknown += 1;
                }
                _ => drop(answer.problem(503)),
            }
        }
        store.mend();
        // Ingest takes orders again once it knows that the store is back.
        loop {
            let asked = Instant::now();
            let answer = api.place(&order).await;
            if answer.status == 202 {
                took = asked.elapsed();
                break;
            }
            answer.problem(503);
            assert!(begun.elapsed() < PATIENCE, "no order is taken");
        }
        accepted += 1;
    }

    let saved = world.count_orders("PENDING").await;
    assert!(saved >= accepted, "{accepted} were acknowledged, {saved} are saved");
    assert!(
        saved <= accepted + unknown,
        "{saved} are saved, but only {accepted} and perhaps {unknown} should be"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_to_a_store_that_hangs_is_answered_all_the_same() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let (store, url) = Proxy::before(world.config.stock_store.url.expose()).await;
    let ingest = world.start_with("ingest", &[("STOCKLOCK__STOCK_STORE__URL", &url)]).await;
    let api = Api::of(&ingest);
    api.get("/v1/products/a").await.is(200);

    store.hang();
    let begun = Instant::now();
    // The first holds the connection that hangs, the second needs a new one, which hangs as well.
    let (first, second) = tokio::join!(api.get("/v1/products/a"), api.get("/v1/products/a"));

    let _both = (first.problem(503), second.problem(503));
    assert!(begun.elapsed() < Duration::from_secs(45), "it took {:?}", begun.elapsed());

    store.mend();
    api.get("/v1/products/a").await.is(200);
}
