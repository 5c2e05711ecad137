//! Servers whose defaults are others than ours: the whole flow works on them, or `setup` says what
//! is wrong.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, Executor as _, MySqlConnection};

use crate::harness::{Api, Database, PATIENCE, Server, Strategy, World, lines, on_each_database};

/// Imports, places, decides, reads, fails late and verifies.
async fn flow(world: &World) {
    world.import(&[("a", 5), ("B", 1)]);

    let all = world.start("all").await;
    let api = Api::of(&all);
    let completed =
        api.place_and_wait(&lines(&[("a", 2), ("B", 1)]), 60).await.is(201).order_id().to_owned();
    let refused = api.place_and_wait(&lines(&[("B", 1)]), 60).await.is(409);
    assert_eq!(refused.body["reason"], "INSUFFICIENT_STOCK");
    let path = format!("/v1/orders/{completed}");
    assert_eq!(api.get(&path).await.is(200).body["status"], "COMPLETED");
    assert_eq!(api.get("/v1/products/a").await.is(200).body["available"], 3);

    world.cli(&["order", "fail", &completed, "--reason", "PAYMENT_DECLINED: ü€"]).succeeds();

    world.has_available(&[("a", 5), ("B", 1)]).await;
    let failed = api.get(&path).await.is(200).body;
    assert_eq!(
        (&failed["status"], &failed["reason"]),
        (&"FAILED".into(), &"PAYMENT_DECLINED: ü€".into())
    );

    world.verify();
    for dead_letters in [&world.config.topics.orders_dlq, &world.config.topics.order_status_dlq] {
        assert_eq!(world.count_messages(dead_letters), 0);
    }
    all.stop();
}

/// Each line is the options of one server; all servers have `lower_case_table_names = 1`.
const STRICT_AND_BINARY: &[&str] = &[
    "--character-set-server=utf8mb4",
    "--collation-server=utf8mb4_bin",
    "--sql-mode=ANSI,TRADITIONAL,ONLY_FULL_GROUP_BY,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH",
    "--default-time-zone=+05:30",
    "--autocommit=0",
    "--completion-type=CHAIN",
];
const LOOSE_AND_OLD: &[&str] = &[
    "--character-set-server=utf8mb3",
    "--collation-server=utf8mb3_bin",
    "--sql-mode=",
    "--default-time-zone=-11:00",
    "--skip-character-set-client-handshake",
    "--transaction-isolation=SERIALIZABLE",
    "--innodb-rollback-on-timeout=ON",
];

