use std::time::Duration;

use sqlx::{
    Connection, Executor as _, MySqlConnection,
    migrate::{MigrateError, Migrator},
};
use tokio::time::sleep;

use super::{StoreError, charsets::name_charsets, rows::ascii, sessions::logs_statements};
use crate::config::SecretUrl;

/// How long one `setup` waits for another, in seconds.
const LOCK_WAIT_SECONDS: u32 = 60;
const LOCK: &str = "stocklock_migrations";

/// An ALTER that waits for a table keeps all others from it: it waits for a second at most, and
/// tries again later.
const SESSION: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', autocommit = 1, sql_safe_updates = 0, \
                       lock_wait_timeout = 1, innodb_lock_wait_timeout = 1";
const MAX_ATTEMPTS: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Brings the order store's tables up to date. Idempotent.
pub(crate) async fn migrate_order_store(url: &SecretUrl) -> Result<(), StoreError> {
    migrate(url, sqlx::migrate!("migrations/orders")).await
}

/// Brings the stock store's tables up to date. Idempotent.
pub(crate) async fn migrate_stock_store(url: &SecretUrl) -> Result<(), StoreError> {
    migrate(url, sqlx::migrate!("migrations/stock")).await
}

/// Both stores may live in one database, where they share sqlx's table: the numbers of their migrations differ, and each leaves the
/// other's alone. The lock is ours, with a bound: sqlx waits without one, which MariaDB does not take.
async fn migrate(url: &SecretUrl, mut migrator: Migrator) -> Result<(), StoreError> {
    let mut conn = MySqlConnection::connect(url.expose()).await?;
    let lock = sqlx::query_scalar("SELECT GET_LOCK(?, ?)").bind(LOCK).bind(LOCK_WAIT_SECONDS);
    let locked: Option<i64> = lock.fetch_one(&mut conn).await?;
    if locked != Some(1) {
        return Err(StoreError::Unavailable(format!(
            "another setup has been migrating for {LOCK_WAIT_SECONDS} s"
        )));
    }
    conn.execute(SESSION).await?;
    check_json_table(&mut conn).await?;
    if logs_statements(&mut conn).await? {
        let why =
            "binlog_format is STATEMENT, by which InnoDB cannot log READ COMMITTED: set it to ROW";
        return Err(StoreError::Refused(why.into()));
    }
    migrator.set_locking(false);
    migrator.set_ignore_missing(true);
    run(&mut conn, &migrator).await?;
    name_charsets(&mut conn).await?;
    conn.close().await?;
    Ok(())
}

/// Runs what was not run yet, again where a table was busy.
async fn run(conn: &mut MySqlConnection, migrator: &Migrator) -> Result<(), StoreError> {
    let mut attempts = 0;
    loop {
        forget_interrupted(conn).await?;
        let why = match migrator.run_direct(conn).await {
            Ok(()) => return Ok(()),
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
                match error.into() {
                    StoreError::Conflict(why) => why,
                    error => return Err(error),
                }
            }
            Err(error) => return Err(StoreError::Refused(error.to_string())),
        };
        attempts += 1;
        if attempts == MAX_ATTEMPTS {
            return Err(StoreError::Unavailable(why));
        }
        tracing::warn!(attempts, why, "a table is busy, migrating again");
        sleep(RETRY_DELAY).await;
    }
}

/// Before 10.11.10, `MariaDB` keeps the escapes of a JSON string (MDEV-27412): what our statements write would be garbled.
async fn check_json_table(conn: &mut MySqlConnection) -> Result<(), StoreError> {
    let sql =
        r#"SELECT v FROM JSON_TABLE('["a\\"b"]', '$[*]' COLUMNS (v VARCHAR(9) PATH '$')) AS t"#;
    let row = sqlx::query(sql).fetch_one(conn).await?;
    if ascii(&row, "v")? == "a\"b" {
        return Ok(());
    }
    Err(StoreError::Refused(
        "the server's JSON_TABLE garbles strings: MySQL 8.4 or MariaDB 10.11.10 is needed".into(),
    ))
}

/// A migration that was interrupted runs again: what it had created it leaves alone.
async fn forget_interrupted(conn: &mut MySqlConnection) -> Result<(), StoreError> {
    let exists = "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '_sqlx_migrations'";
    if sqlx::query(exists).fetch_optional(&mut *conn).await?.is_some() {
        sqlx::query("DELETE FROM _sqlx_migrations WHERE NOT success").execute(conn).await?;
    }
    Ok(())
}
