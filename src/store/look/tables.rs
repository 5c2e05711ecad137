//! The tables of a store: their migrations, the collations of their keys, and their engines.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{MySqlConnection, Row as _, migrate::Migrator};

use super::rights::{COLUMN_DENIED, TABLE_DENIED, UNKNOWN_TABLE, account, database};
use crate::{
    finding::{Check, Findings, Remedy},
    store::{StoreName, error::raised_by_server, migrate},
};

/// A column that is compared by bytes.
struct ByteColumn {
    table: &'static str,
    column: &'static str,
    definition: &'static str,
}

const fn bytes(table: &'static str, column: &'static str, definition: &'static str) -> ByteColumn {
    ByteColumn { table, column, definition }
}

const OF_ORDERS: &[ByteColumn] = &[
    bytes("orders", "lines", "TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL"),
    bytes(
        "idempotency_keys",
        "caller",
        "VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
    ),
    bytes(
        "idempotency_keys",
        "idempotency_key",
        "VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
    ),
];

const OF_STOCK: &[ByteColumn] = &[
    bytes("products", "product_id", PRODUCT_ID),
    bytes("stock_movements", "product_id", PRODUCT_ID),
    bytes("ledger_balances", "product_id", PRODUCT_ID),
    bytes("level_notes", "product_id", PRODUCT_ID),
    bytes("order_outcomes", "lines", "TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL"),
    bytes(
        "adjustment_requests",
        "request_id",
        "VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
    ),
];

const PRODUCT_ID: &str = "VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL";

const TABLES_OF_ORDERS: [&str; 8] = [
    "orders",
    "outbox_groups",
    "owed_releases",
    "holds",
    "announcements",
    "idempotency_keys",
    "unscanned_orders",
    "order_horizon",
];
const TABLES_OF_STOCK: [&str; 7] = [
    "products",
    "order_outcomes",
    "stock_movements",
    "adjustment_requests",
    "level_notes",
    "ledger_balances",
    "ledger_horizon",
];

