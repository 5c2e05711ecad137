//! Orders of clients that have gone, that wait for too long, or that meet a store that is away.

use std::time::{Duration, Instant};

use sqlx::{Connection as _, Executor as _, MySqlConnection};

use crate::harness::{
    Api, Database, Proxy, Raw, Role, Strategy, World, lines, on_each_database, wait_until,
};

/// A lock on the tables that placing an order writes.
struct Lock(MySqlConnection);

impl Lock {
    async fn on(world: &World) -> Self {
        let mut conn = connect(world).await;
        conn.execute("LOCK TABLES orders WRITE, outbox_groups WRITE").await.expect("locked");
        Self(conn)
    }

    async fn release(mut self) {
        self.0.execute("UNLOCK TABLES").await.expect("unlocked");
    }
}

async fn connect(world: &World) -> MySqlConnection {
    MySqlConnection::connect(world.config.order_store.url.expose()).await.expect("the order store")
}

/// Waits until so many statements wait for the lock.
async fn blocked(world: &World, statements: i64) {
    let mut conn = connect(world).await;
    let sql = "SELECT COUNT(*) FROM information_schema.processlist
               WHERE db = DATABASE() AND state = 'Waiting for table metadata lock'";
    wait_until(&format!("{statements} statements wait for the lock"), async || {
        // MySQL shows no list in which another test's statement has bytes that are no text.
        let found: i64 = sqlx::query_scalar(sql).fetch_one(&mut conn).await.unwrap_or(0);
        found >= statements
    })
    .await;
}

/// Waits until a role has counted so many orders with this result. Fails the test if there are
/// more.
async fn comes_to(role: &Role, result: &str, count: u64) {
    wait_until(&format!("{count} orders are {result}"), async || {
        let labels = format!("result=\"{result}\"");
        let found = role.count("stocklock_orders_ingested_total", &labels).await;
        assert!(found <= count, "{found} orders are {result}, not {count}");
        found == count
    })
    .await;
}

async fn count_all(world: &World) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM orders")
        .fetch_one(&mut connect(world).await)
        .await
        .expect("a count")
}

/// Ingest that saves one order a transaction: two are under way at once, the others wait.
async fn one_order_a_group(world: &World, deadline: &str) -> Role {
    world.import(&[("a", 500)]);
    let settings =
        [("STOCKLOCK__INGEST__GROUP_MAX", "1"), ("STOCKLOCK__INGEST__DEADLINE", deadline)];
    world.start_with("ingest", &settings).await
}

on_each_database!(orders_of_clients_that_have_gone_are_not_saved,);

async fn orders_of_clients_that_have_gone_are_not_saved(world: World) {
    let ingest = one_order_a_group(&world, "60s").await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]));
    api.place(&order).await.is(202);
    let lock = Lock::on(&world).await;
    let patient = tokio::spawn({
        let (api, order) = (api.clone(), order.clone());
        async move { tokio::join!(api.place(&order), api.place(&order)) }
    });
    blocked(&world, 2).await;

    let (mut gone, mut half_closed) = (Vec::new(), Raw::connect(&ingest.http).await);
    for _ in 0..20 {
        let mut client = Raw::connect(&ingest.http).await;
        client.place(&order.to_string(), "").await;
        gone.push(client);
    }
    half_closed.place(&order.to_string(), "").await;
    half_closed.finish_sending().await;
    drop(gone);
    comes_to(&ingest, "abandoned", 20).await;
    lock.release().await;

    let (one, other) = patient.await.expect("answers");
    let _both = (one.is(202), other.is(202));
    let answer = half_closed.read_to_end().await;
    let answers = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&answer);
    assert!(answers.starts_with("HTTP/1.1 202"), "{answer}");
    api.place(&order).await.is(202);
    assert_eq!(count_all(&world).await, 5);
    comes_to(&ingest, "abandoned", 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_only_finished_sending_is_answered_on_every_route() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let ingest = one_order_a_group(&world, "5s").await;

    for (request, status) in [
        ("GET /v1/products/a HTTP/1.1\r\nhost: x\r\n\r\n", "200"),
        ("GET /v1/orders/1 HTTP/1.0\r\n\r\n", "404"),
        ("POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}", "422"),
        ("POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{}", "400"),
    ] {
        let mut client = Raw::connect(&ingest.http).await;
        client.send(request.as_bytes()).await;
        client.finish_sending().await;
        let answer = client.read_to_end().await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request}: {answer}");
    }

    let mut waiting = Raw::connect(&ingest.http).await;
    waiting.place(&lines(&[("a", 1)]).to_string(), "prefer: wait=3\r\n").await;
    waiting.finish_sending().await;
    let answer = waiting.read_to_end().await;
    assert!(answer.contains("HTTP/1.1 202") && answer.contains("PENDING"), "{answer}");
}

on_each_database!(an_order_that_waits_beyond_the_deadline_is_refused_and_not_saved,);

async fn an_order_that_waits_beyond_the_deadline_is_refused_and_not_saved(world: World) {
    let ingest = one_order_a_group(&world, "1s").await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]));
    api.place(&order).await.is(202);
    let lock = Lock::on(&world).await;
    let answers = futures::future::join_all((0..50).map(|_| api.place(&order))).await;
    for answer in answers {
        assert!(answer.problem(503).header("retry-after").parse::<u64>().is_ok());
    }

    // The store is known to be away: if each waited for its deadline, it would take 100 s.
    let begun = Instant::now();
    for _ in 0..100 {
        api.place(&order).await.problem(503);
    }
    assert!(begun.elapsed() < Duration::from_secs(50), "it took {:?}", begun.elapsed());
    lock.release().await;
    taken_again(&api, &order).await;
    assert_eq!(count_all(&world).await, 2);
}

/// Places an order once the store is known to be back.
async fn taken_again(api: &Api, order: &serde_json::Value) {
    wait_until("an order is accepted", async || match api.place(order).await {
        answer if answer.status == 202 => true,
        answer => {
            answer.problem(503);
            false
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_store_503_comes_by_the_deadline_and_then_at_once() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 500)]);
    let (store, url) = Proxy::before(world.config.order_store.url.expose()).await;
    let settings =
        [("STOCKLOCK__ORDER_STORE__URL", url.as_str()), ("STOCKLOCK__INGEST__DEADLINE", "2s")];
    let ingest = world.start_with("ingest", &settings).await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]));
    let mut saved = 0;

    for hangs in [true, false] {
        taken_again(&api, &order).await;
        saved += 1;
        if hangs {
            store.hang();
        } else {
            store.cut();
        }
        let begun = Instant::now();
        api.place(&order).await.problem(503);
        // Two deadlines at most; it took 20 s and 120 s before there was one.
        assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
        let begun = Instant::now();
        for _ in 0..50 {
            api.place(&order).await.problem(503);
        }
        assert!(begun.elapsed() < Duration::from_secs(50), "it took {:?}", begun.elapsed());
        store.mend();
    }

    taken_again(&api, &order).await;
    assert_eq!(count_all(&world).await, saved + 1);
}
