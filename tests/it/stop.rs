//! A stop ends within `stop.deadline`, whatever hangs, and says what was left.

use std::time::Duration;

use stocklock::domain::{Reason, ReportedStatus};

use crate::harness::{
    Api, BrokerProxy, Database, Proxy, Role, Strategy, World, http_client, lines, order_lines,
    proxies_of_masters, stays, wait_until,
};

const DEADLINE: (&str, &str) = ("STOCKLOCK__STOP__DEADLINE", "4s");
/// How a stop says that it is over before its work is.
const CUT_OFF: &str = "stop deadline is near, work is cut off";

/// Asks a role to stop, and fails the test unless it ends with status 2 and names what was left.
async fn is_cut_off(role: Role, left: &str) {
    role.terminate();
    let log = role.ended(2).await;
    assert!(
        log.lines().any(|line| line.contains(CUT_OFF) && line.contains(left)),
        "{left} is not named:\n{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_ends_at_the_deadline_although_all_its_servers_hang() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    world.import(&[("a", 5)]);
    let (store, store_url) = Proxy::before(world.config.stock_store.url.expose()).await;
    let broker = BrokerProxy::before(&world.config.kafka.brokers).await;
    let (masters, urls) = proxies_of_masters(&world).await;
    let settings = [
        DEADLINE,
        ("STOCKLOCK__STOCK_STORE__URL", &store_url),
        ("STOCKLOCK__REDIS__URLS", &urls.join(",")),
        ("STOCKLOCK__KAFKA__BROKERS", &broker.address),
    ];
    let worker = world.start_with("worker", &settings).await;

    store.hang();
    worker.complains("stock_store: ").await;
    world.produce_events(&world.save(&[order_lines(&[("a", 1)])]).await).await;
    // Until it gives the first try up, after 5 s, the batch waits for the store and holds the lock.
    wait_until("the batch holds the lock", async || {
        world.keys().await.contains_key(&format!("{}a", world.config.lock.prefix))
    })
    .await;
    broker.hang();
    masters.iter().for_each(Proxy::hang);

    is_cut_off_by_force(worker, "the group of workers").await;
    store.mend();
    assert_eq!(world.available("a"), 5);
}

/// The same where even leaving the group hangs: the process ends itself.
async fn is_cut_off_by_force(role: Role, left: &str) {
    role.terminate();
    let log = role.ended(2).await;
    let is_said = |line: &&str| line.contains("stop deadline passed") && line.contains(left);
    assert!(log.lines().any(|line| is_said(&line)), "{left} is not named:\n{log}");
    assert!(log.contains("no answer"), "what hung is not named:\n{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compensator_ends_at_the_deadline_although_its_store_hangs() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let (store, url) = Proxy::before(world.config.order_store.url.expose()).await;
    let settings = [DEADLINE, ("STOCKLOCK__ORDER_STORE__URL", url.as_str())];
    let compensator = world.start_with("compensator", &settings).await;
    let order = world.save(&[order_lines(&[("a", 1)])]).await.remove(0).order_id;

    store.hang();
    world
        .report(order, ReportedStatus::Failed(Reason::parse("payment declined")), "payments")
        .await;
    compensator.complains("compensating: ").await;

    is_cut_off(compensator, "batches of statuses").await;
    assert_eq!(world.count_orders("PENDING").await, 1, "it comes again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingest_ends_at_the_deadline_although_its_store_hangs() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let (store, url) = Proxy::before(world.config.order_store.url.expose()).await;
    let settings = [DEADLINE, ("STOCKLOCK__ORDER_STORE__URL", url.as_str())];
    let ingest = world.start_with("ingest", &settings).await;
    Api::of(&ingest).place(&lines(&[("a", 1)])).await.is(202);

    store.hang();
    let placing =
        http_client().post(format!("{}/v1/orders", ingest.http)).json(&lines(&[("a", 1)])).send();
    let placing = tokio::spawn(placing);
    // The request, or a sweep of the outbox, waits for a connection, and would for longer than the
    // deadline.
    stays(Duration::from_secs(1), "the request waits", async || !placing.is_finished()).await;

    is_cut_off(ingest, "").await;
    assert!(
        !placing.await.expect("no panic").is_ok_and(|answer| answer.status() == 202),
        "nothing was saved"
    );
}

/// Other workers need not wait for the session of one that hung.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_store_hangs_leaves_its_group_all_the_same() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let (store, url) = Proxy::before(world.config.stock_store.url.expose()).await;
    let session = ("STOCKLOCK__KAFKA__SESSION_TIMEOUT", "5m");
    let settings = [DEADLINE, session, ("STOCKLOCK__STOCK_STORE__URL", &url)];
    let worker = world.start_with("worker", &settings).await;
    store.hang();
    world.produce_events(&world.save(&[order_lines(&[("a", 1)])]).await).await;
    worker.complains("deducting: ").await;

    is_cut_off(worker, "batches of orders").await;

    let (_next, _compensator) =
        (world.start_with("worker", &[session]).await, world.start("compensator").await);
    world.settled().await;
    assert_eq!(world.available("a"), 4);
}

/// Only leaving the group hangs, and that loses nothing: the next owner repeats what was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_work_ends_in_order_although_the_brokers_hang() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let broker = BrokerProxy::before(&world.config.kafka.brokers).await;
    let settings =
        [("STOCKLOCK__STOP__DEADLINE", "10s"), ("STOCKLOCK__KAFKA__BROKERS", &broker.address)];
    let (worker, _compensator) =
        (world.start_with("worker", &settings).await, world.start("compensator").await);
    world.produce_events(&world.save(&[order_lines(&[("a", 1)])]).await).await;
    world.settled().await;

    broker.hang();
    worker.terminate();

    let log = worker.ended(0).await;
    assert!(log.contains("the group was not left in time"), "the fault never fired:\n{log}");
    assert_eq!(world.available("a"), 4);
}
