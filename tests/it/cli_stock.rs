//! `stocklock setup` and `stocklock stock`: what they do to the stores and the topics, and what
//! they report.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::harness::{Cli, Database, Proxy, Strategy, World, on_each_database};

fn written(csv: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".csv").tempfile().expect("a file");
    std::fs::write(file.path(), csv).expect("written");
    file
}

/// Runs `stock import` with a file of this content. Returns the path of the file too.
fn import(world: &World, csv: &str) -> (Cli, String) {
    let file = written(csv);
    let path = file.path().display().to_string();
    (world.cli(&["--output", "json", "stock", "import", &path]), path)
}

fn stock(world: &World) -> Value {
    world.cli(&["--output", "json", "stock", "show"]).succeeds().json()
}

on_each_database!(setup_may_be_repeated_and_keeps_the_data,);

async fn setup_may_be_repeated_and_keeps_the_data(world: World) {
    world.import(&[("a", 3)]);

    let again = world.cli(&["setup"]).succeeds().stdout();

    assert_eq!(
        again.lines().filter(|line| line.starts_with("topic") && line.ends_with("exists")).count(),
        4,
        "{again}"
    );
    assert_eq!(world.available("a"), 3);
    world.verify();
}

on_each_database!(setup_finishes_an_interrupted_setup,);

async fn setup_finishes_an_interrupted_setup(world: World) {
    // A kill between its statements: a table is missing, and the migration is recorded as begun.
    let interrupt = "DROP TABLE stock_movements;
                     DELETE FROM _sqlx_migrations WHERE version > 1001;
                     UPDATE _sqlx_migrations SET success = FALSE WHERE version = 1001";
    world.tamper_with_stock(interrupt).await;

    world.cli(&["setup"]).succeeds();

    world.import(&[("a", 3)]);
    world.verify();
}

on_each_database!(setup_gives_up_a_database_that_does_not_answer,);

async fn setup_gives_up_a_database_that_does_not_answer(world: World) {
    let (proxy, url) = Proxy::before(world.config.order_store.migrate_url.expose()).await;
    let address = url.rsplit_once('@').expect("a user").1.to_owned();
    proxy.hang();

    let set = format!("order_store.migrate_url={url}");
    let failed = world.cli(&["setup", "--set", &set]).exits(2).stderr();

    let database = address.split('?').next().expect("an address");
    assert!(failed.contains(&format!("{database}: no answer within 5s")), "{failed}");
    assert!(failed.contains("the database is unavailable"), "{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setup_reports_topics_that_differ_and_leaves_them() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let other = [
        "--output",
        "json",
        "setup",
        "--set",
        "topics.partitions=7",
        "--set",
        "topics.retention=1d",
    ];

    // Twice, since the first might have changed them.
    for _ in 0..2 {
        let topics = world.cli(&other).succeeds().json()["topics"].clone();
        assert_eq!(topics.as_array().map(Vec::len), Some(4));
        for topic in topics.as_array().into_iter().flatten() {
            let differences =
                ["partitions: 4, configured 7", "retention.ms: 604800000, configured 86400000"];
            assert_eq!(
                (&topic["created"], &topic["differences"]),
                (&json!(false), &json!(differences)),
                "{topic}"
            );
        }
    }

    let text = world.cli(&["setup", "--set", "topics.partitions=7"]).succeeds().stdout();
    assert!(text.contains("is left as it is, but differs: partitions: 4, configured 7"), "{text}");
}

on_each_database!(an_import_adds_and_changes_products_and_books_the_difference,);

