use sqlx::{AssertSqlSafe, Connection, MySqlConnection, migrate::Migrator};

use super::StoreError;
use crate::config::SecretUrl;

/// How long one `setup` waits for another, in seconds.
const LOCK_WAIT_SECONDS: u32 = 60;

/// Brings the order store's tables up to date. Idempotent.
pub async fn migrate_order_store(url: &SecretUrl) -> Result<(), StoreError> {
    migrate(url, sqlx::migrate!("migrations/orders"), "stocklock_order_migrations").await
}

/// Brings the stock store's tables up to date. Idempotent.
pub async fn migrate_stock_store(url: &SecretUrl) -> Result<(), StoreError> {
    migrate(url, sqlx::migrate!("migrations/stock"), "stocklock_stock_migrations").await
}

/// Each store keeps a table of its own migrations, since both may live in one database. The lock is ours, with a bound:
/// sqlx waits without one, which MariaDB does not take.
async fn migrate(url: &SecretUrl, mut migrator: Migrator, table: &'static str) -> Result<(), StoreError> {
    let mut conn = MySqlConnection::connect(url.expose()).await?;
    let lock = format!("SELECT GET_LOCK('{table}', {LOCK_WAIT_SECONDS})");
    let locked: Option<i64> = sqlx::query_scalar(AssertSqlSafe(lock)).fetch_one(&mut conn).await?;
    if locked != Some(1) {
        return Err(StoreError::Unavailable(format!("another setup has been migrating for {LOCK_WAIT_SECONDS} s")));
    }
    check_json_table(&mut conn).await?;
    forget_interrupted(&mut conn, table).await?;
    migrator.set_locking(false).dangerous_set_table_name(table);
    migrator.run_direct(None, &mut conn, false).await.map_err(|e| StoreError::Refused(e.to_string()))?;
    conn.close().await?;
    Ok(())
}

/// Before 10.11.10, `MariaDB` keeps the escapes of a JSON string (MDEV-27412): what our statements write would be garbled.
async fn check_json_table(conn: &mut MySqlConnection) -> Result<(), StoreError> {
    let sql = r#"SELECT v FROM JSON_TABLE('["a\\"b"]', '$[*]' COLUMNS (v VARCHAR(9) PATH '$')) AS t"#;
    let read: String = sqlx::query_scalar(sql).fetch_one(conn).await?;
    if read == "a\"b" {
        return Ok(());
    }
    Err(StoreError::Refused("the server's JSON_TABLE garbles strings: MySQL 8.4 or MariaDB 10.11.10 is needed".into()))
}

/// A migration that was interrupted runs again: what it had created it leaves alone.
async fn forget_interrupted(conn: &mut MySqlConnection, table: &'static str) -> Result<(), StoreError> {
    let exists =
        sqlx::query("SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?");
    if exists.bind(table).fetch_optional(&mut *conn).await?.is_some() {
        let forget = format!("DELETE FROM {table} WHERE NOT success");
        sqlx::raw_sql(AssertSqlSafe(forget)).execute(conn).await?;
    }
    Ok(())
}
