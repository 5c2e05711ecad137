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
    migrator.set_locking(false).dangerous_set_table_name(table);
    migrator.run_direct(None, &mut conn, false).await.map_err(|e| StoreError::Refused(e.to_string()))?;
    conn.close().await?;
    Ok(())
}
