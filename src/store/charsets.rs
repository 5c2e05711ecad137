//! Names the character set of columns that were made with the database's default.

use std::time::Duration;

use sqlx::{Executor as _, MySqlConnection, Row as _, mysql::MySqlRow};
use tokio::time::sleep;

use super::{StoreError, rows::ascii};

/// The enumerations whose character set is another. Their names are theirs, also where another
/// program reads them.
const FIND: &str = "
    SELECT LOWER(table_name) AS table_name, column_name AS column_name, column_type AS column_type,
           column_default AS column_default, is_nullable AS is_nullable
    FROM information_schema.columns
    WHERE table_schema = DATABASE() AND data_type = 'enum' AND collation_name <> 'ascii_general_ci'
      AND table_name IN ('orders', 'outbox', 'order_outcomes', 'stock_movements')";

/// A table of more rows is not copied: its writers would wait.
const MAX_COPIED_ROWS: u32 = 10_000;
const MAX_ATTEMPTS: u32 = 5;
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Brings enumerations to `ascii_general_ci` where that blocks no write for more than a second.
/// `MySQL` changes what it knows of the column, and no row. `MariaDB` would copy the table: a large
/// one stays as it is. What reads the columns does not depend on it.
pub(super) async fn name_charsets(conn: &mut MySqlConnection) -> Result<(), StoreError> {
    for row in conn.fetch_all(FIND).await? {
        let (table, column) = (ascii(&row, "table_name")?, ascii(&row, "column_name")?);
        if let Err(error) = name_charset(conn, table, &definition(&row)?).await {
            tracing::info!(table, column, %error, "the column keeps its character set");
        }
    }
    Ok(())
}

async fn name_charset(
    conn: &mut MySqlConnection,
    table: &str,
    definition: &str,
) -> Result<(), StoreError> {
    let alter = format!("ALTER TABLE `{table}` MODIFY {definition}");
    match alter_soon(conn, &format!("{alter}, ALGORITHM = INSTANT")).await {
        Err(StoreError::Unavailable(_)) => {}
        done => return done,
    }
    let sql = format!(
        "SELECT COUNT(*) FROM (SELECT 1 FROM `{table}` LIMIT {}) AS first_rows",
        MAX_COPIED_ROWS + 1
    );
    let rows: i64 = conn.fetch_one(sql.as_str()).await?.try_get_unchecked(0)?;
    if rows > i64::from(MAX_COPIED_ROWS) {
        return Err(StoreError::Refused(format!(
            "{table} has more than {MAX_COPIED_ROWS} rows, which would be copied"
        )));
    }
    alter_soon(conn, &alter).await
}

/// Tries again where the table is busy.
async fn alter_soon(conn: &mut MySqlConnection, sql: &str) -> Result<(), StoreError> {
    let mut attempts = 1;
    loop {
        match conn.execute(sql).await.map_err(StoreError::from) {
            Err(StoreError::Conflict(_)) if attempts < MAX_ATTEMPTS => {
                attempts += 1;
                sleep(RETRY_DELAY).await;
            }
            done => return done.map(drop),
        }
    }
}

/// The column as it is, but for its character set. `MariaDB` quotes the default, `MySQL` does not.
fn definition(row: &MySqlRow) -> Result<String, StoreError> {
    let (column, kind) = (ascii(row, "column_name")?, ascii(row, "column_type")?);
    let default: Option<&str> = row.try_get_unchecked("column_default")?;
    let default = default.map(|value| value.trim_matches('\'')).filter(|value| *value != "NULL");
    let default = default.map_or(String::new(), |value| format!(" DEFAULT '{value}'"));
    let null = if ascii(row, "is_nullable")? == "YES" { "NULL" } else { "NOT NULL" };
    Ok(format!("`{column}` {kind} CHARACTER SET ascii COLLATE ascii_general_ci {null}{default}"))
}
