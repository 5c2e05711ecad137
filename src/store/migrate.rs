//! Brings the tables of both stores up to date, for `setup`.

use std::{str::FromStr as _, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, MySqlConnection,
    migrate::{MigrateError, Migrator},
    mysql::MySqlConnectOptions,
};
use tokio::time::{sleep, timeout};

use super::{
    StoreError,
    charsets::name_charsets,
    error::{Outage, STATEMENT_LOG},
    rows::ascii,
    session::{address, logs_statements},
};
use crate::config::SecretUrl;

/// How long one `setup` waits for another.
const MAX_LOCK_WAIT: Duration = Duration::from_secs(60);
/// How long the server may take to let the user in, and for each question before the migrations.
/// A migration has no limit, since an ALTER of a large table takes long.
const MAX_ANSWER: Duration = Duration::from_secs(5);
const LOCK: &str = "stocklock_migrations";

/// An ALTER that waits for a table keeps all other sessions from the table. So it waits for 1 s at
/// most, and tries again later.
const SESSION: &str = "
    SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', autocommit = 1,
                sql_safe_updates = 0, lock_wait_timeout = 1, innodb_lock_wait_timeout = 1";
const MAX_ATTEMPTS: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Brings the order store's tables up to date. Idempotent. Fails as [`migrate_stock_store`] does.
pub(crate) async fn migrate_order_store(url: &SecretUrl) -> Result<(), StoreError> {
    migrate(url, of_orders()).await
}

/// Brings the stock store's tables up to date. Idempotent. Fails with
///
/// - [`StoreError::Unsupported`] if the server lacks what stocklock needs,
/// - [`StoreError::Migration`] if a migration was changed after it had run,
/// - [`StoreError::Unavailable`] if the server does not answer within 5 s, if another `setup` is at
///   work for 60 s, or if a table is busy at each of 20 attempts,
/// - any error of a statement.
pub(crate) async fn migrate_stock_store(url: &SecretUrl) -> Result<(), StoreError> {
    migrate(url, of_stock()).await
}

/// The migrations of the order store.
pub(super) fn of_orders() -> Migrator {
    sqlx::migrate!("migrations/orders")
}

/// The migrations of the stock store.
pub(super) fn of_stock() -> Migrator {
    sqlx::migrate!("migrations/stock")
}

/// Both stores may be in one database, and then share sqlx's table of migrations. The versions of
/// their migrations differ, and each store leaves the other's alone.
///
/// The lock is our own and has a bound. sqlx waits for its lock without one, by a statement that
/// MariaDB does not take.
async fn migrate(url: &SecretUrl, mut migrator: Migrator) -> Result<(), StoreError> {
    let options = MySqlConnectOptions::from_str(url.expose())?;
    let server = address(&options);
    let mut conn = in_time(&server, MAX_ANSWER, async { Ok(options.connect().await?) }).await?;
    let lock = sqlx::query_scalar("SELECT GET_LOCK(?, ?)").bind(LOCK).bind(MAX_LOCK_WAIT.as_secs());
    let lock = async { Ok(lock.fetch_one(&mut conn).await?) };
    let locked: Option<i64> = in_time(&server, MAX_LOCK_WAIT + MAX_ANSWER, lock).await?;
    if locked != Some(1) {
        return Err(Outage::OtherSetup(MAX_LOCK_WAIT).into());
    }
    in_time(&server, MAX_ANSWER, prepare(&mut conn)).await?;
    migrator.set_locking(false);
    migrator.set_ignore_missing(true);
    run(&mut conn, &migrator).await?;
    name_charsets(&mut conn).await?;
    conn.close().await?;
    Ok(())
}

/// Fails with [`Outage::NoAnswer`] if `work` takes longer.
async fn in_time<T>(
    server: &str,
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let silent = || Outage::NoAnswer { server: server.to_owned(), limit }.into();
    timeout(limit, work).await.unwrap_or_else(|_| Err(silent()))
}

/// Sets up the session. Fails if the server lacks what stocklock needs.
async fn prepare(conn: &mut MySqlConnection) -> Result<(), StoreError> {
    conn.execute(SESSION).await?;
    check_json_table(conn).await?;
    if logs_statements(conn).await? {
        return Err(StoreError::Unsupported(STATEMENT_LOG));
    }
    Ok(())
}

/// Runs the migrations that have not run yet. Tries again if a table is busy.
async fn run(conn: &mut MySqlConnection, migrator: &Migrator) -> Result<(), StoreError> {
    let mut attempts = 0;
    loop {
        forget_interrupted(conn).await?;
        let conflict = match migrator.run_direct(conn).await {
            Ok(()) => return Ok(()),
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
                match error.into() {
                    StoreError::Conflict(conflict) => conflict,
                    error => return Err(error),
                }
            }
            Err(error) => return Err(StoreError::Migration(error)),
        };
        attempts += 1;
        if attempts == MAX_ATTEMPTS {
            return Err(Outage::BusyTable { attempts, source: conflict }.into());
        }
        tracing::warn!(attempts, %conflict, "a table is busy, migrating again");
        sleep(RETRY_DELAY).await;
    }
}

/// Before 10.11.10, MariaDB keeps the escapes of a JSON string (MDEV-27412). Our statements would
/// write garbled text there.
pub(super) async fn check_json_table(conn: &mut MySqlConnection) -> Result<(), StoreError> {
    let sql =
        r#"SELECT v FROM JSON_TABLE('["a\\"b"]', '$[*]' COLUMNS (v VARCHAR(9) PATH '$')) AS t"#;
    let row = sqlx::query(sql).fetch_one(conn).await?;
    if ascii(&row, "v")? == "a\"b" {
        return Ok(());
    }
    Err(StoreError::Unsupported(
        "its JSON_TABLE garbles strings: MySQL 8.4 or MariaDB 10.11.10 is needed",
    ))
}

/// An interrupted migration runs again. Its statements leave alone what they had created before.
async fn forget_interrupted(conn: &mut MySqlConnection) -> Result<(), StoreError> {
    let exists = "SELECT 1 FROM information_schema.tables
                  WHERE table_schema = DATABASE() AND table_name = '_sqlx_migrations'";
    if sqlx::query(exists).fetch_optional(&mut *conn).await?.is_some() {
        sqlx::query("DELETE FROM _sqlx_migrations WHERE NOT success").execute(conn).await?;
    }
    Ok(())
}
