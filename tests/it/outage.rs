//! A connection to a server breaks or hangs, and comes back: orders wait, none is lost, and none is
//! dead-lettered.

use serde_json::Value;

use crate::harness::{
    Database, Proxy, Role, Strategy, World, body, on_every_stack, place_all, proxies_of_masters,
    random_orders, readiness, wait_for,
};

fn bodies(seed: u64) -> Vec<Value> {
    random_orders(seed, 100, 3).iter().map(body).collect()
}

/// Waits until a role has met the fault and reports that it is not ready.
async fn suffers(role: &Role, dependency: &str) {
    wait_for(async || {
        let retries =
            role.count("stocklock_retries_total", &format!("dependency=\"{dependency}\"")).await;
        let (status, why) = readiness(role).await;
        if retries > 0 && status != 200 { Ok(()) } else { Err(format!("{retries} retries, {why}")) }
    })
    .await;
}

/// Places orders, breaks the connection of one role, places more, and mends the connection. Fails
/// the test unless all orders are decided and none is dead-lettered.
async fn survive(
    world: &World,
    role: &str,
    settings: &[(&str, &str)],
    dependency: &str,
    proxies: &[Proxy],
    fault: fn(&Proxy),
) {
    world.import(&[("p0", 150), ("p1", 150), ("p2", 150)]);

    let mut roles = Vec::new();
    for other in ["ingest", "worker", "compensator"].into_iter().filter(|other| *other != role) {
        roles.push(world.start(other).await);
    }
    let suffering = world.start_with(role, settings).await;
    assert_eq!(place_all(&roles[0].http, &bodies(1), 16).await.len(), 100);
    world.settled().await;

    proxies.iter().for_each(fault);
    assert_eq!(
        place_all(&roles[0].http, &bodies(2), 16).await.len(),
        100,
        "ingest does not need it"
    );
    suffers(&suffering, dependency).await;
    assert!(world.count_orders("PENDING").await > 0);

    proxies.iter().for_each(Proxy::mend);
    world.settled().await;
    suffering.ready().await;

    assert_eq!(world.count_orders("COMPLETED").await + world.count_orders("FAILED").await, 200);
    for dead_letters in [&world.config.topics.orders_dlq, &world.config.topics.order_status_dlq] {
        assert_eq!(world.count_messages(dead_letters), 0, "an outage dead-letters no message");
    }
    world.verify();
    suffering.stop();
}

on_every_stack!(a_stock_store_that_goes_away_and_comes_back_costs_no_order,);

async fn a_stock_store_that_goes_away_and_comes_back_costs_no_order(world: World) {
    let (proxy, url) = Proxy::before(world.config.stock_store.url.expose()).await;
    let settings = [("STOCKLOCK__STOCK_STORE__URL", url.as_str())];
    survive(&world, "worker", &settings, "stock_store", &[proxy], Proxy::cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_store_that_goes_away_and_comes_back_costs_no_status() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let (proxy, url) = Proxy::before(world.config.order_store.url.expose()).await;
    let settings = [("STOCKLOCK__ORDER_STORE__URL", url.as_str())];
    survive(&world, "compensator", &settings, "order_store", &[proxy], Proxy::cut).await;
}

/// Breaks the connections to all masters. One master of three is not missed. Without the others no
/// lock is acquired, and no order is decided.
async fn lose_the_masters(fault: fn(&Proxy)) {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    let (proxies, urls) = proxies_of_masters(&world).await;
    fault(&proxies[2]);
    let urls = urls.join(",");
    survive(&world, "worker", &[("STOCKLOCK__REDIS__URLS", &urls)], "redis", &proxies[..2], fault)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_masters_that_break_off_and_come_back_cost_no_order() {
    lose_the_masters(Proxy::cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_masters_that_hang_and_come_back_cost_no_order() {
    lose_the_masters(Proxy::hang).await;
}