async fn an_import_adds_and_changes_products_and_books_the_difference(world: World) {
    let csv = "product_id,name,available\na,Apple,5\nb,\"Pear, green \"\"é😀\"\"\",7\nC,,0\n\
               d,Date,9007199254740991\n";
    assert_eq!(
        import(&world, csv).0.succeeds().json(),
        json!({"added": 4, "changed": 0, "unchanged": 0})
    );

    let before = json!([
        {"product_id": "C", "name": "", "available": 0},
        {"product_id": "a", "name": "Apple", "available": 5},
        {"product_id": "b", "name": "Pear, green \"é😀\"", "available": 7},
        {"product_id": "d", "name": "Date", "available": 9_007_199_254_740_991_i64},
    ]);

    assert_eq!(stock(&world), before);
    assert_eq!(
        import(&world, csv).0.succeeds().json(),
        json!({"added": 0, "changed": 0, "unchanged": 4})
    );

    // More of one product, less of another, a name alone, a new product; with Windows' line ends.
    let csv = "product_id,name,available\r\na,Apple,8\r\nb,Pear,2\r\nC,Cherry,0\r\ne,Elder,1\r\n";
    assert_eq!(
        import(&world, csv).0.succeeds().json(),
        json!({"added": 1, "changed": 3, "unchanged": 0})
    );

    let available: Vec<_> = stock(&world)
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| row["available"].clone())
        .collect();
    assert_eq!(
        available,
        [json!(0), json!(8), json!(2), json!(9_007_199_254_740_991_i64), json!(1)]
    );

    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_a_bad_row_is_not_imported_and_the_row_is_named() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    // More rows than go in one transaction.
    let mut many = String::new();
    for n in 0..1_500 {
        writeln!(many, "p{n},,1").expect("a string takes it");
    }
    let long_name = format!("a,{},1", "é".repeat(256));

    for (row, complaint) in [
        ("a,A,-1", "-1"),
        ("a,A,1.5", "1.5"),
        ("a,A,9007199254740992", "9007199254740992"),
        ("a,A,", "available"),
        ("a b,A,1", "a b"),
        (",A,1", "product id"),
        ("a,A", "2 fields"),
        ("a,A,1,1", "4 fields"),
        ("p7,A,1", "product p7 is on line 9 already"),
        (long_name.as_str(), "255 characters"),
    ] {
        let (refused, path) = import(&world, &format!("product_id,name,available\n{many}{row}\n"));
        let error = refused.exits(2).stderr();
        for expected in [path.as_str(), "nothing was imported", "line", "1502", complaint] {
            assert!(error.contains(expected), "{row}: {expected} is missing: {error}");
        }
    }

    for header in [
        "name,available",
        "name,product_id,available,price",
        "name,name,available",
        "product_id;name;available",
    ] {
        let (refused, path) = import(&world, &format!("{header}\nA,a,1\n"));
        let error = refused.exits(2).stderr();
        let expected = [
            &path,
            "line 1: the columns must be product_id, name, available",
            header.split(',').next().unwrap(),
        ];
        assert!(expected.iter().all(|text| error.contains(text)), "{error}");
    }

    let missing = world.cli(&["stock", "import", "/nowhere/stock.csv"]).exits(2).stderr();
    assert!(missing.contains("/nowhere/stock.csv"), "{missing}");
    assert_eq!(stock(&world), json!([]));
}

on_each_database!(stock_is_shown_and_restocked,);

async fn stock_is_shown_and_restocked(world: World) {
    world.import(&[("b", 2), ("a", 9_007_199_254_740_990)]);
    let shown = world.cli(&["stock", "show", "b", "b", "a"]).succeeds().stdout();
    let rows: Vec<Vec<_>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [["a", "9007199254740990", "a"], ["b", "2", "b"]]);
    let partly = world.cli(&["stock", "show", "b", "c"]).exits(1);
    assert!(
        partly.stdout().starts_with("b ") && partly.stderr() == "no product c\n",
        "{}",
        partly.stderr()
    );

    let restocked =
        world.cli(&["--output", "json", "stock", "restock", "b", "3"]).succeeds().json();
    assert_eq!(restocked, json!({"product_id": "b", "available": 5}));
    assert_eq!(world.cli(&["stock", "restock", "c", "3"]).exits(1).stderr(), "no product c\n");
    assert_eq!(
        world.cli(&["stock", "restock", "a", "1"]).succeeds().stdout(),
        "a: 9007199254740991 available\n"
    );
    let full = world.cli(&["stock", "restock", "a", "1"]).exits(1).stderr();
    assert!(full.contains("9007199254740991"), "{full}");
    assert_eq!(world.available("b"), 5);
    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_takes_its_columns_in_any_order_and_trims_them() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let expected = json!([{"product_id": "a", "name": "Green Apple", "available": 5}]);

    for csv in [
        " available, product_id ,name\n 5 ,\ta, Green Apple \n",
        "name,available,product_id\r\nGreen Apple,5,a\r\n",
        // As spreadsheets begin a file.
        "\u{feff}product_id,name,available\n\na,Green Apple,5\n",
    ] {
        import(&world, csv).0.succeeds();
        assert_eq!(stock(&world), expected, "{csv}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_names_every_wrong_row_up_to_a_bound() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let mut csv = "product_id,name,available\na,A,1\n".to_owned();
    for n in 0..30 {
        writeln!(csv, "b{n},B,-1").expect("a string takes it");
    }

    let text = world
        .cli(&["stock", "import", &written(&csv).path().display().to_string()])
        .exits(2)
        .stderr();
    let (refused, path) = import(&world, &csv);

    assert_eq!(text.lines().filter(|line| line.starts_with("  line ")).count(), 20, "{text}");
    assert!(text.contains("line 3: ") && text.ends_with("and 10 lines more\n"), "{text}");
    let error: Value = serde_json::from_str(&refused.exits(2).stderr()).expect("JSON");
    assert_eq!(error["error"], format!("{path}: nothing was imported"));
    assert_eq!(error["errors"].as_array().map(Vec::len), Some(21), "{error}");
    assert_eq!(stock(&world), json!([]));
}

/// A pipe can be read once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_from_a_pipe_is_imported() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let pipe = tempfile::tempdir().expect("a folder");
    let path = pipe.path().join("stock.csv");
    assert!(
        std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success()
    );
    let writer = path.clone();
    let writing =
        std::thread::spawn(move || std::fs::write(writer, "product_id,name,available\na,A,5\n"));

    let imported = world
        .cli(&["--output", "json", "stock", "import", &path.display().to_string()])
        .succeeds()
        .json();

    writing.join().expect("no panic").expect("written");
    assert_eq!(imported, json!({"added": 1, "changed": 0, "unchanged": 0}));
}
