//! The procedures of `docs/operate.md`, each tried once while orders arrive.

use std::{collections::BTreeSet, fs, path::Path};

use sqlx::{Connection as _, Executor as _, MySqlConnection, Row as _};
use stocklock::kafka::delete_topics;
use tokio::task::JoinHandle;

use crate::harness::{
    Api, Database, Role, Server, Strategy, World, database, dump, lines, on_each_database, restore,
    wait_until,
};

/// The tables of the stock store, as the page names them for the move.
const STOCK_TABLES: [&str; 7] = [
    "products",
    "order_outcomes",
    "stock_movements",
    "adjustment_requests",
    "level_notes",
    "ledger_balances",
    "ledger_horizon",
];
/// Orders that the restored stores lack on the topic are produced again soon.
const SOON: (&str, &str) = ("STOCKLOCK__INGEST__PENDING_AFTER", "1s");
const INSTRUCTIONS: &str = include_str!("../../docs/operate.md");

on_each_database!(a_backup_under_load_is_restored_and_verified,);

/// Places orders one after the other until a file appears. Answers their ids.
fn keep_placing(api: &Api, until: &Path) -> JoinHandle<Vec<String>> {
    let (api, until) = (api.clone(), until.to_owned());
    tokio::spawn(async move {
        let mut placed = Vec::new();
        while !until.exists() {
            let answer = api.place(&lines(&[("a", 1), ("b", 2)])).await.is(202);
            placed.push(answer.order_id().to_owned());
        }
        placed
    })
}

async fn connect(url: &str) -> MySqlConnection {
    MySqlConnection::connect(url).await.expect("a connection")
}

/// Empties a database, as a new server is empty.
async fn recreate(url: &str) {
    let name = database(url);
    let sql = format!("DROP DATABASE {name}; CREATE DATABASE {name}");
    sqlx::raw_sql(&sql).execute(&mut connect(url).await).await.expect("recreated");
}

/// Waits until workers have decided so many orders.
async fn decided(world: &World, orders: usize) {
    wait_until(&format!("{orders} orders are completed"), async || {
        world.count_orders("COMPLETED").await >= i64::try_from(orders).expect("few")
    })
    .await;
}

/// Compensators stop, the stock store is dumped, then the order store; ingest and workers go on.
async fn a_backup_under_load_is_restored_and_verified(mut world: World) {
    world.import(&[("a", 1_000_000), ("b", 1_000_000)]);
    let ingest = world.start_with("ingest", &[SOON]).await;
    let worker = world.start("worker").await;
    let compensator = world.start("compensator").await;
    let api = Api::of(&ingest);
    let cancelled = api.place_and_wait(&lines(&[("a", 5)]), 30).await.is(201).order_id().to_owned();
    let mut reserved = lines(&[("a", 3)]);
    reserved["hold_seconds"] = 600.into();
    api.place_and_wait(&reserved, 30).await.is(201);
    let (folder, orders, stock) = (tempfile::tempdir().expect("a folder"), "orders", "stock");
    let file = |name: &str| folder.path().join(name);
    let (orders_url, stock_url) = (
        world.config.order_store.url.expose().to_owned(),
        world.config.stock_store.url.expose().to_owned(),
    );
    let early = keep_placing(&api, &file("first stop"));
    decided(&world, 20).await;

    compensator.stop();
    dump(&stock_url, &file(stock), &[]).await;
    api.request(&cancelled, "cancel").await.is(200);
    dump(&orders_url, &file(orders), &[]).await;
    fs::write(file("first stop"), "").expect("written");
    let early = early.await.expect("placed");
    let compensator = world.start("compensator").await;
    let lost = api.place_and_wait(&lines(&[("a", 7)]), 30).await.is(201).order_id().to_owned();
    for role in [ingest, worker, compensator] {
        role.stop();
    }

    for (url, name) in [(&orders_url, orders), (&stock_url, stock)] {
        recreate(url).await;
        restore(url, &file(name)).await;
    }
    let listed = world.cli(&["--output", "json", "verify", "--settle", "1s"]).exits(1).json();
    let former_topics = world.config.topics.clone();
    world.configure(&[
        ("TOPICS__ORDERS", "{name}.restored.orders"),
        ("TOPICS__ORDER_STATUS", "{name}.restored.order-status"),
    ]);
    let roles = [
        world.start_with("ingest", &[SOON]).await,
        world.start("worker").await,
        world.start("compensator").await,
    ];
    let api = Api::of(&roles[0]);
    world.settled().await;
    api.becomes(&cancelled, "CANCELLED").await;
    let fresh = api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);

    let violations = listed["violations"].as_array().expect("violations");
    let of_lost = violations.iter().find(|found| found["subject"] == format!("order {lost}"));
    assert_eq!(of_lost.expect("the lost order is named")["invariant"], 7);
    assert!(violations.iter().all(|found| found["invariant"] == 7), "{violations:#?}");
    api.get(&format!("/v1/orders/{lost}")).await.is(404);
    api.get(&format!("/v1/orders/{}", fresh.order_id())).await.is(200);
    let restored = world.count_orders("COMPLETED").await - 1;
    assert!(restored >= 20, "{restored}");
    assert!(usize::try_from(restored).expect("few") <= early.len(), "{restored}");
    assert_eq!(world.count_orders("RESERVED").await, 1);
    // The release of the cancelled order was owed between the two dumps.
    wait_until("the stock is what the restored orders leave", async || {
        world.available("b") == 1_000_000 - 2 * restored
            && world.available("a") == 1_000_000 - restored - 3 - 1
    })
    .await;
    world.verify();
    delete_topics(&world.config.kafka, &former_topics).await.expect("deleted");
}