async fn flow_on(database: Database, options: &[&str]) {
    // MySQL 9 knows two of them no longer.
    let mariadb_has = ["PAD_CHAR_TO_FULL_LENGTH", "skip-character-set-client-handshake"];
    let known = |option: &&str| {
        database == Database::MariaDb || !mariadb_has.iter().any(|it| option.contains(it))
    };
    let mut options: Vec<_> = options.iter().copied().filter(known).collect();
    if options.iter().all(|option| !option.starts_with("--sql-mode")) {
        options.push("--sql-mode=ANSI,TRADITIONAL,ONLY_FULL_GROUP_BY,NO_BACKSLASH_ESCAPES");
    }

    let server = Server::start(database, &options).await;
    let world = World::on(&server.url(), Strategy::Row).await;
    world.cli(&["setup"]).succeeds();
    world.cli(&["setup"]).succeeds();
    flow(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_flow_works_on_a_strict_mysql_with_binary_collations() {
    flow_on(Database::MySql, STRICT_AND_BINARY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_flow_works_on_a_loose_mysql_with_an_old_character_set() {
    flow_on(Database::MySql, LOOSE_AND_OLD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_flow_works_on_a_strict_mariadb_with_binary_collations() {
    flow_on(Database::MariaDb, STRICT_AND_BINARY).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_flow_works_on_a_loose_mariadb_with_an_old_character_set() {
    flow_on(Database::MariaDb, LOOSE_AND_OLD).await;
}

/// The names and collations of the enumerations of a world's stores.
async fn enumerations(world: &World) -> Vec<(String, String)> {
    let sql = "SELECT CAST(CONCAT(table_name, '.', column_name, ' ', column_type, ' ',
                                  is_nullable, ' ',
                                  COALESCE(REPLACE(column_default, '''', ''), '')) AS CHAR),
                      CAST(collation_name AS CHAR)
               FROM information_schema.columns
               WHERE table_schema = DATABASE() AND data_type = 'enum'
               ORDER BY table_name, column_name";
    let mut found = Vec::new();
    for store in [&world.config.order_store, &world.config.stock_store] {
        let mut conn = MySqlConnection::connect(store.url.expose()).await.expect("a connection");
        found.extend(sqlx::query_as(sql).fetch_all(&mut conn).await.expect("the columns"));
    }
    found
}

/// Gives text columns, as far as their type begins so, a binary collation, as a database's default
/// may do.
async fn make_binary(world: &World, kinds: &str) {
    let sql = format!(
        "SELECT CAST(CONCAT('ALTER TABLE ', table_name, ' MODIFY `', column_name, '` ', column_type,
                            ' CHARACTER SET utf8mb4 COLLATE utf8mb4_bin ',
                            IF(is_nullable = 'YES', 'NULL', 'NOT NULL'),
                            IF(table_name = 'orders' AND column_name = 'status',
                               ' DEFAULT ''PENDING''', '')) AS CHAR)
         FROM information_schema.columns
         WHERE table_schema = DATABASE() AND table_name <> '_sqlx_migrations'
           AND column_type REGEXP '^({kinds})'"
    );
    for store in [&world.config.order_store, &world.config.stock_store] {
        let mut conn = MySqlConnection::connect(store.url.expose()).await.expect("a connection");
        let alters: Vec<String> =
            sqlx::query_scalar(&sql).fetch_all(&mut conn).await.expect("the columns");
        for alter in alters {
            conn.execute(alter.as_str()).await.expect("altered");
        }
    }
}

on_each_database!(
    text_is_read_whatever_the_collation_of_its_column,
    setup_names_the_character_sets_of_enumerations,
    setup_leaves_a_table_that_others_hold_and_succeeds_later,
);

async fn text_is_read_whatever_the_collation_of_its_column(world: World) {
    make_binary(&world, "enum|varchar.(255|512|128)").await;
    assert!(enumerations(&world).await.iter().all(|(_, collation)| collation == "utf8mb4_bin"));

    flow(&world).await;
}

async fn setup_names_the_character_sets_of_enumerations(world: World) {
    let before = enumerations(&world).await;
    make_binary(&world, "enum").await;
    let binary = enumerations(&world).await;

    world.cli(&["setup"]).succeeds();

    assert!(before.iter().all(|(_, collation)| collation == "ascii_general_ci"), "{before:?}");
    assert!(binary.iter().all(|(_, collation)| collation == "utf8mb4_bin"), "{binary:?}");
    assert_eq!(enumerations(&world).await, before);
}

async fn setup_leaves_a_table_that_others_hold_and_succeeds_later(world: World) {
    make_binary(&world, "enum").await;
    let mut holder = MySqlConnection::connect(world.config.order_store.url.expose())
        .await
        .expect("a connection");
    holder.execute("START TRANSACTION").await.expect("begun");
    holder.fetch_all("SELECT * FROM announcements").await.expect("it holds the table");
    let binary = |found: Vec<(String, String)>| {
        found.iter().any(|(_, collation)| collation == "utf8mb4_bin")
    };

    world.cli(&["setup"]).succeeds();
    let while_held = binary(enumerations(&world).await);
    holder.execute("COMMIT").await.expect("committed");
    world.cli(&["setup"]).succeeds();

    assert!(while_held, "it was held");
    assert!(!binary(enumerations(&world).await));
}

async fn statement_log(database: Database) {
    let server = Server::start(database, &["--binlog-format=STATEMENT"]).await;
    let world = World::on(&server.url(), Strategy::Row).await;
    let refused = world.cli(&["setup"]).exits(2).stderr();
    let mut admin = server.admin().await;
    admin.execute("SET GLOBAL binlog_format = 'ROW'").await.expect("set");
    world.cli(&["setup"]).succeeds();
    admin.execute("SET GLOBAL binlog_format = 'STATEMENT'").await.expect("set");

    let import = world.cli(&["stock", "show"]).exits(2).stderr();
    let worker = crate::harness::Role::spawn(&world.env, "ingest", &[]);
    let begun = Instant::now();
    while !worker.log().contains("binlog_format is STATEMENT") {
        assert!(begun.elapsed() < PATIENCE, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for text in [refused, import] {
        assert!(
            text.contains("binlog_format is STATEMENT") && text.contains("set it to ROW"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mysql_that_logs_statements_is_refused() {
    statement_log(Database::MySql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mariadb_that_logs_statements_is_refused() {
    statement_log(Database::MariaDb).await;
}
