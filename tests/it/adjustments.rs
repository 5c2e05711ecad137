//! `POST /v1/stock/adjustments`, `stock adjust` and the lists of movements: stock changes all or
//! none, each request once, and the ledger explains it.

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Api, Database, Strategy, World, free_address, on_each_database, wait_until,
};

on_each_database!(
    all_adjustments_of_a_request_are_done_or_none,
    a_request_is_done_once_however_often_it_is_sent,
    a_request_of_rivals_is_done_once,
    a_refused_request_says_why_and_does_not_bind_its_id,
    movements_are_listed_page_by_page,
    the_command_adjusts_stock_and_lists_the_movements,
    old_requests_are_purged_and_the_ledger_still_balances,
);

fn delta(product: &str, delta: i64) -> Value {
    json!({"product_id": product, "delta": delta, "reason": "count"})
}

fn request(id: &str, adjustments: &[Value]) -> Value {
    json!({"request_id": id, "adjustments": adjustments})
}

/// The levels of an answer: product, available, version.
fn levels(answer: &Answer) -> Vec<(String, i64, i64)> {
    let products = answer.body["products"].as_array().expect("products");
    let number = |value: &Value| value.as_i64().expect("a number");
    let level = |product: &Value| {
        let id = product["product_id"].as_str().expect("an id").to_owned();
        (id, number(&product["available"]), number(&product["version"]))
    };
    products.iter().map(level).collect()
}

/// Fails the test unless all invariants hold. A broker that has just started does not know the
/// group of the workers at first.
fn verify(world: &World) {
    let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    assert_eq!(world.uncommitted(group, topic), 0, "no order was placed");
    world.verify();
}

async fn version(api: &Api, product: &str) -> i64 {
    let shown = api.get(&format!("/v1/products/{product}")).await.is(200).body;
    shown["version"].as_i64().expect("a version")
}

async fn all_adjustments_of_a_request_are_done_or_none(world: World) {
    world.import(&[("b", 5), ("a", 7)]);
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    let (a, b) = (version(&api, "a").await, version(&api, "b").await);
    let mut set = json!({"product_id": "a", "set": 20, "reason": "counted", "reference": "doc-1"});
    set["if_version"] = json!(a);

    let refused = api.adjust(&request("r-0", &[delta("a", 3), delta("b", -6)])).await.problem(409);
    let done = api.adjust(&request("r-1", &[delta("b", -5), set])).await.is(200);

    assert_eq!(refused.blamed(), ["/adjustments/1/delta"]);
    assert_eq!(done.body["request_id"], "r-1");
    assert_eq!(levels(&done), [("b".to_owned(), 0, b + 1), ("a".to_owned(), 20, a + 1)]);
    assert_eq!(done.header("idempotent-replayed"), "");
    assert_eq!((world.available("a"), world.available("b")), (20, 0));
    verify(&world);
}

async fn a_request_is_done_once_however_often_it_is_sent(world: World) {
    world.import(&[("a", 7)]);
    let (one, other) = (world.start("ingest").await, world.start("ingest").await);
    let (api, elsewhere) = (Api::of(&one), Api::of(&other));
    let wanted = request("r-1", &[json!({"product_id": "a", "delta": 2, "reason": "count"})]);
    let reordered = r#" {"adjustments":[{"reason":"count","reference":null,"delta":2.0,
                         "product_id":"a"}], "request_id":"r-1"}"#;

    let first = api.adjust(&wanted).await.is(200);
    api.adjust(&request("r-2", &[delta("a", 10)])).await.is(200);
    let again = elsewhere.adjust(&wanted).await.is(200);
    let same = api.send(Method::POST, "/v1/stock/adjustments", &[], reordered).await.is(200);
    let other = api.adjust(&request("r-1", &[delta("a", 3)])).await.problem(422);

    for repeated in [&again, &same] {
        assert_eq!(repeated.body, first.body, "the answer of the first time");
        assert_eq!(repeated.header("idempotent-replayed"), "true");
    }
    assert_eq!(other.blamed(), ["/request_id"]);
    assert_eq!(world.available("a"), 19);
    verify(&world);
}

