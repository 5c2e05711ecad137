//! Each contender gets its turn, whatever the others want.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use stocklock::{config::SecretUrl, domain::ProductId, lock::Locks, telemetry::Metrics};
use tokio::{task::JoinHandle, time::Instant};

use super::{key, redlock_world};
use crate::harness::{Masters, Proxy, World, acquire, products, products_named, wait_until};

/// The turns of a contender, and the most turns of others between two of its own.
type Share = (u32, u32);

/// Acquires and releases its keys until `end`.
async fn contend(
    locks: Locks,
    wanted: Vec<ProductId>,
    work: Duration,
    all_turns: Arc<AtomicU32>,
    end: Instant,
) -> Share {
    let (mut turns, mut most_passed) = (0, 0);
    while Instant::now() < end {
        let before = all_turns.load(Ordering::SeqCst);
        let held = acquire(&locks, &wanted).await.expect("within the budget");
        most_passed = most_passed.max(all_turns.fetch_add(1, Ordering::SeqCst) - before);
        // The work under the lock.
        tokio::time::sleep(work).await;
        held.release().await;
        turns += 1;
    }
    (turns, most_passed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_contenders_for_three_keys_get_equal_shares() {
    const MOST_PASSED: u32 = 64;
    let mut world = redlock_world().await;
    world.config.lock.wait = Duration::from_secs(10);
    world.config.lock.node_timeout = Duration::from_secs(10);
    let keys = products_named(&["a", "b", "c"]);
    let all_turns = Arc::new(AtomicU32::new(0));
    let end = Instant::now() + Duration::from_secs(60);

    // One wants all three, the others want two of them, and some hold them for longer than others.
    let contenders = (0..8).map(|number: u64| {
        let wanted = match number {
            0 => &keys[..],
            odd if odd % 2 == 1 => &keys[..2],
            _ => &keys[1..],
        };
        let work = Duration::from_millis(2 + number % 3);
        let all_turns = Arc::clone(&all_turns);
        tokio::spawn(contend(world.locks(), wanted.to_vec(), work, all_turns, end))
    });
    let shares: Vec<Share> = futures::future::join_all(contenders)
        .await
        .into_iter()
        .map(|share| share.unwrap())
        .collect();

    let fair = shares.iter().map(|(turns, _)| turns).sum::<u32>() / 8;
    eprintln!("turns, and the most turns of others between two of them: {shares:?}");
    assert!(fair > 200, "few turns: {shares:?}");
    for (turns, most_passed) in &shares {
        assert!(
            (fair / 2..=fair * 2).contains(turns),
            "not within twice the fair share of {fair}: {shares:?}"
        );
        assert!(*most_passed <= MOST_PASSED, "a contender starves: {shares:?}");
    }
}

/// Two rivals for each key, which hand it to each other. A key is never free for long, and the keys
/// are never free together.
fn spawn_rivals(
    world: &World,
    keys: &[ProductId],
    turns: &Arc<[AtomicU32; 12]>,
) -> Vec<JoinHandle<()>> {
    const HOLD: Duration = Duration::from_millis(30);
    let rival = |number: usize| {
        let (locks, key, turns) = (world.locks(), number / 2, Arc::clone(turns));
        let wanted = keys[key].clone();
        tokio::spawn(async move {
            loop {
                let held = acquire(&locks, std::slice::from_ref(&wanted)).await.expect("its turn");
                turns[key].fetch_add(1, Ordering::SeqCst);
                // The work under the lock.
                tokio::time::sleep(HOLD).await;
                held.release().await;
            }
        })
    };
    (0..2 * keys.len()).map(rival).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contenders_for_one_key_do_not_starve_one_for_many_keys() {
    const MOST_PASSED: u32 = 24;
    let mut world = redlock_world().await;
    world.config.lock.wait = Duration::from_secs(10);
    world.config.lock.node_timeout = Duration::from_secs(10);
    let keys = products(12);
    let turns: Arc<[AtomicU32; 12]> = Arc::default();
    let count = || -> Vec<_> { turns.iter().map(|turns| turns.load(Ordering::SeqCst)).collect() };
    let rivals = spawn_rivals(&world, &keys, &turns);
    wait_until("each key is contended", async || count().iter().all(|turns| *turns >= 2)).await;

    let wide = world.locks();
    for _ in 0..5 {
        let before = count();
        let held = acquire(&wide, &keys).await.expect("its turn");
        let passed: Vec<_> =
            std::iter::zip(count(), before).map(|(now, before)| now - before).collect();
        held.release().await;
        eprintln!("turns on each of 12 keys while one waited for all: {passed:?}");

        // It may lose each key once, and waits for no more than one holder each time.
        assert!(passed.iter().all(|passed| *passed <= MOST_PASSED), "it starves: {passed:?}");
    }
    for rival in &rivals {
        assert!(!rival.is_finished(), "a rival has ended");
        rival.abort();
    }
}

/// Two contenders of the same age wait for a third. Each is nearer to another master, and one
/// master is out: to each master another contender is the older one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_contenders_whose_age_masters_disagree_on_one_gives_way() {
    const FAR: Duration = Duration::from_millis(8);
    let masters = Masters::start(3).await;
    let mut world = redlock_world().await;
    world.config.lock.wait = Duration::from_secs(10);
    masters.freeze(2).await;
    let warm_up = async |locks: &Locks| {
        acquire(locks, &products_named(&["warm"])).await.expect("free").release().await;
    };
    let (mut contenders, mut proxies) = (Vec::new(), Vec::new());
    for far in 0..2 {
        world.config.redis.urls = masters.urls();
        let (proxy, behind) =
            Proxy::before_distant(world.config.redis.urls[far].expose(), FAR).await;
        world.config.redis.urls[far] = SecretUrl::new(behind);
        proxies.push(proxy);
        let metrics = World::metrics();
        let contender = world.locks_with(&metrics);
        warm_up(&contender).await;
        contenders.push((contender, metrics));
    }
    world.config.redis.urls = masters.urls();
    let third = world.locks();
    warm_up(&third).await;
    // After this time nobody asks the master that is out.
    tokio::time::sleep(world.config.lock.node_timeout + Duration::from_millis(500)).await;
    let refusals = || -> Vec<u64> {
        let of = |metrics: &Metrics| metrics.lock_failures.with_label_values(&["contended"]).get();
        contenders.iter().map(|(_, metrics)| of(metrics)).collect()
    };

    let wanted = products_named(&["a"]);
    let (mut rounds, mut both_refused) = (0, 0);
    while rounds < 10 || both_refused == 0 {
        rounds += 1;
        assert!(rounds <= 100, "the masters always agreed");
        let held = acquire(&third, &wanted).await.expect("free");
        let both = contenders.iter().map(async |(contender, _)| {
            acquire(contender, &wanted).await.expect("one gives way").release().await;
        });
        let released = async {
            // Both contenders wait for the holder.
            tokio::time::sleep(Duration::from_millis(200)).await;
            held.release().await;
            refusals()
        };
        let (_, before) = tokio::join!(futures::future::join_all(both), released);
        both_refused +=
            usize::from(std::iter::zip(refusals(), before).all(|(now, before)| now > before));
    }
}

/// Meanwhile the third master grants the key to both contenders again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_contender_gets_a_key_that_a_majority_held_first() {
    let masters = Masters::start(3).await;
    let mut world = redlock_world().await;
    masters.serve(&mut world);
    world.config.lock.wait = Duration::from_secs(10);
    let (older, younger) = (world.locks(), world.locks());
    let wanted = products_named(&["a"]);

    for round in 0..8 {
        for number in 0..2 {
            masters.set(number, &key(&world, "a"), Some(Duration::from_millis(1_500))).await;
        }
        let turns = Mutex::new(Vec::new());
        let wait = async |locks: &Locks, contender: &'static str| {
            let held = acquire(locks, &wanted).await.expect("its turn");
            turns.lock().unwrap().push(contender);
            held.release().await;
        };
        tokio::join!(wait(&older, "older"), async {
            // The difference of their ages.
            tokio::time::sleep(Duration::from_millis(500)).await;
            wait(&younger, "younger").await;
        });

        assert_eq!(*turns.lock().unwrap(), ["older", "younger"], "round {round}");
    }
}
