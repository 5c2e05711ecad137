//! `/livez`, `/readyz` and `/metrics` of every role.

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::harness::{Api, Database, Proxy, Role, Strategy, World, http_get, lines, order_lines};

async fn ask(role: &Role, path: &str) -> (u16, String) {
    let answer = http_get(format!("{}{path}", role.admin)).await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a text"))
}

/// Waits until a metric has a value: a role may count after the client has its answer.
async fn comes_to(role: &Role, name: &str, labels: &str, value: f64) {
    role.shows(name, labels, |found| found == value).await;
}

/// Fails the test unless a role is alive and ready, and shows these series and none of these ids.
async fn check_admin_pages(role: &Role, series: &[&str], ids: &[&str]) {
    assert_eq!((ask(role, "/livez").await.0, ask(role, "/readyz").await.0), (200, 200));
    let (status, text) = ask(role, "/metrics").await;
    assert_eq!(status, 200);
    for name in series.iter().chain(&["stocklock_build_info{version=", "process_cpu_seconds_total"])
    {
        let is_shown = text.lines().any(|line| line.starts_with(name));
        assert!(is_shown, "{name} is missing from:\n{text}");
    }
    for id in ids {
        assert!(!text.contains(id), "labels must be bounded, and {id} is among them:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_counts_what_it_does_under_the_names_of_the_contract() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    world.import(&[("sku-1", 3)]);
    let (ingest, worker) = (world.start("ingest").await, world.start("worker").await);
    let compensator = world.start("compensator").await;
    let api = Api::of(&ingest);

    let completed = api.place_and_wait(&lines(&[("sku-1", 3)]), 30).await.is(201);
    let failed = api.place_and_wait(&lines(&[("sku-1", 1)]), 30).await.is(409);
    api.place(&lines(&[("sku-1", 0)])).await.is(422);

    for (role, name, labels, value) in [
        (&ingest, "stocklock_orders_ingested_total", r#"result="accepted""#, 2.0),
        (&ingest, "stocklock_orders_ingested_total", r#"result="invalid""#, 1.0),
        (&ingest, "stocklock_http_requests_total", r#"route="/v1/orders",status="201""#, 1.0),
        (&ingest, "stocklock_http_request_seconds_count", r#"route="/v1/orders""#, 3.0),
        (&ingest, "stocklock_outbox_pending", "", 0.0),
        (
            &worker,
            "stocklock_orders_decided_total",
            r#"outcome="COMPLETED",strategy="redlock""#,
            1.0,
        ),
        (&worker, "stocklock_orders_decided_total", r#"outcome="FAILED",strategy="redlock""#, 1.0),
        (&worker, "stocklock_order_latency_seconds_count", "", 2.0),
        (&worker, "stocklock_stale_writes_rejected_total", "", 0.0),
        (&compensator, "stocklock_compensations_total", r#"kind="completed""#, 1.0),
        (&compensator, "stocklock_compensations_total", r#"kind="failed""#, 1.0),
    ] {
        comes_to(role, name, labels, value).await;
    }

    // An event may come more than once, and a worker that is silent for a while gets its partitions
    // again.
    world.caught_up(&world.config.kafka.group_id, &world.config.topics.orders).await;
    let number = |count: usize| f64::from(u32::try_from(count).expect("few"));
    let messages = number(world.count_messages(&world.config.topics.orders));
    comes_to(&worker, "stocklock_batch_orders_sum", "", messages).await;
    let batches = worker.metric("stocklock_batch_orders_count", "").await;
    assert!((2.0..=messages).contains(&batches), "{batches} batches of {messages} messages");
    comes_to(&worker, "stocklock_batch_seconds_count", r#"stage="transaction""#, batches).await;
    comes_to(&worker, "stocklock_lock_wait_seconds_count", r#"strategy="redlock""#, batches).await;
    comes_to(&worker, "stocklock_lock_hold_seconds_count", r#"strategy="redlock""#, batches).await;

    let assignments = number(worker.log().matches("partitions assigned").count());
    assert!(assignments > 0.0);
    comes_to(&worker, "stocklock_rebalances_total", r#"kind="assign""#, assignments).await;

    let ids = [completed.order_id(), failed.order_id(), "sku-1"];
    let ingest_shows = [
        "stocklock_outbox_pending",
        "stocklock_outbox_oldest_seconds",
        r#"stocklock_pool_connections{state="idle",store="order_store"}"#,
    ];
    let worker_shows = [
        "stocklock_stale_writes_rejected_total",
        r#"stocklock_pool_connections{state="idle",store="stock_store"}"#,
    ];
    check_admin_pages(&ingest, &ingest_shows, &ids).await;
    check_admin_pages(&worker, &worker_shows, &ids).await;
    check_admin_pages(&compensator, &ingest_shows[2..], &ids).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_locks_are_timed_like_others() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("sku-1", 3)]);
    let events = world.save(&[order_lines(&[("sku-1", 1)])]).await;
    world.produce_events(&events).await;

    let worker = world.start("worker").await;

    for name in ["stocklock_lock_wait_seconds", "stocklock_lock_hold_seconds"] {
        comes_to(&worker, &format!("{name}_count"), r#"strategy="row""#, 1.0).await;
        assert!(worker.metric(&format!("{name}_sum"), r#"strategy="row""#).await > 0.0, "{name}");
    }
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_shows_its_lag_also_before_its_first_commit() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let (store, url) = Proxy::before(world.config.stock_store.url.expose()).await;
    store.cut();
    let worker = Role::spawn(&world.env, "worker", &[("STOCKLOCK__STOCK_STORE__URL", &url)]);

    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 3]).await).await;
    worker.listening().await;

    let of_topic = format!("topic=\"{}\"", world.config.topics.orders);
    comes_to(&worker, "stocklock_consumer_lag", &of_topic, 3.0).await;

    store.mend();
    comes_to(&worker, "stocklock_consumer_lag", &of_topic, 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_database_is_away_says_so_and_goes_on_later() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let (store, url) = Proxy::before(world.config.stock_store.url.expose()).await;
    let (ingest, _compensator) = (world.start("ingest").await, world.start("compensator").await);
    let worker = world.start_with("worker", &[("STOCKLOCK__STOCK_STORE__URL", &url)]).await;
    let api = Api::of(&ingest);
    api.place_and_wait(&lines(&[("a", 1)]), 30).await.is(201);

    store.cut();
    let waiting = api.place(&lines(&[("a", 1)])).await.is(202);

    worker.complains("deducting: the database is unavailable").await;
    assert_eq!(ask(&worker, "/livez").await.0, 200, "a restart would not help");
    assert!(worker.metric("stocklock_retries_total", "stock_store").await > 0.0);

    store.mend();
    assert_eq!(api.decided(waiting.order_id()).await["status"], "COMPLETED");
    worker.ready().await;
    world.verify();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_starts_without_its_dependency_lives_and_says_why() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let nowhere = "mysql://u:p@127.0.0.1:9/orders";
    for (role, key, value, reason) in [
        ("ingest", "STOCKLOCK__ORDER_STORE__URL", nowhere, "outbox: "),
        ("worker", "STOCKLOCK__KAFKA__BROKERS", "127.0.0.1:9", "orders: "),
        ("compensator", "STOCKLOCK__KAFKA__BROKERS", "127.0.0.1:9", "order-status: "),
        ("all", "STOCKLOCK__KAFKA__BROKERS", "127.0.0.1:9", "orders: "),
    ] {
        let started = Role::spawn(&world.env, role, &[(key, value)]);
        started.listening().await;
        started.complains(reason).await;
        assert_eq!(ask(&started, "/livez").await.0, 200, "{role}");
    }
}

/// Neither half a request's head nor half its body may hold up a stop for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_fall_silent_in_a_request_do_not_delay_a_stop() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let ingest = world.start("ingest").await;
    let mut clients = Vec::new();
    for (base, sent) in [
        (&ingest.http, "GET /v1/ord"),
        (&ingest.http, "POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"),
        (&ingest.admin, "GET /li"),
    ] {
        let address = base.strip_prefix("http://").expect("an address");
        let mut client = TcpStream::connect(address).await.expect("a connection");
        client.write_all(sent.as_bytes()).await.expect("sent");
        clients.push(client);
    }
    ask(&ingest, "/livez").await;

    ingest.stop();
}
