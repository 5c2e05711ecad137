//! `stocklock verify` holds on a healthy world, and finds every damage done behind the project's
//! back.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{Connection as _, MySqlConnection};
use url::Url;

use crate::harness::{Api, Masters, PATIENCE, Rival, World, lines, on_each_database};

/// Damage to one of the stores, the invariant that it violates, and the subject that `verify` must
/// name.
struct Damage {
    store: Store,
    sql: &'static str,
    invariant: u8,
    subject: Subject,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Store {
    Orders,
    Stock,
}

enum Subject {
    Product(&'static str),
    Completed,
    Failed,
}

const TABLES: [(Store, &str); 4] = [
    (Store::Orders, "orders"),
    (Store::Stock, "products"),
    (Store::Stock, "order_outcomes"),
    (Store::Stock, "stock_movements"),
];

const DAMAGES: [Damage; 13] = [
    Damage::of_stock(
        "UPDATE products SET available = available + 1 WHERE product_id = 'a'",
        2,
        Subject::Product("a"),
    ),
    Damage::of_stock(
        "UPDATE stock_movements SET quantity = 7 WHERE product_id = 'b'",
        2,
        Subject::Product("b"),
    ),
    Damage::of_stock(
        "DELETE FROM stock_movements WHERE product_id = 'a'",
        2,
        Subject::Product("a"),
    ),
    Damage::of_stock("DELETE FROM products WHERE product_id = 'b'", 2, Subject::Product("b")),
    Damage::of_stock(
        r#"UPDATE order_outcomes SET `lines` = '[["a",1],["b",1]]' WHERE outcome = 'COMPLETED'"#,
        5,
        Subject::Completed,
    ),
    Damage::of_stock(
        r#"UPDATE order_outcomes SET `lines` = '[["a",1],["b",1]]' WHERE outcome = 'COMPLETED'"#,
        2,
        Subject::Product("a"),
    ),
    Damage::of_stock(
        r#"UPDATE order_outcomes SET `lines` = '[["a",2],["b"' WHERE outcome = 'COMPLETED'"#,
        4,
        Subject::Completed,
    ),
    Damage::of_stock(
        "DELETE FROM order_outcomes WHERE outcome = 'COMPLETED'",
        3,
        Subject::Completed,
    ),
    Damage::of_stock(
        "UPDATE order_outcomes SET outcome = 'RELEASED' WHERE outcome = 'COMPLETED'",
        3,
        Subject::Completed,
    ),
    Damage::of_stock(
        "UPDATE order_outcomes SET outcome = 'FAILED' WHERE outcome = 'COMPLETED'",
        3,
        Subject::Completed,
    ),
    Damage::of_orders(
        "UPDATE orders SET status = 'COMPLETED' WHERE status = 'FAILED'",
        3,
        Subject::Failed,
    ),
    Damage::of_orders(
        r#"UPDATE orders SET `lines` = '[["a",2],["b"' WHERE status = 'COMPLETED'"#,
        3,
        Subject::Completed,
    ),
    Damage::of_orders("DELETE FROM orders WHERE status = 'COMPLETED'", 3, Subject::Completed),
];

impl Damage {
    const fn of_stock(sql: &'static str, invariant: u8, subject: Subject) -> Self {
        Self { store: Store::Stock, sql, invariant, subject }
    }

