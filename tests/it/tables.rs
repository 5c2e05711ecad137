//! `docs/reference/tables.md` is what `setup` makes.

use std::{collections::BTreeSet, path::Path};

use sqlx::{Connection as _, MySqlConnection, Row as _};

use crate::harness::{Database, Strategy, World};

/// A table, its column, and the column's type in capitals.
type Column = (String, String, String);

const COLUMNS: &str = "
    SELECT CAST(table_name AS CHAR) AS t, CAST(column_name AS CHAR) AS c,
           CAST(column_type AS CHAR) AS k
    FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name <> '_sqlx_migrations'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_of_tables_is_what_setup_makes_on_mysql() {
    check(Database::MySql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_of_tables_is_what_setup_makes_on_mariadb() {
    check(Database::MariaDb).await;
}

async fn check(database: Database) {
    let world = World::new(database, Strategy::Row).await;
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/tables.md");
    let page = std::fs::read_to_string(page).expect("the page of tables");
    let described: BTreeSet<_> = page.lines().filter_map(described).collect();

    let mut found = columns(world.config.order_store.url.expose()).await;
    found.extend(columns(world.config.stock_store.url.expose()).await);

    let missing: Vec<_> = found.difference(&described).collect();
    let extra: Vec<_> = described.difference(&found).collect();
    assert!(missing.is_empty(), "src/store/tables.rs lacks {missing:?}; it has {extra:?}");
    assert!(extra.is_empty(), "src/store/tables.rs has {extra:?}, which setup does not make");
}

/// The column that a line of the page describes: its second table has four cells, all but the last
/// of them code.
fn described(line: &str) -> Option<Column> {
    let cells: Vec<_> = line.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
    let [table, column, kind, _meaning] = cells[..] else { return None };
    let code = |cell: &str| Some(cell.strip_prefix('`')?.strip_suffix('`')?.to_owned());
    Some((code(table)?, code(column)?, code(kind)?))
}

async fn columns(url: &str) -> BTreeSet<Column> {
    let mut conn = MySqlConnection::connect(url).await.expect("the store");
    let rows = sqlx::query(COLUMNS).fetch_all(&mut conn).await.expect("the columns");
    rows.iter().map(|row| (row.get("t"), row.get("c"), plain(row.get("k")))).collect()
}

/// The type without what the servers write differently: the display width of integers, and the
/// values of an ENUM.
fn plain(kind: String) -> String {
    let kind = kind.to_uppercase();
    match kind.split_once('(') {
        Some(("ENUM", _)) => "ENUM".to_owned(),
        Some((integer @ ("TINYINT" | "INT" | "BIGINT"), rest)) => {
            format!("{integer}{}", rest.split_once(')').expect("a bracket").1)
        }
        _ => kind,
    }
}
