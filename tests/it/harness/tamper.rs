use sqlx::{Connection, MySqlConnection};

use super::World;

impl World {
    /// Runs statements behind the project's back, in the order store.
    pub(crate) async fn tamper_with_orders(&self, sql: &str) {
        run(self.config.order_store.url.expose(), sql).await.expect("the statement");
    }

    /// The same in the stock store, where the statement may be refused.
    pub(crate) async fn try_stock(&self, sql: &str) -> sqlx::Result<()> {
        run(self.config.stock_store.url.expose(), sql).await
    }
}

async fn run(url: &str, sql: &str) -> sqlx::Result<()> {
    let mut conn = MySqlConnection::connect(url).await?;
    sqlx::raw_sql(sql).execute(&mut conn).await?;
    Ok(())
}
