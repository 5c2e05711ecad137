//! Faults of database servers, and of their users.

use sqlx::{Connection as _, Executor as _, MySqlConnection, Row as _};

use super::{Diagnosis, Fault, fault};
use crate::harness::{Database, Server, Strategy, World};

/// What can be wrong with a server, and the statement that makes it so.
const OF_SERVERS: [(Fault, &str); 7] = [
    (
        fault("columns", "wrong", "products.product_id"),
        "ALTER TABLE products MODIFY product_id VARCHAR(64) CHARACTER SET utf8mb4 NOT NULL",
    ),
    (
        fault("engine", "wrong", "level_notes has the engine MyISAM"),
        "ALTER TABLE level_notes ENGINE = MyISAM",
    ),
    (
        fault("durability", "warning", "innodb_flush_log_at_trx_commit is 2"),
        "SET GLOBAL innodb_flush_log_at_trx_commit = 2",
    ),
    (fault("durability", "warning", "sync_binlog is 0"), "SET GLOBAL sync_binlog = 0"),
    (
        fault("packet_size", "wrong", "max_allowed_packet is 1048576"),
        "SET GLOBAL max_allowed_packet = 1048576",
    ),
    (fault("connections", "warning", "max_connections is 20"), "SET GLOBAL max_connections = 20"),
    (
        fault("binlog_format", "wrong", "binlog_format is STATEMENT"),
        "SET GLOBAL binlog_format = 'STATEMENT'",
    ),
];
const OF_MYSQL: (Fault, &str) = (
    fault("log_writer_threads", "warning", "innodb_log_writer_threads is OFF"),
    "SET GLOBAL innodb_log_writer_threads = OFF",
);

/// A server of the test's own, and a world whose stores are on it.
async fn private(database: Database) -> (World, Server) {
    let server = Server::start(database, &[]).await;
    let world = World::on(&server.url(), Strategy::Row).await;
    world.cli(&["setup"]).succeeds();
    (world, server)
}

/// The name of the database of a URL.
fn database_of(url: &str) -> &str {
    let path = url.rsplit_once('/').expect("a path").1;
    path.split('?').next().expect("a name")
}

