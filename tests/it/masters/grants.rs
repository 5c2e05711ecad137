//! Grants that masters lose, or give too late.

use std::time::Duration;

use stocklock::{
    domain::ProductId,
    lock::{Held, LockError, Locks},
};

use super::{RESUMES_WITHIN, world_on};
use crate::harness::{Masters, World, acquire, products, stays, wait_for, wait_until_within};

/// Keys that all three masters have granted. A majority would do for a lock, and the masters refuse
/// a claim that is later than another one.
async fn granted_by_all(masters: &Masters, locks: &Locks, wanted: &[ProductId]) -> Held {
    wait_for(async || {
        let held = acquire(locks, wanted).await.expect("free");
        // The third grant may still be on its way.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut keys = Vec::new();
        for number in 0..3 {
            keys.push(masters.keys_of(number, "*p00*").await.len());
        }
        if keys == [wanted.len(); 3] {
            return Ok(held);
        }
        held.release().await;
        Err(format!("not granted by all: {keys:?}"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_one_master_forgets_stay_held_and_two_are_noticed() {
    let mut masters = Masters::start(3).await;
    let mut world = world_on(&masters).await;
    world.config.lock.ttl = Duration::from_secs(6);
    world.config.lock.wait = Duration::from_millis(100);
    let metrics = World::metrics();
    let (ours, others) = (world.locks_with(&metrics), world.locks());
    let wanted = products(5);
    let held = granted_by_all(&masters, &ours, &wanted).await;

    masters.restart_empty(0).await;

    let refused = acquire(&others, &wanted).await.expect_err("two masters still have the keys");
    assert_eq!(refused, LockError::Contended);
    let longer = world.config.lock.ttl + Duration::from_secs(1);
    stays(longer, "two masters renew the keys", async || !held.is_lost()).await;

    masters.restart_empty(1).await;

    wait_until_within(world.config.lock.ttl, "the renewal fails on a majority", async || {
        held.is_lost()
    })
    .await;
    assert_eq!(metrics.lock_failures.with_label_values(&["lost"]).get(), 1);
    held.release().await;
    acquire(&others, &wanted).await.expect("free").release().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_comes_after_its_release_is_released() {
    let masters = Masters::start(3).await;
    let mut world = world_on(&masters).await;
    world.config.lock.ttl = Duration::from_secs(60);
    let locks = world.locks();
    let wanted = products(5);
    acquire(&locks, &wanted).await.expect("free").release().await;
    masters.freeze(2).await;
    let held = acquire(&locks, &wanted).await.expect("two grant it");
    // Longer than a master has to answer: the request is still in its socket, and the release does
    // not ask this master.
    tokio::time::sleep(world.config.lock.node_timeout + Duration::from_secs(1)).await;
    held.release().await;

    masters.thaw(2).await;

    // The master first runs the requests that were in its socket.
    tokio::time::sleep(Duration::from_millis(300)).await;
    wait_until_within(world.config.lock.ttl / 4, "the master has no keys", async || {
        masters.keys_of(2, "*p00*").await.is_empty()
    })
    .await;
    // It is asked again.
    acquire(&locks, &wanted).await.expect("free").release().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masters_that_refuse_the_password_for_a_while_are_asked_again() {
    let masters = Masters::start(3).await;
    let mut world = world_on(&masters).await;
    for number in 0..3 {
        masters.change_password(number, "", "right").await;
    }
    world.config.redis.urls = masters.urls_with("right");
    let locks = world.locks();
    let wanted = products(5);
    acquire(&locks, &wanted).await.expect("free").release().await;

    for number in 0..2 {
        masters.change_password(number, "right", "another").await;
    }
    for _ in 0..20 {
        let error = acquire(&locks, &wanted).await.expect_err("two refuse the password");
        assert_eq!(error, LockError::Unavailable);
        // The masters refuse for a while, through many attempts.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for number in 0..2 {
        masters.change_password(number, "another", "right").await;
    }

    wait_until_within(RESUMES_WITHIN, "the masters are asked again", async || {
        acquire(&locks, &wanted).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_comes_too_late_counts_as_an_outage() {
    let masters = Masters::start(3).await;
    let mut world = world_on(&masters).await;
    world.config.lock.ttl = Duration::from_secs(3);
    world.config.lock.node_timeout = Duration::from_secs(20);
    let metrics = World::metrics();
    let locks = world.locks_with(&metrics);
    let wanted = products(5);
    acquire(&locks, &wanted).await.expect("free").release().await;
    for number in 0..3 {
        masters.freeze(number).await;
    }

    let (granted, ()) = tokio::join!(acquire(&locks, &wanted), async {
        // The grant comes later than the key would live.
        tokio::time::sleep(world.config.lock.ttl + Duration::from_millis(500)).await;
        for number in 0..3 {
            masters.thaw(number).await;
        }
    });

    assert_eq!(granted.expect_err("not in time"), LockError::Unavailable);
    assert_eq!(metrics.lock_failures.with_label_values(&["contended"]).get(), 0);
    acquire(&locks, &wanted).await.expect("in time").release().await;
}

/// The late master answers within its time, but long after the others have refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_grant_to_a_claim_that_was_refused_is_released() {
    let masters = Masters::start(3).await;
    let mut world = world_on(&masters).await;
    world.config.lock.ttl = Duration::from_secs(60);
    world.config.lock.node_timeout = Duration::from_secs(5);
    world.config.lock.wait = Duration::from_millis(10);
    let locks = world.locks();
    let wanted = products(5);
    acquire(&locks, &wanted).await.expect("free").release().await;
    let key = format!("{}{}", world.config.lock.prefix, wanted[0]);
    for number in 0..2 {
        masters.set(number, &key, Some(Duration::from_secs(60))).await;
    }
    masters.freeze(2).await;
    assert_eq!(acquire(&locks, &wanted).await.expect_err("two refuse"), LockError::Contended);

    masters.thaw(2).await;

    wait_until_within(world.config.lock.ttl / 4, "the master has no keys", async || {
        masters.keys_of(2, "*").await.keys().all(|key| key.contains(' '))
    })
    .await;
}
