//! Users of Redis that lack rights, and one server that has two URLs.

use std::time::Duration;

use stocklock::{
    config::{Config, Layers, SecretUrl},
    domain::ProductId,
    lock::{Lease, Locks, overlong_keys},
};

use crate::harness::{
    Database, Masters, Proxy, Rival, Role, Strategy, World, acquire, is_held_up_at, order_lines,
    stays, wait_for_within, wait_until,
};

/// All commands, all keys, and no channel: the default of Redis 7.
const NO_CHANNELS: &str = "ACL SETUSER mute on >secret ~* resetchannels +@all";

/// Locks that live for a minute. Masters may take their time.
fn config(urls: Vec<SecretUrl>) -> Config {
    let flags = ["lock.strategy=redlock", "lock.ttl=60s", "lock.node_timeout=5s", "lock.wait=10s"];
    let layers = Layers::read(None, std::iter::empty(), &flags.map(str::to_owned));
    let mut config = Config::resolve(&layers).expect("the configuration");
    config.redis.urls = urls;
    config
}

fn locks(config: &Config) -> Locks {
    Locks::new(&config.lock, &config.redis, &World::metrics()).expect("the locks")
}

fn products(count: usize) -> Vec<ProductId> {
    (0..count).map(|n| ProductId::parse(&format!("p{n:04}")).expect("an id")).collect()
}

/// What the masters refused to any user, as they log it themselves.
async fn refused(masters: &Masters) -> String {
    format!("{:?}", masters.command::<redis::Value>("ACL LOG").await)
}

