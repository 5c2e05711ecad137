//! How long a contender waits.

use std::{sync::Arc, time::Duration};

use stocklock::{
    domain::ProductId,
    lock::{LockError, Locks},
};
use tokio::time::Instant;

use super::{lock_by_rslock, redlock_world, rslock};
use crate::harness::{acquire, products_named, stays, wait_until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_is_kept_while_another_key_has_a_dead_holder() {
    let mut world = redlock_world().await;
    world.config.lock.wait = Duration::from_secs(60);
    let both = products_named(&["a", "z"]);
    let holder_of_z = world.locks();
    let z = acquire(&holder_of_z, &both[1..]).await.expect("free");
    let waiting = {
        let (locks, both) = (world.locks(), both.clone());
        tokio::spawn(async move { acquire(&locks, &both).await.expect("its turn").release().await })
    };
    wait_until("the contender is in the queue of z", async || {
        world.keys().await.keys().any(|key| key.ends_with("z queue"))
    })
    .await;
    let dead = lock_by_rslock(&world, "a").await;

    z.release().await;

    // Longer than a place in a queue lasts by itself.
    stays(Duration::from_secs(3), "it waits for a", async || !waiting.is_finished()).await;
    world.config.lock.wait = Duration::from_secs(1);
    let younger = world.locks();
    assert_eq!(
        acquire(&younger, &both[1..]).await.expect_err("another contender's turn"),
        LockError::Contended
    );
    assert!(!waiting.is_finished(), "it waits for the first key");
    rslock(&world).unlock(&dead).await;
    // Sooner than the key of the dead holder expires.
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("its turn").unwrap();
    acquire(&younger, &both[1..]).await.expect("free").release().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_budget_is_kept() {
    let mut world = redlock_world().await;
    let other = lock_by_rslock(&world, "b").await;

    for wait in [400, 1_000, 2_500].map(Duration::from_millis) {
        world.config.lock.wait = wait;
        let locks = world.locks();
        // It never waits for less. It may wait for more when the machine is busy, so one of five
        // attempts has to be in time.
        let mut is_kept = false;
        for _ in 0..5 {
            let begun = Instant::now();
            let refused = acquire(&locks, &products_named(&["a", "b"])).await.expect_err("held");
            let waited = begun.elapsed();

            assert_eq!(refused, LockError::Contended);
            assert!(waited >= wait * 9 / 10, "{waited:?} instead of {wait:?}");
            is_kept = waited <= wait * 11 / 10;
            if is_kept {
                break;
            }
        }
        assert!(is_kept, "{wait:?} is never kept");
    }
    rslock(&world).unlock(&other).await;
}

/// The time from a release until the next contender holds the keys.
async fn gap_after_a_release(one: &Locks, other: &Arc<Locks>, wanted: &[ProductId]) -> Duration {
    let held = acquire(one, wanted).await.expect("free");
    let (next, wanted) = (Arc::clone(other), wanted.to_vec());
    let waiting = tokio::spawn(async move {
        let held = acquire(&next, &wanted).await.expect("its turn");
        let at = Instant::now();
        held.release().await;
        at
    });
    // The other waits by then, and would try again by the clock alone within 50 to 100 ms.
    tokio::time::sleep(Duration::from_millis(120)).await;
    let released = Instant::now();
    held.release().await;
    waiting.await.unwrap().saturating_duration_since(released)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_wakes_the_next_contender() {
    let mut world = redlock_world().await;
    world.config.lock.wait = Duration::from_secs(5);
    let (one, other) = (world.locks(), Arc::new(world.locks()));
    let wanted = products_named(&["a", "b"]);

    // With attempts by the clock alone no series is that fast. A busy machine may spoil one.
    for series in 1.. {
        let mut gaps = Vec::new();
        for _ in 0..20 {
            gaps.push(gap_after_a_release(&one, &other, &wanted).await);
        }
        gaps.sort_unstable();
        if gaps[15] < Duration::from_millis(15) {
            break;
        }
        assert!(series < 5, "{gaps:?}");
    }
}
