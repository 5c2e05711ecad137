//! `/readyz` is true: a role is ready once it has tried everything that its work needs. Otherwise
//! it names what is missing, and why.

use rdkafka::admin::{AdminClient, AdminOptions};
use sqlx::{Connection as _, MySqlConnection};
use stocklock::kafka::client_config;

use crate::harness::{
    Api, BrokerProxy, Cli, Database, Proxy, Role, Strategy, World, http_get, lines,
    on_each_database, proxies_of_masters, wait_until,
};

const NOWHERE: &str = "127.0.0.1:9";
const STOCK_STORE: &str = "STOCKLOCK__STOCK_STORE__URL";
const ORDER_STORE: &str = "STOCKLOCK__ORDER_STORE__URL";

/// Starts a role with one setting. Fails the test unless the role lives, is not ready, and gives
/// each of these reasons.
async fn lacks(world: &World, role: &str, setting: (&str, &str), why: &[&str]) -> Role {
    let started = Role::spawn(&world.env, role, &[setting]);
    started.listening().await;
    for words in why {
        started.complains(words).await;
    }
    let livez = http_get(format!("{}/livez", started.admin)).await.expect("an answer");
    assert_eq!(livez.status(), 200, "a restart mends nothing");
    started
}

fn with_password(url: &str, password: &str) -> String {
    let mut url = url::Url::parse(url).expect("a URL");
    url.set_password(Some(password)).expect("set");
    url.into()
}

/// `host:port` of a URL.
fn address(url: &str) -> String {
    let url = url::Url::parse(url).expect("a URL");
    format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"))
}

on_each_database!(
    a_role_that_cannot_use_its_store_is_not_ready_and_says_why,
    a_store_that_may_only_be_read_is_a_lack,
);

async fn a_role_that_cannot_use_its_store_is_not_ready_and_says_why(world: World) {
    let (orders, stock) =
        (world.config.order_store.url.expose(), world.config.stock_store.url.expose());
    let at = address(orders);
    let (denied, no_database) =
        (with_password(orders, "wrong"), orders.replace("_orders", "_nowhere"));

    for (role, setting, why) in [
        ("ingest", (ORDER_STORE, &*denied), ["order_store: ", &*at, "Access denied"]),
        ("ingest", (STOCK_STORE, &*denied), ["stock_store: ", &*at, "Access denied"]),
        ("worker", (STOCK_STORE, &*denied), ["stock_store: ", &*at, "Access denied"]),
        ("compensator", (ORDER_STORE, &*denied), ["order_store: ", &*at, "Access denied"]),
        ("compensator", (ORDER_STORE, &*no_database), ["order_store: ", &*at, "_nowhere"]),
        // Its tables are those of the other store.
        ("worker", (STOCK_STORE, orders), ["stock_store: ", &*at, "doesn't exist"]),
        ("compensator", (ORDER_STORE, stock), ["order_store: ", &*at, "doesn't exist"]),
    ] {
        lacks(&world, role, setting, &why).await;
    }
}

