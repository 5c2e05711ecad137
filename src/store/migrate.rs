use sqlx::{Connection, MySqlConnection, migrate::Migrator};

use super::StoreError;
use crate::config::SecretUrl;

/// How long one `setup` waits for another, in seconds.
const LOCK_WAIT_SECONDS: u32 = 60;
const LOCK: &str = "stocklock_migrations";

/// Brings the order store's tables up to date. Idempotent.
pub async fn migrate_order_store(url: &SecretUrl) -> Result<(), StoreError> {
    migrate(url, sqlx::migrate!("migrations/orders")).await
}

/// Brings the stock store's tables up to date. Idempotent.
pub async fn migrate_stock_store(url: &SecretUrl) -> Result<(), StoreError> {
    migrate(url, sqlx::migrate!("migrations/stock")).await
}

/// Both stores may live in one database, where they share sqlx's table: the numbers of their migrations differ, and each leaves the
/// other's alone. The lock is ours, with a bound: sqlx waits without one, which MariaDB does not take.
async fn migrate(url: &SecretUrl, mut migrator: Migrator) -> Result<(), StoreError> {
    let mut conn = MySqlConnection::connect(url.expose()).await?;
    let lock = sqlx::query_scalar("SELECT GET_LOCK(?, ?)").bind(LOCK).bind(LOCK_WAIT_SECONDS);
    let locked: Option<i64> = lock.fetch_one(&mut conn).await?;
    if locked != Some(1) {
        return Err(StoreError::Unavailable(format!("another setup has been migrating for {LOCK_WAIT_SECONDS} s")));
    }
    check_json_table(&mut conn).await?;
    forget_interrupted(&mut conn).await?;
    migrator.set_locking(false);
    migrator.set_ignore_missing(true);
    migrator.run_direct(&mut conn).await.map_err(|e| StoreError::Refused(e.to_string()))?;
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
async fn forget_interrupted(conn: &mut MySqlConnection) -> Result<(), StoreError> {
    let exists =
        "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '_sqlx_migrations'";
    if sqlx::query(exists).fetch_optional(&mut *conn).await?.is_some() {
        sqlx::query("DELETE FROM _sqlx_migrations WHERE NOT success").execute(conn).await?;
    }
    Ok(())
}