/// Returns whether all migrations have run, as far as the user may know. Fails only if the
/// connection does.
pub(super) async fn look(
    store: StoreName,
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<bool, sqlx::Error> {
    let (own, other, columns, tables) = match store {
        StoreName::OrderStore => {
            (migrate::of_orders(), migrate::of_stock(), OF_ORDERS, &TABLES_OF_ORDERS[..])
        }
        StoreName::StockStore => {
            (migrate::of_stock(), migrate::of_orders(), OF_STOCK, &TABLES_OF_STOCK[..])
        }
    };
    let is_migrated = look_at_migrations(&own, &other, conn, findings).await?;
    look_at_columns(columns, conn, findings).await?;
    look_at_engines(tables, conn, findings).await?;
    Ok(is_migrated)
}

/// A migration that the database has a record of.
struct Recorded {
    version: i64,
    checksum: Vec<u8>,
    is_done: bool,
}

async fn look_at_migrations(
    own: &Migrator,
    other: &Migrator,
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<bool, sqlx::Error> {
    let Some(recorded) = recorded(conn, findings).await? else { return Ok(true) };
    let setup = || Remedy::Command("stocklock setup".into());
    let mut missing = Vec::new();
    for migration in own.iter() {
        match recorded.iter().find(|recorded| recorded.version == migration.version) {
            Some(Recorded { is_done: true, checksum, .. }) if *checksum == *migration.checksum => {}
            Some(Recorded { is_done: true, .. }) => {
                findings.wrong(
                    Check::Migrations,
                    format!("migration {} was another one when it ran", migration.version),
                    Remedy::Advice("use the binary that migrated this database".into()),
                );
                return Ok(false);
            }
            Some(Recorded { is_done: false, .. }) | None => missing.push(migration.version),
        }
    }
    if !missing.is_empty() {
        let text = format!("{} of its migrations have not run: {missing:?}", missing.len());
        findings.wrong(Check::Migrations, text, setup());
        return Ok(false);
    }
    let known: BTreeSet<_> = own.iter().chain(other.iter()).map(|one| one.version).collect();
    let later: Vec<_> =
        recorded.iter().map(|one| one.version).filter(|one| !known.contains(one)).collect();
    if later.is_empty() {
        findings.fine(Check::Migrations, "all migrations have run");
    } else {
        findings.warning(
            Check::Migrations,
            format!("a later version of stocklock ran migrations of its own: {later:?}"),
            Remedy::Advice("use that version, or read docs/upgrading.md about a rollback".into()),
        );
    }
    Ok(true)
}

/// Empty if the table of migrations is missing. `None` if it cannot be read, which is then a
/// finding: the roles do not read it.
async fn recorded(
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<Option<Vec<Recorded>>, sqlx::Error> {
    let sql = "SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version";
    let rows = match sqlx::query(sql).fetch_all(&mut *conn).await {
        Ok(rows) => rows,
        Err(error) => {
            let Some(raised) = raised_by_server(&error) else { return Err(error) };
            let remedy = match raised.number() {
                UNKNOWN_TABLE => return Ok(Some(Vec::new())),
                TABLE_DENIED | COLUMN_DENIED => Remedy::Sql(format!(
                    "GRANT SELECT ON `{}`.`_sqlx_migrations` TO {}",
                    database(conn).await?,
                    account(conn).await?
                )),
                _ => Remedy::Advice("look into the log of the database server".into()),
            };
            let text = format!("whether they have run cannot be read: {}", raised.message());
            findings.warning(Check::Migrations, text, remedy);
            return Ok(None);
        }
    };
    let read = rows.iter().map(|row| {
        Ok(Recorded {
            version: row.try_get_unchecked("version")?,
            checksum: row.try_get_unchecked("checksum")?,
            is_done: row.try_get_unchecked("success")?,
        })
    });
    read.collect::<Result<_, _>>().map(Some)
}

/// A column that is missing is none of this check's business.
async fn look_at_columns(
    columns: &[ByteColumn],
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let sql = "SELECT CONCAT(LOWER(table_name), '.', LOWER(column_name)), collation_name
               FROM information_schema.columns
               WHERE table_schema = DATABASE() AND collation_name IS NOT NULL";
    let collations: BTreeMap<String, String> = pairs(conn, sql).await?;
    let mut is_wrong = false;
    for ByteColumn { table, column, definition } in columns {
        let Some(found) = collations.get(&format!("{table}.{column}")) else { continue };
        if found == "ascii_bin" {
            continue;
        }
        is_wrong = true;
        findings.wrong(
            Check::Columns,
            format!("{table}.{column} has the collation {found}: it is not compared by bytes"),
            Remedy::Sql(format!("ALTER TABLE `{table}` MODIFY `{column}` {definition}")),
        );
    }
    if !is_wrong {
        findings.fine(Check::Columns, "keys are compared by bytes");
    }
    Ok(())
}

async fn look_at_engines(
    tables: &[&str],
    conn: &mut MySqlConnection,
    findings: &mut Findings,
) -> Result<(), sqlx::Error> {
    let sql = "SELECT LOWER(table_name), engine FROM information_schema.tables
               WHERE table_schema = DATABASE() AND engine IS NOT NULL";
    let engines: BTreeMap<String, String> = pairs(conn, sql).await?;
    let mut is_wrong = false;
    for table in tables {
        let Some(engine) = engines.get(*table).filter(|engine| *engine != "InnoDB") else {
            continue;
        };
        is_wrong = true;
        findings.wrong(
            Check::Engine,
            format!("table {table} has the engine {engine}, which has no transactions"),
            Remedy::Sql(format!("ALTER TABLE `{table}` ENGINE = InnoDB")),
        );
    }
    if !is_wrong {
        findings.fine(Check::Engine, "all tables are InnoDB");
    }
    Ok(())
}

/// The rows of a query for two texts.
async fn pairs(
    conn: &mut MySqlConnection,
    sql: &str,
) -> Result<BTreeMap<String, String>, sqlx::Error> {
    let rows = sqlx::raw_sql(sql).fetch_all(conn).await?;
    rows.iter().map(|row| Ok((row.try_get_unchecked(0)?, row.try_get_unchecked(1)?))).collect()
}