/// The application's user may read, and no more.
async fn a_store_that_may_only_be_read_is_a_lack(world: World) {
    let (orders, stock) =
        (world.config.order_store.url.expose(), world.config.stock_store.url.expose());
    let mut server = MySqlConnection::connect(stock).await.expect("the server");
    let database = url::Url::parse(stock).expect("a URL").path()[1..].to_owned();
    let user = &database[..20.min(database.len())];
    let create = format!(
        "CREATE USER '{user}'@'%' IDENTIFIED BY 'reader';
         GRANT SELECT ON {database}.* TO '{user}'@'%';
         GRANT SELECT ON {}.* TO '{user}'@'%'",
        &url::Url::parse(orders).expect("a URL").path()[1..],
    );
    sqlx::raw_sql(&create).execute(&mut server).await.expect("a user");
    let as_reader = |url: &str| {
        let mut url = url::Url::parse(url).expect("a URL");
        url.set_username(user).expect("set");
        with_password(url.as_str(), "reader")
    };

    for (role, key, url, store) in [
        ("worker", STOCK_STORE, as_reader(stock), "stock_store: "),
        ("compensator", ORDER_STORE, as_reader(orders), "order_store: "),
        ("ingest", ORDER_STORE, as_reader(orders), "order_store: "),
    ] {
        lacks(&world, role, (key, &url), &[store, "denied"]).await;
    }
    // To read is all that ingest does with the stock.
    world.start_with("ingest", &[(STOCK_STORE, &as_reader(stock))]).await.stop();
    sqlx::raw_sql(&format!("DROP USER '{user}'@'%'")).execute(&mut server).await.expect("dropped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_role_notices_that_its_store_is_away_and_that_it_is_back() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (store, stock) = Proxy::before(world.config.stock_store.url.expose()).await;
    let worker = world.start_with("worker", &[(STOCK_STORE, &stock)]).await;
    worker.shows("stocklock_dependency_up", "stock_store", |up| up == 1.0).await;

    for (fault, cause) in
        [(Proxy::cut as fn(&Proxy), ""), (Proxy::hang, "no answer to a new connection")]
    {
        fault(&store);
        let said = worker.complains(&format!("stock_store: {}", address(&stock))).await;
        assert!(
            !said.contains("pool timed out") || cause.is_empty(),
            "the cause is hidden: {said}"
        );
        worker.complains(cause).await;
        worker.shows("stocklock_dependency_up", "stock_store", |up| up == 0.0).await;
        store.mend();
        worker.ready().await;
        worker.shows("stocklock_dependency_up", "stock_store", |up| up == 1.0).await;
    }
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connection_is_named_with_its_address() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let url = format!("mysql://u:p@{NOWHERE}/stock");

    lacks(&world, "worker", (STOCK_STORE, &url), &["stock_store: ", NOWHERE, "refused"]).await;

    // Ingest takes orders unchecked while the stock store is away.
    let ingest = world.start_with("ingest", &[(STOCK_STORE, &url)]).await;
    ingest.shows("stocklock_dependency_up", "stock_store", |up| up == 0.0).await;
    ingest.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_under_redlock_needs_a_majority_of_the_masters() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    let (proxies, urls) = proxies_of_masters(&world).await;
    let masters = urls.join(",");
    let settings = ("STOCKLOCK__REDIS__URLS", masters.as_str());
    proxies.iter().for_each(Proxy::cut);
    let worker =
        lacks(&world, "worker", settings, &["redis: 0 of 3 masters", &address(&urls[2])]).await;

    proxies[0].mend();
    worker.complains("redis: 1 of 3 masters").await;
    proxies[1].mend();
    worker.ready().await;

    for (url, up) in urls.iter().zip([1.0, 1.0, 0.0]) {
        worker.shows("stocklock_redis_master_up", &address(url), |found| found == up).await;
    }
    // A master that hangs counts as one that is away.
    proxies[1].hang();
    worker.complains("redis: 1 of 3 masters").await;
    let fallback = [settings, ("STOCKLOCK__LOCK__FALLBACK", "row")];
    world.start_with("worker", &fallback).await.stop();
}

async fn delete_topic(world: &World, topic: &str) {
    let admin: AdminClient<_> =
        client_config(&world.config.kafka).create().expect("an admin client");
    admin.delete_topics(&[topic], &AdminOptions::new()).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_one_of_its_topics_is_not_ready() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    for (role, key, value) in [
        ("worker", "STOCKLOCK__TOPICS__ORDERS_DLQ", "no.such.letters"),
        ("worker", "STOCKLOCK__TOPICS__ORDER_STATUS", "no.such.statuses"),
        ("compensator", "STOCKLOCK__TOPICS__ORDERS", "no.such.orders"),
        ("ingest", "STOCKLOCK__TOPICS__ORDERS", "no.such.orders"),
    ] {
        lacks(&world, role, (key, value), &["kafka: ", &world.config.kafka.brokers, value]).await;
    }
    let worker = world.start("worker").await;

    delete_topic(&world, &world.config.topics.orders_dlq).await;

    worker.complains(&world.config.topics.orders_dlq).await;
    Cli::run(&world.env, &["setup"]).succeeds();
    worker.ready().await;
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_role_notices_that_the_brokers_hang() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let broker = BrokerProxy::before(&world.config.kafka.brokers).await;
    let settings = [("STOCKLOCK__KAFKA__BROKERS", broker.address.as_str())];
    let (compensator, ingest) = (
        world.start_with("compensator", &settings).await,
        world.start_with("ingest", &settings).await,
    );

    broker.hang();

    compensator.complains(&format!("kafka: {}", broker.address)).await;
    ingest.shows("stocklock_dependency_up", "kafka", |up| up == 0.0).await;
    ingest.ready().await;
    Api::of(&ingest).place(&lines(&[("a", 1)])).await.is(202);
    broker.mend();
    compensator.ready().await;
}

/// More workers than partitions, as while a rollout goes on.
async fn all_are_ready(protocol: &str) {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let settings = [("STOCKLOCK__KAFKA__GROUP_PROTOCOL", protocol)];
    let partitions = usize::try_from(world.config.topics.partitions).expect("few");

    let workers: Vec<_> =
        (0..=partitions).map(|_| Role::spawn(&world.env, "worker", &settings)).collect();

    for worker in &workers {
        worker.ready().await;
    }
    wait_until("one worker has no partition", async || {
        let mut idle = 0;
        for worker in &workers {
            idle += usize::from(!worker.metrics().await.contains("stocklock_consumer_lag{"));
        }
        idle == 1
    })
    .await;
    for worker in &workers {
        worker.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_a_partition_is_ready() {
    all_are_ready("classic").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_a_partition_is_ready_under_the_broker_s_protocol() {
    all_are_ready("consumer").await;
}
