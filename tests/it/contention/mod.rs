//! Batches that want the same products: which of them waits, for how long, what goes on meanwhile,
//! and that each gets its turn.

mod batches;
mod fairness;
mod waiting;

use std::time::Duration;

use rslock::{Lock, LockManager};
use stocklock::config::SecretUrl;

use crate::harness::{Database, Strategy, World, wait_for};

/// A world whose masters may be slow: no test here is about late answers.
async fn redlock_world() -> World {
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    world.config.lock.node_timeout = Duration::from_secs(2);
    world
}

/// The key of a product on the masters.
fn key(world: &World, product: &str) -> String {
    format!("{}{product}", world.config.lock.prefix)
}

/// Another implementation of Redlock, on the same masters.
fn rslock(world: &World) -> LockManager {
    let mut other =
        LockManager::new(world.config.redis.urls.iter().map(SecretUrl::expose).collect());
    other.set_retry(1, Duration::from_millis(1));
    other
}

/// Has [`rslock`] lock a free product for a minute. One attempt of it takes half a second at most.
async fn lock_by_rslock(world: &World, product: &str) -> Lock {
    wait_for(async || {
        rslock(world).lock(key(world, product).as_str(), Duration::from_secs(60)).await
    })
    .await
}
