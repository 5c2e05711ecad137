//! Gives enumerations a character set of their own, where they have the database's default.

use std::time::Duration;

use sqlx::{Executor as _, MySqlConnection, Row as _, mysql::MySqlRow};
use tokio::time::sleep;

use super::{StoreError, rows::ascii};

/// The enumerations with another character set. The aliases give the columns lower-case names on
/// each server.
const FIND: &str = "
    SELECT LOWER(table_name) AS table_name, column_name AS column_name, column_type AS column_type,
           column_default AS column_default, is_nullable AS is_nullable
    FROM information_schema.columns
    WHERE table_schema = DATABASE() AND data_type = 'enum' AND collation_name <> 'ascii_general_ci'
      AND table_name IN
          ('orders', 'announcements', 'order_outcomes', 'stock_movements')";

/// A table with more rows is not copied, since writes would wait for the copy.
const MAX_COPIED_ROWS: u32 = 10_000;
const MAX_ATTEMPTS: u32 = 5;
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What became of a column.
enum Change {
    Made,
    /// The server would have to copy a table of more than [`MAX_COPIED_ROWS`].
    TableTooLarge,
}

/// Brings enumerations to `ascii_general_ci`, unless that blocks writes for more than 1 s.
///
/// MySQL changes its description of the column alone. MariaDB would copy the table, so a large
/// table keeps its character set. Our statements read the columns whatever their character set is.
///
/// Fails only if the columns cannot be listed.
pub(super) async fn name_charsets(conn: &mut MySqlConnection) -> Result<(), StoreError> {
    for row in conn.fetch_all(FIND).await? {
        let (table, column) = (ascii(&row, "table_name")?, ascii(&row, "column_name")?);
        match name_charset(conn, table, &definition(&row)?).await {
            Ok(Change::Made) => {}
            Ok(Change::TableTooLarge) => {
                tracing::info!(
                    table,
                    column,
                    max_rows = MAX_COPIED_ROWS,
                    "table is too large to copy, its column keeps its character set"
                );
            }
            Err(error) => {
                tracing::info!(table, column, %error, "column keeps its character set");
            }
        }
    }
    Ok(())
}

async fn name_charset(
    conn: &mut MySqlConnection,
    table: &str,
    definition: &str,
) -> Result<Change, StoreError> {
    let alter = format!("ALTER TABLE `{table}` MODIFY {definition}");
    match alter_soon(conn, &format!("{alter}, ALGORITHM = INSTANT")).await {
        Ok(()) => return Ok(Change::Made),
        // The server cannot do it in an instant.
        Err(StoreError::Unavailable(_)) => {}
        Err(error) => return Err(error),
    }
    let sql = format!(
        "SELECT COUNT(*) FROM (SELECT 1 FROM `{table}` LIMIT {}) AS first_rows",
        MAX_COPIED_ROWS + 1
    );
    let rows: i64 = conn.fetch_one(sql.as_str()).await?.try_get_unchecked(0)?;
    if rows > i64::from(MAX_COPIED_ROWS) {
        return Ok(Change::TableTooLarge);
    }
    alter_soon(conn, &alter).await.map(|()| Change::Made)
}

/// Tries up to five times if the table is busy. Fails with the error of the last attempt.
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

/// The definition of the column with another character set. MariaDB quotes the default, and
/// MySQL does not.
fn definition(row: &MySqlRow) -> Result<String, StoreError> {
    let (column, kind) = (ascii(row, "column_name")?, ascii(row, "column_type")?);
    let default: Option<&str> = row.try_get_unchecked("column_default")?;
    let default = default.map(|value| value.trim_matches('\'')).filter(|value| *value != "NULL");
    let default = default.map_or(String::new(), |value| format!(" DEFAULT '{value}'"));
    let null = if ascii(row, "is_nullable")? == "YES" { "NULL" } else { "NOT NULL" };
    Ok(format!("`{column}` {kind} CHARACTER SET ascii COLLATE ascii_general_ci {null}{default}"))
}