/// The same request at the same instant, and with a version that only the first can find.
async fn a_request_of_rivals_is_done_once(world: World) {
    world.import(&[("a", 0), ("b", 0)]);
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);

    for round in 0..20 {
        let mut versioned = delta("a", 1);
        versioned["if_version"] = json!(version(&api, "a").await);
        let wanted = request(&format!("r-{round}"), &[versioned]);
        let other = request(&format!("r-{round}"), &[delta("b", 1)]);
        let sent = [&wanted, &wanted, &other, &wanted, &wanted];
        let answers = join_all(sent.map(|request| api.adjust(request))).await;

        let done: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
        let refused = answers.iter().filter(|answer| answer.status == 422).count();
        let is_first = |answer: &&&Answer| answer.header("idempotent-replayed").is_empty();
        assert_eq!(done.len() + refused, 5, "{answers:?}");
        assert_eq!(done.iter().filter(is_first).count(), 1, "{answers:?}");
        assert!(done.iter().all(|answer| answer.body == done[0].body), "{answers:?}");
    }

    assert_eq!(world.available("a") + world.available("b"), 20);
    verify(&world);
}

async fn a_refused_request_says_why_and_does_not_bind_its_id(world: World) {
    world.import(&[("a", 1), ("b", 9_007_199_254_740_991)]);
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    let a = version(&api, "a").await;
    let old = json!({"product_id": "a", "set": 5, "if_version": a + 7, "reason": "count"});

    let stale = api.adjust(&request("r", &[old, delta("b", 1)])).await.problem(409);
    let unknown = api.adjust(&request("r", &[delta("a", -9), delta("c", 1)])).await.problem(422);
    let below = api.adjust(&request("r", &[delta("a", -2)])).await.problem(409);
    world.cli(&["stock", "restock", "a", "1"]).succeeds();
    let done = api.adjust(&request("r", &[delta("a", -2)])).await.is(200);

    assert_eq!(stale.blamed(), ["/adjustments/0/if_version", "/adjustments/1/delta"]);
    let reason = |answer: &Answer, index: usize| answer.body["products"][index]["reason"].clone();
    assert_eq!(stale.body["products"][0]["version"], json!(a));
    assert_eq!(
        (reason(&stale, 0), reason(&stale, 1)),
        ("OTHER_VERSION".into(), "ABOVE_MAX".into())
    );
    assert_eq!(unknown.blamed(), ["/adjustments/1/product_id"]);
    assert_eq!(reason(&below, 0), "BELOW_ZERO");
    assert_eq!(levels(&done), [("a".to_owned(), 0, a + 2)]);
    verify(&world);
}

async fn movements_are_listed_page_by_page(world: World) {
    world.import(&[("a", 7), ("b", 1)]);
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    for number in 0..150 {
        let mut adjustment = delta("a", 1 + number % 2);
        adjustment["reference"] = json!(format!("doc {number} 😀\u{0}\t\"\\'"));
        api.adjust(&request(&format!("r-{number}"), &[adjustment, delta("b", 1)])).await.is(200);
    }

    let first = api.get("/v1/products/a/movements").await.is(200).body;
    let next = format!("/v1/products/a/movements?after={}", first["next"]);
    let second = api.get(&next).await.is(200).body;

    let listed = [&first, &second].map(|page| page["movements"].as_array().expect("a page"));
    assert_eq!((listed[0].len(), listed[1].len()), (100, 51));
    assert_eq!(second.get("next"), None);
    let all: Vec<_> = listed.into_iter().flatten().collect();
    let ids: Vec<_> = all.iter().map(|m| m["movement_id"].as_i64().expect("an id")).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    let units = |movement: &&Value| movement["quantity"].as_i64().expect("units");
    assert_eq!(all.iter().map(units).sum::<i64>(), world.available("a"));
    assert_eq!((&all[0]["kind"], all[0].get("request_id")), (&json!("IMPORT"), None));
    let last = all[150];
    assert_eq!((&last["kind"], &last["reason"]), (&json!("ADJUST"), &json!("count")));
    assert_eq!(
        (&last["reference"], &last["request_id"]),
        (&json!("doc 149 😀\u{0}\t\"\\'"), &json!("r-149"))
    );
    api.get("/v1/products/c/movements").await.problem(404);
    for malformed in ["x", "-1", "1.5", "9007199254740992", "99999999999999999999", ""] {
        api.get(&format!("/v1/products/a/movements?after={malformed}")).await.problem(400);
    }
}

