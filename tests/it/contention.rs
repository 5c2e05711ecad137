//! Batches that want the same products: who waits, for how long, what goes on meanwhile, and that everybody gets his turn.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rslock::{Lock, LockManager};
use stocklock::{
    config::SecretUrl,
    deduct::Worker,
    domain::{OrderEvent, ProductId},
    kafka::{Done, Handler as _},
    lock::{LockError, Locks},
    telemetry::Metrics,
};
use tokio::time::Instant;

use crate::harness::{
    Database, Masters, PATIENCE, Proxy, Rival, Strategy, World, acquire, delivered, is_held_up_at,
    order_lines, random_orders,
};

fn products(names: &[&str]) -> Vec<ProductId> {
    names.iter().map(|name| ProductId::parse(name).expect("an id")).collect()
}

fn locks(world: &World, metrics: &Metrics) -> Locks {
    Locks::new(&world.config.lock, &world.config.redis, metrics).expect("the locks")
}

/// Masters may take their time: what is tested is not how late an answer may be.
async fn redlock() -> World {
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    world.config.lock.node_timeout = Duration::from_secs(2);
    world
}

/// Another client of the algorithm, on the same masters.
fn rslock(world: &World) -> LockManager {
    let mut other =
        LockManager::new(world.config.redis.urls.iter().map(SecretUrl::expose).collect());
    other.set_retry(1, Duration::from_millis(1));
    other
}

