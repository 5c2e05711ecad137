//! Other clients lock the same products: by rows, or by another implementation of Redlock on the
//! same keys.

use std::{sync::Arc, time::Duration};

use rslock::{Lock, LockManager};
use sqlx::{Connection as _, MySqlConnection};
use stocklock::{
    config::SecretUrl,
    domain::ProductId,
    lock::{LockError, Locks},
};

use crate::harness::{
    Database, Strategy, World, acquire, decide, is_held_up_at, on_every_stack, order_lines, stays,
};

/// Another client, which tries once.
struct Other {
    redlock: LockManager,
    rows: MySqlConnection,
}

/// The lock of another client. Row locks end with its connection.
enum Theirs {
    Row(MySqlConnection),
    Redlock(LockManager, Lock),
}

impl Other {
    async fn new(world: &World) -> Self {
        let mut redlock =
            LockManager::new(world.config.redis.urls.iter().map(SecretUrl::expose).collect());
        redlock.set_retry(1, Duration::from_millis(1));
        let rows = MySqlConnection::connect(world.config.stock_store.url.expose())
            .await
            .expect("a connection");
        Self { redlock, rows }
    }

    /// Locks a product by the world's strategy. Returns `None` if another holds it.
    async fn lock(mut self, world: &World, product: &str) -> Option<Theirs> {
        match world.strategy {
            Strategy::Row => {
                let sql = format!(
                    "START TRANSACTION;
                     SELECT version FROM products WHERE product_id = '{product}' FOR UPDATE NOWAIT"
                );
                sqlx::raw_sql(&sql).execute(&mut self.rows).await.ok()?;
                Some(Theirs::Row(self.rows))
            }
            Strategy::Redlock => {
                let key = format!("{}{product}", world.config.lock.prefix);
                let lock = self.redlock.lock(key.as_str(), Duration::from_secs(60)).await.ok()?;
                Some(Theirs::Redlock(self.redlock, lock))
            }
        }
    }
}

impl Theirs {
    async fn unlock(self) {
        match self {
            Self::Row(rows) => rows.close().await.expect("rolled back"),
            Self::Redlock(manager, lock) => manager.unlock(&lock).await,
        }
    }
}

on_every_stack!(
    a_worker_waits_for_a_product_of_another_client,
    a_product_of_a_worker_is_denied_to_others,
);

async fn a_worker_waits_for_a_product_of_another_client(world: World) {
    world.import(&[("a", 5), ("b", 5)]);
    let worker = Arc::new(world.worker(&World::metrics()));
    let events = world.save(&[order_lines(&[("a", 1), ("b", 1)])]).await;
    let theirs = Other::new(&world).await.lock(&world, "b").await.expect("free");

    let deciding = tokio::spawn(async move { decide(&worker, &events).await });
    stays(Duration::from_secs(2), "the other client holds the product", async || {
        !deciding.is_finished()
    })
    .await;

    assert_eq!((world.available("a"), world.available("b")), (5, 5));

    theirs.unlock().await;
    deciding.await.expect("decided");
    assert_eq!((world.available("a"), world.available("b")), (4, 4));
}

async fn a_product_of_a_worker_is_denied_to_others(world: World) {
    world.import(&[("a", 5), ("b", 5)]);
    let worker = Arc::new(world.worker(&World::metrics()));
    let events = world.save(&[order_lines(&[("a", 1), ("b", 1)])]).await;

    // A rival is about to write the order's outcome: the worker waits in the middle of its
    // transaction.
    let mut rival = MySqlConnection::connect(world.config.stock_store.url.expose())
        .await
        .expect("a connection");
    sqlx::raw_sql("START TRANSACTION").execute(&mut rival).await.expect("begun");
    let insert =
        sqlx::query("INSERT INTO order_outcomes VALUES (?, 'FAILED', NULL, '[]', NOW(3), NULL)");
    insert.bind(&events[0].order_id.as_bytes()[..]).execute(&mut rival).await.expect("inserted");
    let deciding = tokio::spawn(async move { decide(&worker, &events).await });
    is_held_up_at(&mut rival, &deciding, "INSERT INTO order_outcomes").await;

    for product in ["a", "b"] {
        assert!(
            Other::new(&world).await.lock(&world, product).await.is_none(),
            "{product} is the worker's"
        );
    }

    rival.close().await.expect("rolled back");
    deciding.await.expect("decided");
    for product in ["a", "b"] {
        assert_eq!(world.available(product), 4);
        Other::new(&world).await.lock(&world, product).await.expect("free again").unlock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_of_many_keys_respects_another_client_and_is_respected() {
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    world.config.lock.wait = Duration::from_millis(200);
    world.config.lock.node_timeout = Duration::from_secs(2);
    let (prefix, ttl) = (&world.config.lock.prefix, world.config.lock.ttl);
    let locks =
        Locks::new(&world.config.lock, &world.config.redis, &World::metrics()).expect("the locks");
    let urls: Vec<_> = world.config.redis.urls.iter().map(SecretUrl::expose).collect();
    let mut other = LockManager::new(urls);
    other.set_retry(1, Duration::from_millis(1));
    let products: Vec<_> =
        (0..1_500).map(|n| ProductId::parse(&format!("p{n:04}")).expect("an id")).collect();
    let last = format!("{prefix}p1499");

    let theirs = other.lock(last.as_str(), ttl).await.expect("free");

    assert_eq!(
        acquire(&locks, &products).await.expect_err("the last key is theirs"),
        LockError::Contended
    );
    // Nothing is left of what was granted before the last key was refused.
    acquire(&locks, &products[..1_499]).await.expect("free").release().await;

    other.unlock(&theirs).await;
    let ours = acquire(&locks, &products).await.expect("free again");
    other.lock(last.as_str(), ttl).await.expect_err("the key is ours");
    ours.release().await;
    other.lock(last.as_str(), ttl).await.expect("free again");
}