    const fn of_orders(sql: &'static str, invariant: u8, subject: Subject) -> Self {
        Self { store: Store::Orders, sql, invariant, subject }
    }
}

impl Store {
    async fn run(self, world: &World, sql: &str) {
        match self {
            Self::Orders => world.tamper_with_orders(sql).await,
            Self::Stock => world.tamper_with_stock(sql).await,
        }
    }
}

/// A world with one completed order, a×2 and b×1, and one refused order. Returns their ids.
async fn decided(world: &World) -> (String, String) {
    world.import(&[("a", 3), ("b", 1)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    let completed = api.place_and_wait(&lines(&[("a", 2), ("b", 1)]), 30).await.is(201);
    let failed = api.place_and_wait(&lines(&[("a", 1), ("b", 1)]), 30).await.is(409);
    let ids = (completed.order_id().to_owned(), failed.order_id().to_owned());
    all.stop();
    ids
}

/// Runs a long statement in a transaction, with a character in it that MySQL's lists of sessions
/// and of transactions cannot show (error 3854). Returns the id of its connection.
async fn run_what_cannot_be_listed(world: &World) -> u64 {
    let mut conn = MySqlConnection::connect(world.config.stock_store.url.expose())
        .await
        .expect("a connection");
    let id =
        sqlx::query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut conn).await.expect("an id");
    sqlx::raw_sql("START TRANSACTION").execute(&mut conn).await.expect("begun");
    tokio::spawn(async move {
        let sleeping = sqlx::query("SELECT SLEEP(600), '\u{1f600}' FROM products LIMIT 1");
        sleeping.fetch_all(&mut conn).await.expect_err("it is killed");
    });
    id
}

/// Waits until the server cannot list its transactions. MariaDB always can.
async fn is_not_listed(world: &World) {
    let begun = Instant::now();
    while let (true, false) = lists_transactions(world).await {
        assert!(begun.elapsed() < PATIENCE, "MySQL lists the statement");
        // InnoDB renews the list only where nobody has read it for 100 ms.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Whether the server lists transactions at the moment, and whether it is one that always does.
async fn lists_transactions(world: &World) -> (bool, bool) {
    let mut conn = MySqlConnection::connect(world.config.stock_store.url.expose())
        .await
        .expect("a connection");
    let version: String =
        sqlx::query_scalar("SELECT VERSION()").fetch_one(&mut conn).await.expect("a version");
    let listed =
        sqlx::query("SELECT COUNT(*) FROM information_schema.innodb_trx").execute(&mut conn).await;
    (listed.is_ok(), version.contains("MariaDB"))
}

fn report(world: &World, settle: &str, status: i32) -> Value {
    world.cli(&["--output", "json", "verify", "--settle", settle]).exits(status).json()
}

/// The report of a healthy world, without the number of events: an event may come twice.
fn healthy_report(world: &World) -> Value {
    let mut report = report(world, "5s", 0);
    let events = report.as_object_mut().and_then(|report| report.remove("events"));
    assert!(events.is_some_and(|events| events.as_u64() >= Some(2)), "{report}");
    report
}

on_each_database!(
    locks_and_transactions_that_outlive_their_ttl_are_found,
    an_invariant_without_the_right_to_check_it_is_not_reported_as_held,
    every_damage_is_found_and_its_row_is_named,
);

async fn locks_and_transactions_that_outlive_their_ttl_are_found(world: World) {
    let mut world = world;
    let masters = Masters::start(3).await;
    masters.serve(&mut world);
    for (key, value) in [("STRATEGY", "redlock"), ("TTL", "1s")] {
        world.env.insert(format!("STOCKLOCK__LOCK__{key}"), value.to_owned());
    }
    world.import(&[("a", 5)]);
    let prefix = world.config.lock.prefix.clone();

    masters.set(0, &format!("{prefix}a"), Some(Duration::from_millis(900))).await;
    world.verify();

    masters.set(1, &format!("{prefix}b"), Some(Duration::from_secs(60))).await;
    masters.set(2, &format!("{prefix}c"), None).await;
    let holder = Rival::rename(&world, "a").await;
    // The age of the transaction is what is tested.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let unlisted = run_what_cannot_be_listed(&world).await;
    is_not_listed(&world).await;
    let mut killer = MySqlConnection::connect(world.config.stock_store.url.expose())
        .await
        .expect("a connection");
    let killing = tokio::spawn(async move {
        // `verify` meets the statement first, and repeats until the server lists its transactions.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let kill = format!("KILL {unlisted}");
        sqlx::query(&kill).execute(&mut killer).await.expect("killed");
    });

    let found = report(&world, "0s", 1)["violations"].as_array().expect("violations").clone();
    let details: Vec<_> =
        found.iter().map(|violation| violation["detail"].as_str().expect("text")).collect();
    assert!(found.iter().all(|violation| violation["invariant"] == 6), "{found:?}");
    assert_eq!(details.len(), 3, "{found:?}");
    assert_eq!(found[0]["subject"], json!(format!("key {prefix}b")));
    assert!(details[1].starts_with("lives for ever on master 2"), "{found:?}");
    assert!(details[2].contains("in a transaction"), "{found:?}");

    killing.await.expect("killed");
    holder.commit().await;
    masters.set(1, &format!("{prefix}b"), Some(Duration::from_millis(1))).await;
    masters.set(2, &format!("{prefix}c"), Some(Duration::from_millis(1))).await;
    world.verify();

    masters.freeze(1).await;
    let unchecked = report(&world, "0s", 2)["unchecked"].to_string();
    assert!(
        unchecked.contains("the locks in Redis") && unchecked.contains("does not answer"),
        "{unchecked}"
    );
}

async fn an_invariant_without_the_right_to_check_it_is_not_reported_as_held(world: World) {
    let mut url = Url::parse(world.config.stock_store.url.expose()).expect("a URL");
    let user = url.path().trim_start_matches('/').to_owned();
    url.set_username(&user).expect("a user");
    url.set_password(Some("secret")).expect("a password");

    let may_read = format!(
        "CREATE USER '{user}' IDENTIFIED BY 'secret'; GRANT ALL ON *.* TO '{user}';
         REVOKE PROCESS ON *.* FROM '{user}'"
    );
    world.tamper_with_stock(&may_read).await;

    let read = [
        "--output",
        "json",
        "verify",
        "--settle",
        "0s",
        "--set",
        &format!("stock_store.url={url}"),
    ];
    let found = world.cli(&read).exits(2).json();
    let without = world.cli(&[&read[..], &["--without", "6"]].concat()).exits(0).json();
    world.tamper_with_stock(&format!("DROP USER '{user}'")).await;

    let forbidden = found["forbidden"][0].as_str().expect("said");
    assert!(forbidden.contains("stock_store") && forbidden.contains("PROCESS"), "{found:#}");
    assert_eq!((&found["holds"], &without["holds"]), (&json!(false), &json!(true)));
    assert!(without["left_out"].to_string().contains("--without 6"), "{without:#}");
    assert_eq!(report(&world, "0s", 0)["forbidden"], json!([]));
}

async fn every_damage_is_found_and_its_row_is_named(world: World) {
    let (completed, failed) = decided(&world).await;
    let healthy = json!({
        "since": null, "products": 2, "outcomes": 2, "orders": 2, "holds": true,
        "totals": {"violations": 0, "unsettled": 0, "dead_lettered": 0},
        "violations": [], "unsettled": [], "dead_lettered": [], "unchecked": [], "forbidden": [],
        "left_out": ["the locks in Redis: lock.strategy is row"]
    });
    assert_eq!(healthy_report(&world), healthy);

    for (store, table) in TABLES {
        store.run(&world, &format!("CREATE TABLE kept_{table} AS SELECT * FROM {table}")).await;
    }

    for Damage { store, sql, invariant, subject } in DAMAGES {
        store.run(&world, sql).await;
        let subject = match subject {
            Subject::Product(id) => format!("product {id}"),
            Subject::Completed => format!("order {completed}"),
            Subject::Failed => format!("order {failed}"),
        };
        let found = report(&world, "5s", 1);
        let violations = found["violations"].as_array().expect("violations");
        let named =
            violations.iter().any(|v| v["invariant"] == invariant && v["subject"] == subject);
        assert!(named && found["holds"] == false, "{sql}\n{subject} is not named: {found:#}");
        let undecided =
            violations.iter().any(|v| v["detail"] == "is COMPLETED, and no worker decided it");
        assert_eq!(undecided, sql.starts_with("DELETE FROM order_outcomes"), "{sql}\n{found:#}");
        let text = world.cli(&["verify"]).exits(1).stdout();
        assert!(
            text.contains(&format!("VIOLATED invariant {invariant}: {subject}")),
            "{sql}\n{text}"
        );
        for (store, table) in TABLES {
            let restore =
                format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table}");
            store.run(&world, &restore).await;
        }
    }

    assert_eq!(healthy_report(&world), healthy, "the damages were undone one by one");
}

on_each_database!(stock_below_zero_cannot_be_written,);

async fn stock_below_zero_cannot_be_written(world: World) {
    world.import(&[("a", 3)]);
    let refused =
        world.try_stock("UPDATE products SET available = -1 WHERE product_id = 'a'").await;

    let error = refused.expect_err("the CHECK refuses it").to_string();
    assert!(error.contains("available_is_not_negative"), "{error}");
    world.verify();
}

on_each_database!(orders_in_flight_are_unsettled_and_completed_ones_must_be_decided,);

async fn orders_in_flight_are_unsettled_and_completed_ones_must_be_decided(world: World) {
    world.import(&[("a", 3)]);
    let ingest = world.start("ingest").await;
    let id = Api::of(&ingest).place(&lines(&[("a", 1)])).await.is(202).order_id().to_owned();

    let begun = Instant::now();
    let open = report(&world, "1s", 2);

    assert!(
        (Duration::from_secs(1)..Duration::from_secs(20)).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(open["unsettled"], json!([[id, "not decided yet"]]));
    assert_eq!((&open["violations"], &open["holds"]), (&json!([]), &json!(false)));

    // A failed order whose release never comes would keep its stock for ever.
    world.tamper_with_orders("UPDATE orders SET status = 'FAILED', reason = 'payment'").await;
    let violations = &report(&world, "0s", 1)["violations"];
    assert!(
        violations[0]["detail"]
            .to_string()
            .contains("is FAILED, and its release is neither done nor owed"),
        "{violations}"
    );

    let owe = "INSERT INTO owed_releases (order_id, owed_at, due_at)
               SELECT order_id, UTC_TIMESTAMP(3), '2100-01-01' FROM orders";
    world.tamper_with_orders(owe).await;
    assert_eq!(
        report(&world, "0s", 2)["unsettled"],
        json!([[id, "its stock is not released yet"]])
    );

    world.tamper_with_orders("DELETE FROM owed_releases").await;
    world.tamper_with_orders("UPDATE orders SET status = 'COMPLETED', reason = NULL").await;
    let violations = &report(&world, "0s", 1)["violations"];
    assert_eq!(
        (&violations[0]["invariant"], &violations[0]["subject"]),
        (&json!(3), &json!(format!("order {id}")))
    );
}

on_each_database!(an_invariant_that_cannot_be_checked_neither_holds_nor_fails,);

async fn an_invariant_that_cannot_be_checked_neither_holds_nor_fails(world: World) {
    let nowhere = "stock_store.url=mysql://u:p@127.0.0.1:9/stock";
    let unreachable = world.cli(&["verify", "--settle", "1s", "--set", nowhere]).exits(2);

    assert!(unreachable.stderr().contains("unavailable"), "{}", unreachable.stderr());
    assert!(!unreachable.stdout().contains("hold"), "{}", unreachable.stdout());
}
