//! Invalid requests: ingest refuses them and reports what was wrong, where, and what is allowed.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Api, Database, Role, Strategy, World, lines, wait_for};

async fn world() -> World {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    world.import(&[("a", 5), ("b", 5)]);
    world
}

fn line(product_id: &Value, quantity: &Value) -> Value {
    let good = json!({"product_id": "b", "quantity": 1});
    json!({"lines": [good, {"product_id": product_id, "quantity": quantity}]})
}

fn with(name: &str, value: &Value) -> Value {
    let mut order = lines(&[("a", 1)]);
    order[name] = value.clone();
    order
}

/// Every kind of invalid order with the field that is to blame.
fn invalid_orders() -> Vec<(Value, &'static [&'static str])> {
    let (a, one) = (json!("a"), json!(1));
    let too_long = json!("x".repeat(129));
    let mut invalid: Vec<(Value, &'static [&'static str])> = vec![
        (json!({}), &["/lines"]),
        (json!([]), &[""]),
        (json!({"lines": []}), &["/lines"]),
        (json!({"lines": {}}), &["/lines"]),
        (json!({"lines": vec![json!({"product_id": "a", "quantity": 1}); 101]}), &["/lines"]),
        (line(&json!("c"), &one), &["/lines/1/product_id"]),
        (
            lines(&[("c", 1), ("a", 1), ("d", 1), ("c", 1)]),
            &["/lines/0/product_id", "/lines/2/product_id", "/lines/3/product_id"],
        ),
        (line(&json!(1), &one), &["/lines/1/product_id"]),
        (json!({"lines": [{"quantity": 1}]}), &["/lines/0/product_id"]),
        (json!({"lines": [{"product_id": "a"}]}), &["/lines/0/quantity"]),
        (json!({"lines": [{"product_id": "a", "quantity": 1, "price": 2}]}), &["/lines/0/price"]),
        (with("cancelled", &json!(true)), &["/cancelled"]),
        (with("a/b~c", &json!(true)), &["/a~1b~0c"]),
        (with("reference", &too_long), &["/reference"]),
        (with("reference", &json!("")), &["/reference"]),
        (with("customer_id", &too_long), &["/customer_id"]),
        (with("customer_id", &json!(7)), &["/customer_id"]),
    ];
    for quantity in [
        json!(0),
        json!(-1),
        json!(1_000_001),
        json!(1.5),
        json!("1"),
        json!(u64::MAX),
        json!(null),
    ] {
        invalid.push((line(&a, &quantity), &["/lines/1/quantity"]));
    }
    for id in ["", "a b", "é", "a\n", &"a".repeat(65)] {
        invalid.push((line(&json!(id), &one), &["/lines/1/product_id"]));
    }
    invalid
}

fn not_looked_up(ingest: &Role) -> usize {
    ingest.log().matches("products not looked up").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_order_is_refused_with_the_fields_to_blame() {
    let world = world().await;
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);
    api.get("/v1/products/a").await.is(200);

    let mut unchecked = 0;
    for (order, blamed) in invalid_orders() {
        // If the stock store is slow, ingest accepts the order unchecked.
        let refused = wait_for(async || {
            let before = not_looked_up(&ingest);
            let answer = api.place_and_wait(&order, 1).await;
            if answer.status == 202 && not_looked_up(&ingest) > before {
                unchecked += 1;
                return Err(format!("accepted unchecked: {order}"));
            }
            Ok(answer.problem(422))
        })
        .await;
        assert_eq!(refused.blamed(), blamed, "{order}");
    }

    let several = json!({"lines": [{"product_id": "a b", "quantity": 0}], "extra": 1});
    assert_eq!(
        api.place(&several).await.blamed(),
        ["/extra", "/lines/0/product_id", "/lines/0/quantity"]
    );

    assert_eq!(world.count_orders("PENDING").await, unchecked);
    assert!(ingest.count("stocklock_orders_ingested_total", "invalid").await > 20);
    assert_eq!(
        ingest.count("stocklock_orders_ingested_total", "accepted").await.cast_signed(),
        unchecked
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limits_themselves_are_allowed() {
    let world = world().await;
    let ingest = world.start("ingest").await;
    let api = Api::of(&ingest);

    api.place(&json!({"lines": vec![json!({"product_id": "a", "quantity": 1_000_000}); 100]}))
        .await
        .is(202);
    api.place(&with("reference", &json!("é".repeat(128)))).await.is(202);
    api.place(&with("reference", &json!(null))).await.is(202);

    let order = lines(&[("a", 1)]).to_string();
    let largest = format!("{order}{}", " ".repeat((1 << 20) - order.len()));
    api.post(&largest, &[]).await.is(202);
    api.post(&format!("{largest} "), &[]).await.problem(413);
    // The client is still sending when the answer comes.
    api.post(&" ".repeat(32 << 20), &[]).await.problem(413);

    assert_eq!(world.count_orders("PENDING").await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_no_order_are_refused_each_with_its_status() {
    let world = world().await;
    let ingest = world.start("ingest").await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]).to_string());

    for body in ["", "lines", "{\"lines\":", &format!("{order}{order}")] {
        api.post(body, &[]).await.problem(400);
    }

    for (method, path, allowed) in [
        (Method::GET, "/v1/orders", "POST"),
        (Method::DELETE, "/v1/orders", "POST"),
        (Method::PATCH, "/v1/orders/1", "GET,HEAD,PUT"),
        (Method::POST, "/v1/products/a", "GET,HEAD"),
    ] {
        let refused = api.send(method, path, &[], &order).await.problem(405);
        assert_eq!(refused.header("allow"), allowed, "{path}");
    }

    for path in ["/", "/v1", "/v1/orders/", "/v1/orders/1/2", "/v2/orders", "/metrics"] {
        api.get(path).await.problem(404);
    }

    assert_eq!(world.count_orders("PENDING").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_openapi_document_is_served_and_names_every_route() {
    let world = world().await;
    let ingest = world.start("ingest").await;

    let served = Api::of(&ingest).get("/openapi.json").await.is(200).body;
    assert!(
        served["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")),
        "{served}"
    );

    let source =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ingest/api.rs"));
    let source = source.expect("the source");
    let routes: Vec<_> =
        source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();

    assert!(routes.contains(&"/v1/orders"), "{routes:?}");
    for route in routes {
        assert!(served["paths"].get(route).is_some(), "{route} is served and not documented");
    }

    let mut references = Vec::new();
    find_references(&served, &mut references);
    assert!(references.len() > 10);
    for reference in references {
        assert!(
            served.pointer(reference.trim_start_matches('#')).is_some(),
            "{reference} leads nowhere"
        );
    }
}

fn find_references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str));
            members.values().for_each(|member| find_references(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| find_references(item, found)),
        _ => {}
    }
}