/// How many products are locked on all masters together.
async fn locked(masters: &Masters, count: usize) -> usize {
    let mut locked = 0;
    for number in 0..count {
        locked +=
            masters.keys_of(number, "*").await.keys().filter(|key| !key.contains(' ')).count();
    }
    locked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlock_without_channel_rights_releases_all_keys() {
    let masters = Masters::start(3).await;
    masters.command::<String>(NO_CHANNELS).await;
    let (holder, waiter) =
        (locks(&config(masters.urls_as("mute"))), locks(&config(masters.urls())));
    let wanted = products(50);

    let held = acquire(&holder, &wanted).await.expect("free");
    let waiting = tokio::spawn(async move { acquire(&waiter, &products(50)).await });
    wait_until("the waiter is in a queue", async || {
        !masters.keys_of(0, "* queues").await.is_empty()
    })
    .await;
    held.release().await;
    let next = waiting.await.expect("no panic").expect("the waiter is next");

    assert!(refused(&masters).await.contains("turns"), "no master refused PUBLISH");
    next.release().await;
    wait_for_within(Duration::from_secs(20), async || match locked(&masters, 3).await {
        0 => Ok(()),
        keys => Err(format!("{keys} keys stay locked")),
    })
    .await;
}

/// A key that somebody else wrote, of another type, is none of ours; the rest is released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlock_releases_all_keys_beside_one_of_another_type() {
    let masters = Masters::start(1).await;
    let locks = locks(&config(masters.urls()));

    let held = acquire(&locks, &products(5)).await.expect("free");
    masters.command::<usize>("DEL stocklock:lock:p0001").await;
    masters.command::<usize>("LPUSH stocklock:lock:p0001 x").await;
    held.release().await;

    let left: Vec<_> = masters.keys_of(0, "*").await.into_keys().collect();
    assert_eq!(left, ["stocklock:lock:p0001"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_in_the_docs_are_all_that_is_needed() {
    let docs = include_str!("../../docs/locking.md");
    let rule = docs
        .lines()
        .find(|line| line.starts_with("ACL SETUSER stocklock "))
        .expect("a rule in docs/locking.md");
    let masters = Masters::start(3).await;
    masters.command::<String>(&rule.replace(">PASSWORD", ">secret")).await;
    let mut config = config(masters.urls_as("stocklock"));
    config.lock.ttl = Duration::from_secs(6);
    let (ours, theirs, wanted) = (locks(&config), locks(&config), products(1_500));

    // Acquired, waited for, renewed, released, and acquired by the next.
    let held = acquire(&ours, &wanted).await.expect("free");
    let waiting = tokio::spawn(async move { acquire(&theirs, &products(1_500)).await });
    stays(config.lock.ttl / 2, "the lock is renewed", async || !held.is_lost()).await;
    held.release().await;
    waiting.await.expect("no panic").expect("released").release().await;
    let lease = Lease::new(&config.lock, &config.redis, "test").expect("a lease");
    assert_eq!(lease.hold(async { "done" }).await, Some("done"));
    assert_eq!(overlong_keys(&config.lock, &config.redis).await.expect("a survey"), []);

    assert!(!refused(&masters).await.contains("reason"), "{}", refused(&masters).await);
}

fn is_warned_of<'a>(log: &'a str, command: &'a str) -> impl Iterator<Item = &'a str> {
    log.lines().filter(move |line| {
        line.contains("lacks a right") && line.contains(&format!("{command}: "))
    })
}

async fn logged(worker: &Role, is_in: impl Fn(&str) -> bool) {
    wait_until("the log has the event", async || is_in(&worker.log())).await;
}

async fn produce(world: &World, count: usize) {
    let events = world.save(&vec![order_lines(&[("a", 1)]); count]).await;
    world.produce_events(&events).await;
}

fn joined(urls: &[SecretUrl]) -> String {
    urls.iter().map(SecretUrl::expose).collect::<Vec<_>>().join(",")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_is_named_by_one_warning() {
    let masters = Masters::start(1).await;
    masters.command::<String>(NO_CHANNELS).await;
    let mut world = World::new(Database::MySql, Strategy::Redlock).await;
    world.import(&[("a", 100)]);
    world.config.redis.urls = masters.urls();
    world.config.lock.wait = Duration::from_secs(10);
    world.config.lock.node_timeout = Duration::from_secs(2);
    let ours =
        Locks::new(&world.config.lock, &world.config.redis, &World::metrics()).expect("the locks");
    let a = [ProductId::parse("a").expect("an id")];
    let urls = joined(&masters.urls_as("mute"));
    let settings =
        [("STOCKLOCK__REDIS__URLS", urls.as_str()), ("STOCKLOCK__LOCK__NODE_TIMEOUT", "2s")];

    // It has to wait for us.
    let held = acquire(&ours, &a).await.expect("free");
    let worker = world.start_with("worker", &settings).await;
    produce(&world, 1).await;
    logged(&worker, |log| is_warned_of(log, "SUBSCRIBE").next().is_some()).await;
    held.release().await;
    // Three times we have to wait for it: a rival holds up its transaction.
    let endless = tokio::spawn(std::future::pending::<()>());
    for _ in 0..3 {
        world.caught_up(&world.config.kafka.group_id, &world.config.topics.orders).await;
        let mut rival = Rival::rename(&world, "a").await;
        produce(&world, 5).await;
        is_held_up_at(&mut rival.conn, &endless, "UPDATE JSON_TABLE").await;
        let release = async {
            // Until our claim is among those that wait.
            tokio::time::sleep(Duration::from_millis(300)).await;
            rival.commit().await;
        };
        let (ours, ()) = tokio::join!(acquire(&ours, &a), release);
        ours.expect("our turn").release().await;
    }
    logged(&worker, |log| is_warned_of(log, "PUBLISH").next().is_some()).await;
    world.caught_up(&world.config.kafka.group_id, &world.config.topics.orders).await;

    let log = worker.log();
    assert_eq!(
        (is_warned_of(&log, "SUBSCRIBE").count(), is_warned_of(&log, "PUBLISH").count()),
        (1, 1),
        "{log}"
    );
    assert!(
        is_warned_of(&log, "PUBLISH").all(|line| line.contains("WARN") && line.contains(" turns")),
        "{log}"
    );
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_urls_of_one_server_are_reported_and_have_one_vote() {
    let masters = Masters::start(2).await;
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    world.import(&[("a", 100)]);
    let (_proxy, alias) = Proxy::before(masters.urls()[0].expose()).await;
    let urls = [masters.urls(), vec![SecretUrl::new(alias)]].concat();
    let urls = joined(&urls);
    let settings =
        [("STOCKLOCK__REDIS__URLS", urls.as_str()), ("STOCKLOCK__LOCK__NODE_TIMEOUT", "2s")];

    let worker = world.start_with("worker", &settings).await;
    produce(&world, 5).await;
    world.caught_up(&world.config.kafka.group_id, &world.config.topics.orders).await;

    assert_eq!(world.available("a"), 95);
    logged(&worker, |log| log.contains("name one Redis server")).await;
    worker.stop();
}
