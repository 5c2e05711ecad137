//! The multi-lock while one of its masters hangs, and the lease.

use std::time::{Duration, Instant};

use stocklock::{
    config::SecretUrl,
    domain::ProductId,
    lock::{Held, Lease, Locks},
    telemetry::Metrics,
};

use crate::harness::{
    Database, Masters, Proxy, Strategy, World, acquire, order_lines, stays, unchanged_for,
    wait_for, wait_until, wait_until_within,
};

/// Locks over the world's masters, each behind a proxy.
async fn locks_behind_proxies(world: &mut World, metrics: &Metrics) -> (Locks, Vec<Proxy>) {
    let mut proxies = Vec::new();
    for url in &mut world.config.redis.urls {
        let (proxy, behind) = Proxy::before(url.expose()).await;
        proxies.push(proxy);
        *url = SecretUrl::new(behind);
    }
    (Locks::new(&world.config.lock, &world.config.redis, metrics).expect("the locks"), proxies)
}

fn products(count: usize) -> Vec<ProductId> {
    (0..count).map(|n| ProductId::parse(&format!("p{n:04}")).expect("an id")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_done_by_one_holder_of_its_lease_at_a_time() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    let lease = Lease::new(&world.config.lock, &world.config.redis, "test").expect("a lease");
    let rival = Lease::new(&world.config.lock, &world.config.redis, "test").expect("a lease");

    assert_eq!(lease.hold(async { rival.hold(async { "done twice" }).await }).await, Some(None));
    assert_eq!(rival.hold(async { "done" }).await, Some("done"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_hangs_does_not_set_the_pace() {
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    world.config.lock.ttl = Duration::from_secs(30);
    world.config.lock.node_timeout = Duration::from_secs(2);
    let (locks, proxies) = locks_behind_proxies(&mut world, &World::metrics()).await;
    proxies[1].hang();
    let products = products(2_500);

    let begun = Instant::now();
    for _ in 0..20 {
        acquire(&locks, &products).await.expect("two of three grant it").release().await;
    }
    // A master that is asked each time costs the timeout of three scripts each time: 120 s.
    assert!(begun.elapsed() < Duration::from_secs(40), "20 locks took {:?}", begun.elapsed());

    proxies[1].mend();
    proxies[2].hang();
    // The master that is back is asked again.
    wait_for(async || acquire(&locks, &products).await.map(drop)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_that_cannot_be_renewed_are_lost_in_time_and_released_soon() {
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    let ttl = Duration::from_secs(6);
    world.config.lock.ttl = ttl;
    world.config.lock.node_timeout = Duration::from_secs(1);
    let metrics = World::metrics();
    let (locks, proxies) = locks_behind_proxies(&mut world, &metrics).await;
    let held = acquire(&locks, &products(300)).await.expect("free");
    let longer = ttl + Duration::from_secs(1);
    stays(longer, "the locks are renewed", async || !held.is_lost()).await;

    proxies.iter().for_each(Proxy::hang);

    // Later another client may hold them.
    wait_until_within(ttl, "the locks are lost", async || held.is_lost()).await;
    assert_eq!(metrics.lock_failures.with_label_values(&["lost"]).get(), 1);
    let begun = Instant::now();
    Held::release(held).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "the release took {:?}", begun.elapsed());
}

/// How many scripts a master has run.
async fn scripts_run(masters: &Masters, number: usize) -> usize {
    let stats = masters.command::<String>("INFO commandstats").await.swap_remove(number);
    let calls = stats
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next());
    calls.map_or(0, |calls| calls.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_whose_answer_is_overdue_is_asked_nothing_more() {
    let masters = Masters::start(3).await;
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    masters.serve(&mut world);
    world.config.lock.node_timeout = Duration::from_secs(5);
    let theirs =
        Locks::new(&world.config.lock, &world.config.redis, &World::metrics()).expect("the locks");
    world.config.lock.node_timeout = Duration::from_millis(100);
    world.config.lock.wait = Duration::from_millis(10);
    let ours =
        Locks::new(&world.config.lock, &world.config.redis, &World::metrics()).expect("the locks");
    let held = acquire(&theirs, &products(5)).await.expect("free");
    let before = scripts_run(&masters, 2).await;

    // The other masters refuse, and each attempt asks which keys are free instead.
    masters.freeze(2).await;
    acquire(&ours, &products(5)).await.expect_err("they hold it");
    // Longer than a master's time to answer.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..40 {
        acquire(&ours, &products(5)).await.expect_err("they hold it");
    }
    masters.thaw(2).await;

    let run = unchanged_for(Duration::from_millis(500), async || scripts_run(&masters, 2).await);
    let asked = run.await - before;
    assert!(asked > 0, "it was asked at first");
    assert!(asked < 30, "{asked} scripts piled up at it");
    held.release().await;
}

/// The refusals are answers: the masters are neither away nor slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masters_that_refuse_writes_delay_orders_until_they_take_them() {
    let masters = Masters::start_with(3, &Masters::REFUSING).await;
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    masters.serve(&mut world);
    world.import(&[("a", 5)]);
    let worker = world.start("worker").await;
    masters.cannot_save(0).await;
    masters.loads(1).await;

    world.produce_events(&world.save(&[order_lines(&[("a", 1)])]).await).await;

    worker.complains("deducting: ").await;
    assert_eq!(world.available("a"), 5);
    let log = worker.log();
    assert!(log.contains("MISCONF") && log.contains("loading the dataset"), "{log}");
    // Master 1 has loaded its data. Master 0 goes on to refuse.
    wait_until("the order is decided", async || world.available("a") == 4).await;
    masters.can_save(0).await;
    worker.ready().await;
}