/// The tables of a database, without that of the migrations.
async fn tables(url: &str) -> BTreeSet<String> {
    let rows = connect(url).await.fetch_all("SHOW TABLES").await.expect("the tables");
    let names = rows.iter().map(|row| row.try_get_unchecked::<String, _>(0).expect("a name"));
    names.filter(|name| name != "_sqlx_migrations").collect()
}

/// Moves the stock store of a world to another server, as the page says. Answers the roles, the
/// last of which is ingest, and the ids of the orders that were placed meanwhile.
async fn move_stock_store(world: &mut World, to: &str) -> ([Role; 3], Vec<String>) {
    let folder = tempfile::tempdir().expect("a folder");
    let (copy, stop) = (folder.path().join("stock.sql"), folder.path().join("stop"));
    let from = world.config.stock_store.url.expose().to_owned();
    let (ingest, worker) = (world.start("ingest").await, world.start("worker").await);
    let compensator = world.start("compensator").await;
    let placing = keep_placing(&Api::of(&ingest), &stop);
    decided(world, 10).await;

    worker.stop();
    let mut copied = STOCK_TABLES.to_vec();
    copied.push("_sqlx_migrations");
    dump(&from, &copy, &copied).await;
    restore(to, &copy).await;
    world.configure(&[("STOCK_STORE__URL", to)]);
    let worker = world.start("worker").await;
    let second = world.start("ingest").await;
    fs::write(&stop, "").expect("written");
    let placed = placing.await.expect("placed");
    ingest.stop();

    let mut old = connect(&from).await;
    let drop = format!("DROP TABLE {}", STOCK_TABLES.join(", "));
    old.execute(drop.as_str()).await.expect("dropped");
    let forget = "DELETE FROM _sqlx_migrations WHERE version >= 1001";
    old.execute(forget).await.expect("forgotten");
    let forget = "DELETE FROM _sqlx_migrations WHERE version < 1001";
    connect(to).await.execute(forget).await.expect("forgotten");
    ([worker, compensator, second], placed)
}

/// A world whose two stores are one database, and another server with an empty database.
async fn one_database(of: Database) -> (World, Server, String) {
    let (mut world, server) = tokio::join!(World::new(of, Strategy::Row), Server::start(of, &[]));
    let one = world.config.order_store.url.expose().to_owned();
    world.configure(&[("STOCK_STORE__URL", &one)]);
    let (name, url) = (database(&one).replace("_orders", "_moved"), server.url());
    let create = format!("CREATE DATABASE {name}");
    server.admin().await.execute(create.as_str()).await.expect("created");
    let (address, query) = url.split_once("/?").expect("a URL with /?");
    let to = format!("{address}/{name}?{query}");
    world.import(&[("a", 1_000_000), ("b", 1_000_000)]);
    (world, server, to)
}

async fn the_stock_store_moves_to_a_server_of_its_own(of: Database) {
    let (mut world, _server, to) = one_database(of).await;
    let one = world.config.order_store.url.expose().to_owned();
    let before = tables(&one).await;

    let (roles, placed) = move_stock_store(&mut world, &to).await;
    let last = Api::of(&roles[2]).place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);
    world.settled().await;
    world.cli(&["setup"]).succeeds();

    assert!(placed.len() > 10, "{placed:?}");
    let orders = i64::try_from(placed.len()).expect("few") + 1;
    assert_eq!(world.count_orders("COMPLETED").await, orders, "{last:?}");
    assert_eq!(world.available("a"), 1_000_000 - orders);
    let moved: BTreeSet<_> = STOCK_TABLES.map(str::to_owned).into();
    assert_eq!(tables(&to).await, moved);
    assert_eq!(tables(&one).await, before.difference(&moved).cloned().collect());
    for table in STOCK_TABLES {
        assert!(INSTRUCTIONS.contains(table), "docs/operate.md does not name {table}");
    }
    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_store_moves_to_a_mysql_server_of_its_own() {
    the_stock_store_moves_to_a_server_of_its_own(Database::MySql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_store_moves_to_a_mariadb_server_of_its_own() {
    the_stock_store_moves_to_a_server_of_its_own(Database::MariaDb).await;
}

/// A store that takes no writes for a while costs time, and no order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_wait_while_the_stock_store_is_read_only() {
    let (mut world, server, to) = one_database(Database::MySql).await;
    world.configure(&[("STOCK_STORE__URL", &to)]);
    world.import(&[("a", 10)]);
    let all = world.start("all").await;
    let api = Api::of(&all);
    api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);

    server.admin().await.execute("SET GLOBAL super_read_only = ON").await.expect("read-only");
    let waiting = api.place(&lines(&[("a", 2)])).await.is(202).order_id().to_owned();
    all.complains("deducting: ").await;
    assert_eq!(api.get(&format!("/v1/orders/{waiting}")).await.is(200).body["status"], "PENDING");
    let sql = "SET GLOBAL super_read_only = OFF; SET GLOBAL read_only = OFF";
    sqlx::raw_sql(sql).execute(&mut server.admin().await).await.expect("writable");

    api.becomes(&waiting, "COMPLETED").await;
    assert_eq!(world.available("a"), 7);
    world.settled().await;
    world.verify();
}