/// What that client holds of a free product; its own patience is half a second.
async fn theirs(world: &World, product: &str) -> Lock {
    let begun = Instant::now();
    loop {
        match rslock(world).lock(key(world, product).as_str(), Duration::from_secs(60)).await {
            Ok(lock) => return lock,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    }
}

fn key(world: &World, product: &str) -> String {
    format!("{}{product}", world.config.lock.prefix)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_contenders_for_three_keys_get_equal_shares() {
    const MOST_PASSED: u32 = 64;
    let mut world = redlock().await;
    world.config.lock.wait = Duration::from_secs(10);
    world.config.lock.node_timeout = Duration::from_secs(10);
    let keys = products(&["a", "b", "c"]);
    let all_turns = Arc::new(AtomicU32::new(0));
    let end = Instant::now() + Duration::from_secs(60);
    let contenders = (0..8).map(|number| {
        let (locks, keys) = (locks(&world, &World::metrics()), keys.clone());
        let all_turns = Arc::clone(&all_turns);
        tokio::spawn(async move {
            // One wants all three, the others two of them, and some hold them for longer than others.
            let wanted = match number {
                0 => &keys[..],
                odd if odd % 2 == 1 => &keys[..2],
                _ => &keys[1..],
            };
            let (mut turns, mut most_passed) = (0_u32, 0);
            while Instant::now() < end {
                let before = all_turns.load(Ordering::SeqCst);
                let held = acquire(&locks, wanted).await.expect("within the budget");
                most_passed = most_passed.max(all_turns.fetch_add(1, Ordering::SeqCst) - before);
                tokio::time::sleep(Duration::from_millis(2 + number % 3)).await;
                held.release().await;
                turns += 1;
            }
            (turns, most_passed)
        })
    });
    let shares: Vec<_> = futures::future::join_all(contenders)
        .await
        .into_iter()
        .map(|share| share.unwrap())
        .collect();
    let fair = shares.iter().map(|(turns, _)| turns).sum::<u32>() / 8;
    eprintln!("turns, and the most turns of others that one waited: {shares:?}");
    assert!(fair > 200, "they get on: {shares:?}");
    for (turns, most_passed) in &shares {
        assert!(
            (fair / 2..=fair * 2).contains(turns),
            "within twice the fair share of {fair}: {shares:?}"
        );
        assert!(*most_passed <= MOST_PASSED, "nobody starves: {shares:?}");
    }
}

/// Each key has two rivals who hand it to each other, so that it is never free for long, and never all of them at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_many_keys_is_not_starved_by_those_who_want_one() {
    const HOLD: Duration = Duration::from_millis(30);
    const MOST_PASSED: u32 = 24;
    let mut world = redlock().await;
    world.config.lock.wait = Duration::from_secs(10);
    world.config.lock.node_timeout = Duration::from_secs(10);
    let names: Vec<_> = (0..12).map(|n| format!("p{n:02}")).collect();
    let all = products(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let turns: Arc<[AtomicU32; 12]> = Arc::default();
    let narrow: Vec<_> = (0..24)
        .map(|number| {
            let (locks, product, key) =
                (locks(&world, &World::metrics()), all[number / 2].clone(), number / 2);
            let turns = Arc::clone(&turns);
            tokio::spawn(async move {
                loop {
                    let held =
                        acquire(&locks, std::slice::from_ref(&product)).await.expect("its turn");
                    turns[key].fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(HOLD).await;
                    held.release().await;
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let wide = locks(&world, &World::metrics());
    let taken = || -> Vec<_> { turns.iter().map(|turns| turns.load(Ordering::SeqCst)).collect() };
    for _ in 0..5 {
        let before = taken();
        let held = acquire(&wide, &all).await.expect("its turn");
        let passed: Vec<_> =
            std::iter::zip(taken(), before).map(|(now, before)| now - before).collect();
        held.release().await;
        eprintln!("turns on each of 12 keys while one waited for all: {passed:?}");
        // It may lose each key once, and waits for no more than one holder each time.
        assert!(passed.iter().all(|passed| *passed <= MOST_PASSED), "it starves: {passed:?}");
    }
    for task in &narrow {
        assert!(!task.is_finished(), "the others go on");
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_is_kept_while_another_key_has_a_dead_holder() {
    let mut world = redlock().await;
    world.config.lock.wait = Duration::from_secs(60);
    let both = products(&["a", "z"]);
    let of_z = locks(&world, &World::metrics());
    let of_z = acquire(&of_z, &both[1..]).await.expect("free");
    let waiting = {
        let (locks, both) = (locks(&world, &World::metrics()), both.clone());
        tokio::spawn(async move { acquire(&locks, &both).await.expect("its turn").release().await })
    };
    let begun = Instant::now();
    while !world.keys().await.keys().any(|key| key.ends_with("z queue")) {
        assert!(begun.elapsed() < PATIENCE, "it does not queue");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let dead = theirs(&world, "a").await;
    of_z.release().await;
    // Longer than a place in a queue lasts by itself.
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.config.lock.wait = Duration::from_secs(1);
    let younger = locks(&world, &World::metrics());
    assert_eq!(
        acquire(&younger, &both[1..]).await.expect_err("another's turn"),
        LockError::Contended
    );
    assert!(!waiting.is_finished(), "it waits for the first key");
    rslock(&world).unlock(&dead).await;
    // Sooner than what the dead one held expires.
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("its turn").unwrap();
    acquire(&younger, &both[1..]).await.expect("free").release().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_only_a_minority_refuses_is_free() {
    let masters = Masters::start(3).await;
    let mut world = redlock().await;
    masters.serve(&mut world);
    world.import(&[("hot", 10), ("b", 10)]);
    let worker = world.worker(&World::metrics());
    let mut orders = vec![order_lines(&[("hot", 1)])];
    orders.extend(vec![order_lines(&[("b", 1)]); 3]);
    let events = world.save(&orders).await;
    let begun = Instant::now();
    loop {
        for number in 0..3 {
            masters.set(number, &key(&world, "hot"), Some(world.config.lock.ttl)).await;
        }
        masters.set(2, &key(&world, "b"), Some(world.config.lock.ttl)).await;
        match handled(&worker, &events).await.as_str() {
            "-ddd" => break,
            // One of the two that grant it was too slow to be heard.
            "----" => assert!(begun.elapsed() < PATIENCE, "it counts as held"),
            others => panic!("{others}"),
        }
    }
}

/// No majority refuses either of the keys that are held, and none grants both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_single_masters_hold_are_left_behind_and_nothing_else() {
    let masters = Masters::start(3).await;
    let mut world = redlock().await;
    masters.serve(&mut world);
    world.import(&[("a", 10), ("b", 10), ("c", 10)]);
    let worker = world.worker(&World::metrics());
    let mut orders = vec![order_lines(&[("a", 1)]), order_lines(&[("b", 1)])];
    orders.extend(vec![order_lines(&[("c", 1)]); 3]);
    let events = world.save(&orders).await;
    masters.set(0, &key(&world, "a"), Some(Duration::from_secs(5))).await;
    masters.set(1, &key(&world, "b"), Some(Duration::from_secs(5))).await;
    let handled = handled(&worker, &events).await;
    // A master that is slow is not waited for, and what it alone refuses is free then.
    assert!(handled.ends_with("ddd") && handled[..2].contains('-'), "{handled}");
}

/// Two who wait for a third and are as old, each nearer to another master, with one more out: to each master another of them is older.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_masters_do_not_agree_on_who_is_older_one_gives_way() {
    const FAR: Duration = Duration::from_millis(8);
    let masters = Masters::start(3).await;
    let mut world = redlock().await;
    world.config.lock.wait = Duration::from_secs(10);
    masters.freeze(2).await;
    let (mut contenders, mut proxies) = (Vec::new(), Vec::new());
    for far in 0..2 {
        world.config.redis.urls = masters.urls();
        let (proxy, behind) =
            Proxy::before_distant(world.config.redis.urls[far].expose(), FAR).await;
        world.config.redis.urls[far] = SecretUrl::new(behind);
        proxies.push(proxy);
        let metrics = World::metrics();
        let contender = locks(&world, &metrics);
        acquire(&contender, &products(&["warm"])).await.expect("free").release().await;
        contenders.push((contender, metrics));
    }
    world.config.redis.urls = masters.urls();
    let third = locks(&world, &World::metrics());
    acquire(&third, &products(&["warm"])).await.expect("free").release().await;
    // From then on the one that is out is asked no more.
    tokio::time::sleep(world.config.lock.node_timeout + Duration::from_millis(500)).await;
    let refusals = || -> Vec<u64> {
        let of = |metrics: &Metrics| metrics.lock_failures.with_label_values(&["contended"]).get();
        contenders.iter().map(|(_, metrics)| of(metrics)).collect()
    };
    let wanted = products(&["a"]);
    let (mut rounds, mut both_refused) = (0, 0);
    while rounds < 10 || both_refused == 0 {
        rounds += 1;
        assert!(rounds <= 100, "the masters always agreed");
        let held = acquire(&third, &wanted).await.expect("free");
        let both = contenders.iter().map(async |(contender, _)| {
            acquire(contender, &wanted).await.expect("one gives way").release().await;
        });
        let released = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            held.release().await;
            refusals()
        };
        let (_, before) = tokio::join!(futures::future::join_all(both), released);
        both_refused +=
            usize::from(std::iter::zip(refusals(), before).all(|(now, before)| now > before));
    }
}

/// Both are granted the key by the third master again and again meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_majority_holds_a_key_the_older_of_those_who_wait_gets_it_first() {
    let masters = Masters::start(3).await;
    let mut world = redlock().await;
    masters.serve(&mut world);
    world.config.lock.wait = Duration::from_secs(10);
    let (older, younger) = (locks(&world, &World::metrics()), locks(&world, &World::metrics()));
    let wanted = products(&["a"]);
    for round in 0..8 {
        for number in 0..2 {
            masters.set(number, &key(&world, "a"), Some(Duration::from_millis(1_500))).await;
        }
        let turns = std::sync::Mutex::new(Vec::new());
        let wait = async |locks: &Locks, who: &'static str| {
            let held = acquire(locks, &wanted).await.expect("its turn");
            turns.lock().unwrap().push(who);
            held.release().await;
        };
        tokio::join!(wait(&older, "older"), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            wait(&younger, "younger").await;
        });
        assert_eq!(*turns.lock().unwrap(), ["older", "younger"], "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wait_budget_is_kept() {
    let mut world = redlock().await;
    let theirs = theirs(&world, "b").await;
    for wait in [400, 1_000, 2_500].map(Duration::from_millis) {
        world.config.lock.wait = wait;
        let ours = locks(&world, &World::metrics());
        // Never less; and no more where the machine does not stand still meanwhile, as it may now and then.
        let mut kept = false;
        for _ in 0..5 {
            let begun = Instant::now();
            assert_eq!(
                acquire(&ours, &products(&["a", "b"])).await.expect_err("theirs"),
                LockError::Contended
            );
            let waited = begun.elapsed();
            assert!(waited >= wait * 9 / 10, "{waited:?} instead of {wait:?}");
            kept = waited <= wait * 11 / 10;
            if kept {
                break;
            }
        }
        assert!(kept, "{wait:?} is never kept");
    }
    rslock(&world).unlock(&theirs).await;
}

/// How long after a release another has what it waits for.
async fn gap_after_a_release(one: &Locks, other: &Arc<Locks>, wanted: &[ProductId]) -> Duration {
    let held = acquire(one, wanted).await.expect("free");
    let (waiting, wanted) = (Arc::clone(other), wanted.to_vec());
    let waiting = tokio::spawn(async move {
        let held = acquire(&waiting, &wanted).await.expect("its turn");
        let at = Instant::now();
        held.release().await;
        at
    });
    tokio::time::sleep(Duration::from_millis(120)).await;
    let released = Instant::now();
    held.release().await;
    waiting.await.unwrap().saturating_duration_since(released)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_wakes_who_waits_for_it() {
    let mut world = redlock().await;
    world.config.lock.wait = Duration::from_secs(5);
    let (one, other) =
        (locks(&world, &World::metrics()), Arc::new(locks(&world, &World::metrics())));
    let wanted = products(&["a", "b"]);
    // By the clock alone, an attempt every 50 to 100 ms, no series is like that; one may be spoilt where the machine is busy.
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

/// What a batch's orders came to: each by the first letter of its outcome, or `-` where it was left behind.
async fn handled(worker: &Worker, events: &[OrderEvent]) -> String {
    let decoded: Vec<_> = events.iter().map(|event| worker.decode(&delivered(event))).collect();
    let Done { handled, deferred: left_behind } = worker.handle(&decoded).await.expect("handled");
    worker.publish(&handled).await.expect("published");
    let letter = |number: usize| match handled.outcomes.get(&events[number].order_id) {
        Some(_) => 'd',
        None if left_behind.contains(&number) => '-',
        None => '?',
    };
    (0..events.len()).map(letter).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_whose_products_are_free_are_decided_and_none_overtakes_on_a_product() {
    let mut world = redlock().await;
    world.import(&[("a", 10), ("b", 10), ("c", 10), ("d", 10)]);
    let worker = world.worker(&World::metrics());
    let orders = [
        &[("a", 1)][..],
        &[("a", 1), ("b", 1)],
        &[("c", 1)],
        &[("b", 1), ("d", 1)],
        &[("c", 2)],
        &[("d", 1)],
    ];
    let events = world.save(&orders.map(order_lines)).await;
    let theirs = theirs(&world, "a").await;
    let begun = Instant::now();
    // Two of six can be decided: fewer than half, so it waits before it goes on with them.
    assert_eq!(handled(&worker, &events).await, "--d-d-");
    assert!(begun.elapsed() >= world.config.lock.wait, "after {:?}", begun.elapsed());
    let left: Vec<_> = [0, 1, 3, 5].map(|number: usize| events[number].clone()).into();
    let more = world.save(&vec![order_lines(&[("c", 1)]); 4]).await;
    world.config.lock.wait = Duration::from_secs(20);
    let patient = world.worker(&World::metrics());
    let begun = Instant::now();
    assert_eq!(handled(&patient, &[&left[..], &more].concat()).await, "----dddd");
    assert!(begun.elapsed() < world.config.lock.wait, "half of them can be decided at once");
    rslock(&world).unlock(&theirs).await;
    assert_eq!(handled(&patient, &left).await, "dddd");
    world.check_ledger(&worker.store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_stop_at_the_first_order_left_behind() {
    let world = redlock().await;
    world.import(&[("a", 100), ("b", 100)]);
    let (group_id, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    let theirs = theirs(&world, "a").await;
    let mut events = world.save(&[order_lines(&[("a", 1)])]).await;
    let blocked = events[0].order_id;
    events.extend(world.save(&vec![order_lines(&[("b", 1)]); 40]).await);
    world.produce_events(&events).await;
    let worker = world.start_with("worker", &[("STOCKLOCK__LOCK__TTL", "2s")]).await;
    let begun = Instant::now();
    while world.available("b") > 60 {
        assert!(begun.elapsed() < PATIENCE, "the others wait:\n{}", worker.log());
    }
    // Of the partition with the order left behind nothing of it or after it is committed, of the others all.
    let behind = world.count_from(blocked, topic);
    while world.uncommitted(group_id, topic) > behind {
        assert!(begun.elapsed() < PATIENCE, "the others are not committed:\n{}", worker.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(7)).await;
    let open = world.uncommitted(group_id, topic);
    assert_eq!(open, behind, "the order left behind, and those after it in its partition");
    assert_eq!((world.available("a"), world.available("b")), (100, 60));
    // A redelivery finds its outcomes.
    worker.kill();
    let worker = world.start("worker").await;
    rslock(&world).unlock(&theirs).await;
    world.caught_up(group_id, topic).await;
    assert_eq!((world.available("a"), world.available("b")), (99, 60));
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_are_held_until_the_commit() {
    let world = redlock().await;
    world.import(&[("a", 5)]);
    let worker = Arc::new(world.worker(&World::metrics()));
    let events = world.save(&[order_lines(&[("a", 3)])]).await;
    let mut rival = Rival::adjust(&world, "a", 1).await;
    let deciding = {
        let (worker, events) = (Arc::clone(&worker), events.clone());
        tokio::spawn(async move { handled(&worker, &events).await })
    };
    is_held_up_at(&mut rival.conn, &deciding, "UPDATE JSON_TABLE").await;
    let refused = rslock(&world).lock(key(&world, "a").as_str(), Duration::from_secs(1)).await;
    assert!(refused.is_err(), "the transaction is open, and so is the lock");
    rival.commit().await;
    assert_eq!(deciding.await.unwrap(), "d");
    let free = theirs(&world, "a").await;
    rslock(&world).unlock(&free).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_committed_under_locks_that_were_lost() {
    let mut world = redlock().await;
    world.config.lock.ttl = Duration::from_secs(6);
    world.import(&[("a", 5)]);
    let metrics = World::metrics();
    let worker = Arc::new(world.worker(&metrics));
    let events = world.save(&[order_lines(&[("a", 3)])]).await;
    // The write comes late, and would not be stale.
    let mut rival = Rival::rename(&world, "a").await;
    let deciding = {
        let (worker, messages) = (Arc::clone(&worker), vec![worker.decode(&delivered(&events[0]))]);
        tokio::spawn(async move {
            worker.handle(&messages).await.map(|done| done.handled.outcomes.len())
        })
    };
    is_held_up_at(&mut rival.conn, &deciding, "UPDATE JSON_TABLE").await;
    assert!(world.delete_keys().await >= 2, "a majority of the masters held it");
    let begun = Instant::now();
    while metrics.lock_failures.with_label_values(&["lost"]).get() == 0 {
        assert!(begun.elapsed() < PATIENCE, "nobody notices");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rival.commit().await;
    let error = deciding.await.unwrap().expect_err("lost");
    assert_eq!(error.to_string(), "the locks were lost before the commit");
    assert_eq!(world.available("a"), 5);
    assert_eq!(metrics.stale_writes_rejected.get(), 0, "nothing was stale");
    assert_eq!(handled(&worker, &events).await, "d");
    assert_eq!(world.available("a"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_ours_is_left_in_redis() {
    let mut world = redlock().await;
    world.config.lock.ttl = Duration::from_secs(2);
    world.import(
        &(0..6).map(|n| (["p0", "p1", "p2", "p3", "p4", "p5"][n], 500)).collect::<Vec<_>>(),
    );
    let events = world.save(&random_orders(3, 200, 6)).await;
    let workers = (0..4).map(|number| {
        let (worker, events) =
            (world.worker(&World::metrics()), events[number * 50..][..50].to_vec());
        tokio::spawn(async move {
            for batch in events.chunks(5) {
                crate::harness::decide(&worker, batch).await;
            }
        })
    });
    futures::future::join_all(workers).await.into_iter().for_each(|ended| ended.unwrap());
    // A claim that a master answers late may be the last to set something.
    let begun = Instant::now();
    loop {
        let keys = world.keys().await;
        if keys.is_empty() {
            break;
        }
        assert!(keys.values().all(|left| (0..=2_000).contains(left)), "they live on: {keys:?}");
        assert!(begun.elapsed() < 2 * world.config.lock.ttl, "{keys:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
