use sqlx::{Connection as _, MySqlConnection};

use super::World;

/// A rival that holds a product's row, with a change of it that is not committed yet.
pub(crate) struct Rival {
    pub conn: MySqlConnection,
}

impl Rival {
    /// Changes what is available of a product, as `stock restock` does, and does not commit.
    pub(crate) async fn adjust(world: &World, product: &str, quantity: i64) -> Self {
        let sql = format!(
            "UPDATE products SET available = available + {quantity}, version = version + 1 \
             WHERE product_id = '{product}';
             INSERT INTO stock_movements (product_id, kind, quantity, created_at)
             VALUES ('{product}', 'ADJUST', {quantity}, NOW(3))"
        );
        Self::begin(world, &sql).await
    }

    /// Changes what no decision rests on, a product's name, and does not commit.
    pub(crate) async fn rename(world: &World, product: &str) -> Self {
        Self::begin(
            world,
            &format!("UPDATE products SET name = 'new' WHERE product_id = '{product}'"),
        )
        .await
    }

    async fn begin(world: &World, sql: &str) -> Self {
        let mut conn = MySqlConnection::connect(world.config.stock_store.url.expose())
            .await
            .expect("a connection");
        let sql = format!("START TRANSACTION; {sql}");
        sqlx::raw_sql(&sql).execute(&mut conn).await.expect("changed");
        Self { conn }
    }

    pub(crate) async fn commit(mut self) {
        sqlx::raw_sql("COMMIT").execute(&mut self.conn).await.expect("committed");
    }
}
