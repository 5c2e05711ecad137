//! `stocklock verify` over more rows than a page has, and over a part of the orders.

use chrono::{SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::harness::{World, aged, deliver, on_each_database, order_lines};

/// Rows of each kind: more than one page has of them.
const ROWS: u64 = 6_000;

fn report(world: &World, args: &[&str], status: i32) -> Value {
    let verify = ["--output", "json", "verify", "--settle", "0s"];
    world.cli(&[&verify[..], args].concat()).exits(status).json()
}

/// Inserts `ROWS` rows with the ids of odd or of even milliseconds of the last minutes.
fn insert(table: &str, columns: &str, values: &str, is_even: bool) -> String {
    let first = (Utc::now() - TimeDelta::minutes(5)).timestamp_millis() / 2 * 2;
    let first = first + i64::from(!is_even);
    format!(
        "INSERT INTO {table} (order_id, {columns})
         WITH RECURSIVE numbers AS (
             SELECT 0 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {ROWS})
         SELECT UNHEX(CONCAT(LPAD(HEX({first} + 2 * n), 12, '0'), '7000', '8000000000000000')),
             {values} FROM numbers"
    )
}

/// Lets a recursive query have as many rows as the tests need, on both databases.
const DEEP: &str = "SET SESSION /*!80000 cte_max_recursion_depth = 100000, */
    /*M! max_recursive_iterations = 100000, */ sql_mode = 'STRICT_ALL_TABLES';";

on_each_database!(
    rows_of_one_store_alone_are_found_on_every_page,
    orders_in_both_stores_are_compared_on_every_page,
    since_leaves_out_older_orders_and_no_balance,
    an_outcome_has_all_units_of_its_order_or_none,
);

/// Outcomes, holds and owed releases without an order lie between orders without an outcome.
async fn rows_of_one_store_alone_are_found_on_every_page(world: World) {
    let orders = insert(
        "orders",
        "status, `lines`, created_at, updated_at",
        r#"'COMPLETED', '[["a",1]]', NOW(3), NOW(3)"#,
        true,
    );
    let outcomes = insert(
        "order_outcomes",
        "outcome, reason, `lines`, decided_at",
        "'FAILED', 'UNKNOWN_PRODUCT', '[]', NOW(3)",
        false,
    );
    let holds = insert("holds", "expires_at", "NOW(3)", false);
    let owed = insert("owed_releases", "owed_at, due_at", "NOW(3), NOW(3)", false);
    let kinds = |found: &Value| {
        let totals = &found["totals"];
        (found["orders"].clone(), found["outcomes"].clone(), totals["violations"].clone())
    };

    world.tamper_with_orders(&format!("{DEEP} {orders}")).await;
    assert_eq!(kinds(&report(&world, &[], 1)), (json!(ROWS), json!(0), json!(ROWS)));

    world.tamper_with_stock(&format!("{DEEP} {outcomes}")).await;
    let found = report(&world, &[], 1);
    assert_eq!(kinds(&found), (json!(ROWS), json!(ROWS), json!(2 * ROWS)));
    assert_eq!(found["violations"].as_array().map(Vec::len), Some(1_000), "the others are counted");

    world.tamper_with_orders("DELETE FROM orders").await;
    assert_eq!(kinds(&report(&world, &[], 1)), (json!(0), json!(ROWS), json!(ROWS)));

    world.tamper_with_stock("DELETE FROM order_outcomes").await;
    world.tamper_with_orders(&format!("{DEEP} {holds}")).await;
    assert_eq!(kinds(&report(&world, &[], 1)), (json!(0), json!(0), json!(ROWS)));

    world.tamper_with_orders(&format!("DELETE FROM holds; {DEEP} {owed}")).await;
    assert_eq!(kinds(&report(&world, &[], 1)), (json!(0), json!(0), json!(ROWS)));
}

async fn orders_in_both_stores_are_compared_on_every_page(world: World) {
    let orders = insert(
        "orders",
        "status, reason, `lines`, created_at, updated_at",
        r#"'FAILED', 'UNKNOWN_PRODUCT', '[["a",1]]', NOW(3), NOW(3)"#,
        true,
    );
    world.tamper_with_orders(&format!("{DEEP} {orders}")).await;
    let own = world.config.order_store.url.expose().rsplit('/').next().expect("a path");
    let orders = own.split('?').next().expect("a name");
    let outcomes = format!(
        "INSERT INTO order_outcomes (order_id, outcome, reason, `lines`, decided_at)
         SELECT order_id, status, reason, '[]', NOW(3) FROM {orders}.orders"
    );
    world.tamper_with_stock(&outcomes).await;

    let healthy = report(&world, &[], 0);
    world
        .tamper_with_orders("UPDATE orders SET status = 'PENDING' ORDER BY order_id DESC LIMIT 5")
        .await;
    let open = report(&world, &[], 2);

    assert_eq!((&healthy["orders"], &healthy["outcomes"]), (&json!(ROWS), &json!(ROWS)));
    assert_eq!(open["totals"]["unsettled"], json!(5));
    let why = open["unsettled"][0][1].as_str().expect("a text");
    assert_eq!(why, "decided, and its status has not reached the order store yet");
    let text = world.cli(&["verify", "--settle", "0s"]).exits(2).stdout();
    assert_eq!(text.matches("NOT SETTLED").count(), 5, "{text}");
}

async fn since_leaves_out_older_orders_and_no_balance(world: World) {
    world.import(&[("a", 9)]);
    let aged = [3, 1, 0].map(|days| (aged(days), order_lines(&[("a", 1)])));
    let orders = world.save_as(aged.to_vec()).await;
    deliver(&world.worker(&World::metrics()), &orders).await;
    world.tamper_with_orders("UPDATE orders SET status = 'COMPLETED'").await;
    world.produce_events(&orders).await;
    let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    world.commit_beyond_the_end(group, topic, 0);
    let day = Utc::now() - TimeDelta::hours(36);
    let day = day.to_rfc3339_opts(SecondsFormat::Secs, true);

    // The two younger orders are checked, and the balances of all.
    let found = report(&world, &["--since", &day], 0);
    assert_eq!((&found["orders"], &found["outcomes"]), (&json!(2), &json!(3)));
    assert_eq!(report(&world, &["--since", "36h"], 0)["orders"], json!(2));
    assert!(found["left_out"].to_string().contains(&format!("orders before {day}: --since")));

    let outcomes = "DELETE FROM order_outcomes ORDER BY order_id LIMIT 1";
    world.tamper_with_stock(outcomes).await;
    let invariants = |found: &Value| {
        let violations = found["violations"].as_array().expect("a list").clone();
        violations.into_iter().map(|violation| violation["invariant"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(invariants(&report(&world, &["--since", "36h"], 1)), [json!(2)]);
    assert_eq!(
        invariants(&report(&world, &["--since", "100d"], 1)),
        [json!(3), json!(2), json!(7)]
    );
    assert_eq!(invariants(&report(&world, &[], 1)), [json!(3), json!(2), json!(7)]);
    for wrong in ["yesterday", "2026-01-31", "-1h"] {
        let refused = world.cli(&["verify", &format!("--since={wrong}")]).exits(2).stderr();
        assert!(refused.contains("an RFC 3339 time such as"), "{refused}");
    }
}

async fn an_outcome_has_all_units_of_its_order_or_none(world: World) {
    world.import(&[("a", 9), ("b", 9)]);
    let orders = world.save(&[order_lines(&[("a", 2), ("b", 1)])]).await;
    deliver(&world.worker(&World::metrics()), &orders).await;
    world.tamper_with_orders("UPDATE orders SET status = 'COMPLETED'").await;
    report(&world, &[], 0);
    let id = orders[0].order_id;
    let released = "UPDATE products SET available = 9";
    let damages = [
        (
            "released_at = NOW(3)",
            "UPDATE products SET available = available",
            "its stock was released, and is held again",
        ),
        (
            "outcome = 'FAILED', reason = 'UNKNOWN_PRODUCT', released_at = NULL",
            released,
            "the worker refused it, and its outcome has units",
        ),
        (
            r#"outcome = 'RELEASED', reason = NULL, `lines` = '[["a",2]]'"#,
            released,
            "asks for Demand([(a, 2), (b, 1)]), released Demand([(a, 2)])",
        ),
    ];

    for (outcome, stock, detail) in damages {
        world.tamper_with_stock(&format!("UPDATE order_outcomes SET {outcome}; {stock}")).await;
        let found = report(&world, &[], 1);
        let named = json!({"invariant": 5, "subject": format!("order {id}"), "detail": detail});
        let violations = found["violations"].as_array().expect("a list");
        assert!(violations.contains(&named), "{found:#}");
    }
}