async fn the_command_adjusts_stock_and_lists_the_movements(world: World) {
    world.import(&[("a", 7)]);
    let adjust =
        |args: &[&str]| world.cli(&[&["--output", "json", "stock", "adjust", "a"], args].concat());

    let done = adjust(&["+5", "--reason", "found", "--request-id", "r-1"]).succeeds().json();
    let again = adjust(&["+5", "--reason", "found", "--request-id", "r-1"]).succeeds().json();
    let version = done["version"].to_string();
    let removed = adjust(
        &["-2", "--reason", "broken", "--reference", "doc", "--if-version"]
            .into_iter()
            .chain([version.as_str()])
            .collect::<Vec<_>>(),
    )
    .succeeds()
    .json();
    let set = adjust(&["--to", "3", "--reason", "counted"]).succeeds().json();

    assert_eq!((&done["available"], &done["request_id"]), (&json!(12), &json!("r-1")));
    assert_eq!(again, done);
    assert_eq!((&removed["available"], &set["available"]), (&json!(10), &json!(3)));
    for (args, complaint) in [
        (&["-4", "--reason", "broken"][..], "cannot fall below 0"),
        (&["+1", "--reason", "late", "--if-version", &version], "has version"),
        (&["+6", "--reason", "found", "--request-id", "r-1"], "another request r-1"),
    ] {
        let error = adjust(args).exits(1).stderr();
        assert!(error.contains(complaint), "{error}");
    }
    for wrong in [
        &["+5"][..],
        &["--reason", "x"],
        &["+5", "--to", "1", "--reason", "x"],
        &["0", "--reason", "x"],
        &["+5", "--reason", "x", "--request-id", "a b"],
    ] {
        adjust(wrong).exits(2);
    }
    world.cli(&["stock", "adjust", "z", "1", "--reason", "x"]).exits(1);
    let movements = world.cli(&["--output", "json", "stock", "movements", "a"]).succeeds().json();
    let units: Vec<_> = movements.as_array().expect("a list").iter().collect();
    let quantities: Vec<_> = units.iter().map(|movement| movement["quantity"].clone()).collect();
    assert_eq!(quantities, [7, 5, -2, -7]);
    assert_eq!((&units[2]["reference"], &units[2]["reason"]), (&json!("doc"), &json!("broken")));
    let text = world.cli(&["stock", "movements", "a"]).succeeds().stdout();
    assert_eq!(text.lines().count(), 4);
    world.cli(&["stock", "movements", "z"]).exits(1);
    verify(&world);
}

async fn old_requests_are_purged_and_the_ledger_still_balances(world: World) {
    world.import(&[("a", 7)]);
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    for number in 0..5 {
        api.adjust(&request(&format!("r-{number}"), &[delta("a", 2)])).await.is(200);
    }
    let age = "UPDATE adjustment_requests SET created_at = created_at - INTERVAL 100 DAY
               WHERE request_id <> 'r-4';
               UPDATE stock_movements SET created_at = created_at - INTERVAL 100 DAY
               WHERE request_id IS NULL OR request_id <> 'r-4'";
    world.tamper_with_stock(age).await;

    let worker = world.start("worker").await;
    for (table, rows) in [("stock_movements", 5), ("adjustment_requests", 4)] {
        let purged =
            async || worker.count("stocklock_retention_deleted_total", table).await == rows;
        wait_until(table, purged).await;
    }

    let movements = api.get("/v1/products/a/movements").await.is(200).body;
    assert_eq!(movements["movements"].as_array().map(Vec::len), Some(1));
    let kept = api.adjust(&request("r-4", &[delta("a", 2)])).await.is(200);
    assert_eq!(kept.header("idempotent-replayed"), "true");
    verify(&world);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_loopback_adjustments_need_a_setting() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 7)]);
    let address = free_address();
    let listen = address.replace("127.0.0.1", "0.0.0.0");
    let start = async |allowed: &str| {
        let settings = [
            ("STOCKLOCK__HTTP__LISTEN", listen.as_str()),
            ("STOCKLOCK__AUTH__ANONYMOUS_STOCK", allowed),
        ];
        let mut role = world.start_with("ingest", &settings).await;
        role.http = format!("http://{address}");
        role
    };

    let closed = start("false").await;
    let refused = Api::of(&closed).adjust(&request("r", &[delta("a", 1)])).await;
    closed.stop();
    let open = start("true").await;
    let done = Api::of(&open).adjust(&request("r", &[delta("a", 1)])).await;

    refused.problem(403);
    done.is(200);
    assert_eq!(world.available("a"), 8);
}