async fn run(admin: &mut MySqlConnection, statement: &str) {
    let ran = admin.execute(statement).await;
    ran.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// Has both stores of a world use another user, whose password is its name.
fn log_in_as(world: &mut World, user: &str) {
    for key in ["STOCKLOCK__ORDER_STORE__URL", "STOCKLOCK__STOCK_STORE__URL"] {
        let url = world.env[key].clone();
        let (_, rest) = url.split_once('@').expect("a user");
        world.env.insert(key.to_owned(), format!("mysql://{user}:{user}@{rest}"));
    }
}

async fn each_fault_of_a_server_is_named_and_mended(database: Database) {
    let (world, server) = private(database).await;
    let mut admin = server.admin().await;
    let stock = database_of(world.config.stock_store.url.expose()).to_owned();
    run(&mut admin, &format!("USE `{stock}`")).await;
    let mut planted = OF_SERVERS.to_vec();
    planted.extend((database == Database::MySql).then_some(OF_MYSQL));
    for (_, statement) in &planted {
        run(&mut admin, statement).await;
    }

    let ill = Diagnosis::with_status(&world, &["--role", "setup,worker,compensator"], 1);
    for (fault, _) in planted.iter().rev() {
        for line in ill.lines(fault) {
            run(&mut admin, &line).await;
        }
    }

    let faults: Vec<_> = planted.iter().map(|(fault, _)| *fault).collect();
    Diagnosis::with_status(&world, &[], 0).is_free_of(&faults);
    drop(world);
}

async fn each_missing_right_is_named_and_granted(database: Database) {
    let (mut world, server) = private(database).await;
    let mut admin = server.admin().await;
    for statement in [
        "CREATE USER 'clerk'@'%' IDENTIFIED BY 'clerk'",
        "GRANT SELECT ON `it\\_%`.* TO 'clerk'@'%'",
        "CREATE USER 'nobody'@'%' IDENTIFIED BY 'nobody'",
        "CREATE USER 'former'@'%' IDENTIFIED BY 'former'",
        "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER ON `it\\_%`.* TO 'former'@'%'",
    ] {
        run(&mut admin, statement).await;
    }
    let of_clerk = [
        fault("privileges", "wrong", "denied"),
        fault("process_privilege", "warning", "PROCESS"),
        fault("migrate_user", "wrong", "setup cannot migrate"),
    ];
    let of_nobody = [fault("privileges", "wrong", "Access denied for user 'nobody'")];

    let of_former = [fault("migrate_user", "wrong", "DROP command denied")];

    for (user, faults) in [("clerk", &of_clerk[..]), ("nobody", &of_nobody), ("former", &of_former)]
    {
        log_in_as(&mut world, user);
        let ill = Diagnosis::with_status(&world, &[], 1);
        for line in faults.iter().flat_map(|fault| ill.lines(fault)) {
            run(&mut admin, &line).await;
        }
        Diagnosis::of(&world, &[]).is_free_of(faults);
    }
    // The rights that the line grants are all that the migrations need.
    for store in [&world.config.order_store, &world.config.stock_store] {
        let name = database_of(store.url.expose());
        run(&mut admin, &format!("DROP DATABASE `{name}`")).await;
        run(&mut admin, &format!("CREATE DATABASE `{name}`")).await;
    }
    world.cli(&["setup"]).succeeds();
    drop(world);
}

/// A user that may read and write all rows but those of some tables.
async fn rights_that_no_role_can_do_without_are_told_apart(database: Database) {
    let (mut world, server) = private(database).await;
    let mut admin = server.admin().await;
    run(&mut admin, "CREATE USER 'narrow'@'%' IDENTIFIED BY 'narrow'").await;
    for store in [&world.config.order_store, &world.config.stock_store] {
        let name = database_of(store.url.expose());
        let sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = ?";
        let tables = sqlx::query(sql).bind(name).fetch_all(&mut admin).await.expect("tables");
        for table in tables.iter().map(|row| row.try_get_unchecked::<String, _>(0).expect("a name"))
        {
            let rights = match &*table {
                "_sqlx_migrations" => continue,
                "ledger_balances" => "SELECT",
                _ => "SELECT, INSERT, UPDATE, DELETE",
            };
            run(&mut admin, &format!("GRANT {rights} ON `{name}`.`{table}` TO 'narrow'@'%'")).await;
        }
    }
    let unread = fault("migrations", "warning", "whether they have run cannot be read");
    let unwritten = fault("privileges", "wrong", "2 statements are denied");
    log_in_as(&mut world, "narrow");

    let ill = Diagnosis::with_status(&world, &["--role", "worker,compensator"], 1);

    for fault in [unread, unwritten] {
        for line in ill.lines(&fault) {
            run(&mut admin, &line).await;
        }
        Diagnosis::of(&world, &["--role", "worker,compensator"]).is_free_of(&[fault]);
    }
    drop(world);
}

async fn a_server_without_a_free_connection_is_named(database: Database) {
    let (mut world, server) = private(database).await;
    let mut admin = server.admin().await;
    for statement in [
        "CREATE USER 'single'@'%' IDENTIFIED BY 'single' WITH MAX_USER_CONNECTIONS 1",
        "CREATE USER 'plain'@'%' IDENTIFIED BY 'plain'",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON `it\\_%`.* TO 'plain'@'%'",
        "SET GLOBAL max_connections = 10",
    ] {
        run(&mut admin, statement).await;
    }
    let (_, rest) =
        server.url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a user");
    let as_user = |user: &str| format!("mysql://{user}:{user}@{rest}");
    let (full, limited) = (
        fault("connections", "wrong", "Too many connections"),
        fault("connections", "wrong", "max_user_connections"),
    );

    log_in_as(&mut world, "plain");
    let mut held = Vec::new();
    while let Ok(conn) = MySqlConnection::connect(&as_user("plain")).await {
        held.push(conn);
    }
    let ill = Diagnosis::with_status(&world, &["--role", "compensator"], 1);
    for line in ill.lines(&full) {
        run(&mut admin, &line).await;
    }
    Diagnosis::of(&world, &["--role", "compensator"]).is_free_of(&[full]);

    log_in_as(&mut world, "single");
    let _held = MySqlConnection::connect(&as_user("single")).await.expect("a connection");
    let lines = Diagnosis::with_status(&world, &["--role", "compensator"], 1).lines(&limited);
    assert!(lines.iter().all(|line| line.contains("order_store.pool_max")), "{lines:?}");
    drop(world);
}

/// The statements by which a server follows another, and by which it ends to. It never connects.
fn following(database: Database) -> (&'static str, &'static str) {
    match database {
        Database::MySql => (
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = 9",
            "RESET REPLICA ALL",
        ),
        Database::MariaDb => {
            ("CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = 9", "RESET SLAVE ALL")
        }
    }
}

async fn no_line_promotes_a_replica(database: Database) {
    let (world, server) = private(database).await;
    let mut admin = server.admin().await;
    let (follow, end) = following(database);
    let read_only = |text| fault("writable", "wrong", text);
    let diagnose = || Diagnosis::with_status(&world, &["--role", "compensator"], 1);
    let is_setting = |line: &String| line.starts_with("order_store.url = ");

    run(&mut admin, "SET GLOBAL read_only = ON").await;
    let may_not_ask = diagnose().lines(&read_only("may not ask which"));
    let right = match database {
        Database::MySql => "REPLICATION CLIENT",
        Database::MariaDb => "SLAVE MONITOR",
    };
    run(&mut admin, &format!("GRANT {right} ON *.* TO 'stocklock'@'%'")).await;
    run(&mut admin, follow).await;
    let of_replica = diagnose().lines(&read_only("is a replica. Point"));
    run(&mut admin, end).await;
    let of_no_replica = diagnose().lines(&read_only("is no replica"));

    assert!(may_not_ask.iter().all(is_setting), "{may_not_ask:?}");
    assert!(of_replica.iter().all(is_setting), "{of_replica:?}");
    for line in &of_no_replica {
        run(&mut admin, line).await;
    }
    Diagnosis::with_status(&world, &["--role", "compensator"], 0)
        .is_free_of(&[read_only("read_only")]);
    drop(world);
}

async fn a_server_without_the_database_gets_it_and_its_tables(database: Database) {
    let (mut world, server) = private(database).await;
    let mut admin = server.admin().await;
    let (key, url) = ("STOCKLOCK__ORDER_STORE__URL", world.config.order_store.url.clone());
    let name = database_of(url.expose());
    let elsewhere = url.expose().replace(name, "it_elsewhere");
    world.env.insert(key.to_owned(), elsewhere.clone());
    let (missing, empty) = (
        fault("database", "wrong", "Unknown database 'it_elsewhere'"),
        fault("migrations", "wrong", "migrations have not run"),
    );

    for line in Diagnosis::with_status(&world, &[], 1).lines(&missing) {
        run(&mut admin, &line).await;
    }
    let created = Diagnosis::with_status(&world, &[], 1);
    created.is_free_of(&[missing]);
    assert_eq!(created.lines(&empty).first().map(String::as_str), Some("stocklock setup"));
    world.cli(&["setup"]).succeeds();
    Diagnosis::with_status(&world, &[], 0).is_free_of(&[missing, empty]);

    // The setting is what mends a wrong password.
    let wrong = elsewhere.replacen(":stocklock@", ":wrong@", 1);
    world.env.insert(key.to_owned(), wrong);
    let refused = Diagnosis::with_status(&world, &[], 1);
    let lines = refused.lines(&fault("login", "wrong", "Access denied"));
    assert!(lines.iter().all(|line| line.starts_with("order_store.url = ")), "{lines:?}");
    drop(world);
}

macro_rules! on_private_servers {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use crate::harness::Database;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mysql() {
                super::$test(Database::MySql).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn mariadb() {
                super::$test(Database::MariaDb).await;
            }
        }
    )+};
}

on_private_servers!(
    each_fault_of_a_server_is_named_and_mended,
    each_missing_right_is_named_and_granted,
    rights_that_no_role_can_do_without_are_told_apart,
    a_server_without_a_free_connection_is_named,
    no_line_promotes_a_replica,
    a_server_without_the_database_gets_it_and_its_tables,
);

/// `MariaDB` can be told to call itself something else. What it says of itself is all that the
/// doctor needs to refuse a server by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_run_the_statements_is_refused_by_name() {
    for (version, name) in [("8.0.11-TiDB-v8.5.0", "TiDB"), ("8.0.30-Vitess", "Vitess")] {
        let server = Server::start(Database::MariaDb, &[&format!("--version={version}")]).await;
        let world = World::on(&server.url(), Strategy::Row).await;

        let refused = Diagnosis::with_status(&world, &["--role", "compensator"], 1);

        let named = refused.faults("version");
        assert!(
            named.iter().any(|finding| {
                finding["text"].to_string().contains(&format!("the server is {name} ("))
            }),
            "{named:?}"
        );
        assert_eq!(refused.faults("migrations").len(), 0, "nothing more is asked of it");
        drop(world);
    }
}
