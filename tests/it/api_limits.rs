//! What clients may hold, and how ingest answers requests that are too large or of another kind.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{Connection as _, MySqlConnection};

use crate::harness::{
    Api, Database, Proxy, Raw, Role, Strategy, World, http_get, lines, wait_until,
};

async fn ingest() -> (World, Role) {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 500)]);
    let ingest = world.start("ingest").await;
    (world, ingest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_names_twenty_errors_at_most_and_shows_values_cut() {
    let (_world, ingest) = ingest().await;
    let api = Api::of(&ingest);
    let before = ingest.peak_memory_kib();
    let unknown: Vec<_> = (0..131_071).map(|_| "\"\":0").collect();

    for _ in 0..5 {
        let answer = api.post(&format!("{{{}}}", unknown.join(",")), &[]).await.problem(422);
        assert_eq!(answer.blamed().len(), 20);
        assert!(answer.body.to_string().len() < 4096, "{answer:?}");
    }

    let long = "x".repeat(1_000_000);
    for body in [json!({"reference": long}), json!({long.as_str(): 1}), lines(&[(&long, 1)])] {
        let answer = api.place(&body).await.problem(422);
        assert!(answer.body.to_string().len() < 1024, "{answer:?}");
    }

    let unknown = json!({"lines": vec![json!({"product_id": "unknown", "quantity": 1}); 100]});
    assert_eq!(api.place(&unknown).await.problem(422).blamed().len(), 20);

    // One such body alone took 232 MB.
    let grown = ingest.peak_memory_kib() - before;
    assert!(grown < 48 << 10, "{grown} KiB more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_another_content_type_than_json_is_refused() {
    let (world, ingest) = ingest().await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]).to_string());

    for other in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "x",
        "",
    ] {
        let refused = api.post(&order, &[("content-type", other)]).await.problem(415);
        assert_eq!(refused.header("accept"), "application/json");
    }

    for json in ["application/json", "application/json; charset=utf-8", "application/order+json"] {
        api.post(&order, &[("content-type", json)]).await.is(202);
    }

    assert_eq!(world.count_orders("PENDING").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_is_repeated_is_refused() {
    let (world, ingest) = ingest().await;
    let api = Api::of(&ingest);
    let line = r#"{"product_id":"a","quantity":1}"#;

    for (body, blamed) in [
        (format!(r#"{{"lines":[{line}],"lines":[{line}]}}"#), "/lines"),
        (
            r#"{"lines":[{"product_id":"a","quantity":1,"quantity":1}]}"#.to_owned(),
            "/lines/0/quantity",
        ),
    ] {
        assert_eq!(api.post(&body, &[]).await.problem(422).blamed(), [blamed]);
    }

    assert_eq!(world.count_orders("PENDING").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_too_large_is_answered_with_431() {
    let (_world, ingest) = ingest().await;
    let api = Api::of(&ingest);
    api.send(reqwest::Method::GET, "/v1/products/a", &[("x", &"x".repeat(15 << 10))], "")
        .await
        .is(200);

    // A complete head, one without an end, one of too many fields, and no HTTP at all.
    let complete = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(16 << 10));
    let endless = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(64 << 10));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(200));
    for (head, status) in
        [(complete, 431), (endless, 431), (many, 431), ("\u{1}\r\n\r\n".to_owned(), 400)]
    {
        let mut client = Raw::connect(&ingest.http).await;
        client.send(head.as_bytes()).await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("content-type: application/problem+json"), "{answer}");
        let body: Value =
            serde_json::from_str(answer.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
        assert_eq!(body["status"], status);
    }

    assert_eq!(
        ingest.count("stocklock_http_requests_total", r#"route="other",status="431""#).await,
        3
    );
}

/// Bodies of 100 clients that never end hold more than all bodies may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_of_all_bodies_is_bounded_and_small_orders_pass() {
    let (_world, ingest) = ingest().await;
    let api = Api::of(&ingest);
    let head =
        format!("POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 1 << 20);
    let most = head + &" ".repeat((1 << 20) - 1);

    // At once: a body that is silent for 10 s is given up.
    let sending = (0..60).map(async |_| {
        let mut client = Raw::connect(&ingest.http).await;
        client.send_for(most.as_bytes(), Duration::from_secs(5)).await;
        client
    });
    let clients = futures::future::join_all(sending).await;
    let refused = r#"route="/v1/orders",status="503""#;
    wait_until("the bound of all bodies is reached", async || {
        ingest.count("stocklock_http_requests_total", refused).await >= 40
    })
    .await;

    let peak = ingest.peak_memory_kib();
    assert!(peak < 160 << 10, "{peak} KiB");
    let large = format!("{}{}", lines(&[("a", 1)]), " ".repeat(1 << 19));
    assert!(!api.post(&large, &[]).await.problem(503).header("retry-after").is_empty());
    api.place(&lines(&[("a", 1)])).await.is(202);

    drop(clients);
    wait_until("the memory of the bodies is free again", async || {
        api.post(&large, &[]).await.status == 202
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_no_answers_is_cut_off() {
    let (_world, ingest) = ingest().await;
    let mut client = Raw::connect(&ingest.http).await;

    let requests = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(10_000);
    while client.send_for(requests.as_bytes(), Duration::from_secs(2)).await {}

    let answered = r#"route="/openapi.json",status="200""#;
    assert!(ingest.count("stocklock_http_requests_total", answered).await > 0);

    // The client goes on sending, which fails once the server has closed the connection.
    wait_until("the connection is closed", async || client.is_refused().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_do_not_silence_the_admin_address() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 5)]);
    let ingest = Role::spawn_with_files(&world.env, "ingest", 256);
    ingest.ready().await;
    assert!(ingest.log().contains("limit of open files bounds"), "{}", ingest.log());

    let mut silent = Vec::new();
    for base in [&ingest.http, &ingest.admin] {
        for _ in 0..300 {
            silent.push(Raw::connect(base).await);
        }
    }

    let begun = Instant::now();
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = http_get(format!("{}{path}", ingest.admin)).await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
    }
    Api::of(&ingest).place(&lines(&[("a", 1)])).await.is(202);
    assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    assert!(!ingest.log().contains("connection not accepted"), "{}", ingest.log());

    silent[0].is_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_products_of_many_orders_share_one_query() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let way = Duration::from_millis(20);
    let (_store, url) = Proxy::before_distant(world.config.stock_store.url.expose(), way).await;
    let settings =
        [("STOCKLOCK__STOCK_STORE__URL", url.as_str()), ("STOCKLOCK__STOCK_STORE__POOL_MAX", "32")];
    let ingest = world.start_with("ingest", &settings).await;
    let api = Api::of(&ingest);
    let orders: Vec<_> =
        (0..200).map(|number| lines(&[(&format!("unknown-{number}"), 1)])).collect();
    let answers = futures::future::join_all(orders.iter().map(|order| api.place(order))).await;
    let refused = answers.iter().filter(|answer| answer.status == 422).count();
    // If the stock store is slow, ingest accepts orders unchecked.
    assert!(
        refused == 200 || ingest.log().contains("products not looked up"),
        "{refused} were refused"
    );

    let mut conn = MySqlConnection::connect(world.config.stock_store.url.expose())
        .await
        .expect("the stock store");
    let sql = "SELECT COUNT(*) FROM information_schema.processlist
               WHERE db = DATABASE() AND id <> CONNECTION_ID()";
    let sessions: i64 = sqlx::query_scalar(sql).fetch_one(&mut conn).await.expect("a count");
    // The pool opens another session where the last one is still on its way back.
    assert!(sessions <= 6, "{sessions} sessions looked products up");
}

/// Otherwise `increase()` does not see the first error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_series_is_shown_before_its_first_event() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    let (orders, statuses) = (&world.config.topics.orders, &world.config.topics.order_status);
    let letters = |topic: &str| {
        [
            "undecodable",
            "unknown_schema",
            "invalid",
            "unknown_order",
            "expired",
            "refused",
            "damaged",
        ]
        .map(|class| {
            format!("stocklock_dead_letters_total{{class=\"{class}\",topic=\"{topic}\"}} 0")
        })
    };
    let retries =
        |dependency: &str| format!("stocklock_retries_total{{dependency=\"{dependency}\"}} ");
    let mut of_worker = letters(orders).to_vec();
    of_worker.extend(["stock_store", "kafka", "redis"].map(retries));
    of_worker.extend(["COMPLETED", "FAILED", "RELEASED"].map(|outcome| {
        format!("stocklock_orders_decided_total{{outcome=\"{outcome}\",strategy=\"redlock\"}} 0")
    }));
    let mut of_compensator = letters(statuses).to_vec();
    of_compensator.extend(["order_store", "kafka"].map(retries));
    let mut of_ingest = ["order_store", "kafka"].map(retries).to_vec();
    of_ingest.extend([201, 202, 400, 405, 408, 409, 413, 415, 422, 500, 503, 504].map(|status| {
        format!("stocklock_http_requests_total{{route=\"/v1/orders\",status=\"{status}\"}} 0")
    }));
    of_ingest.push(
        "stocklock_http_requests_total{route=\"/v1/orders/{id}\",status=\"404\"} 0".to_owned(),
    );
    of_ingest.extend([400, 404, 414, 431, 503].map(|status| {
        format!("stocklock_http_requests_total{{route=\"other\",status=\"{status}\"}} 0")
    }));

    for (role, shown) in
        [("worker", of_worker), ("compensator", of_compensator), ("ingest", of_ingest)]
    {
        let started = world.start(role).await;
        let metrics = http_get(format!("{}/metrics", started.admin)).await.expect("metrics");
        let metrics = metrics.text().await.expect("a text");
        for series in shown {
            assert!(
                metrics.lines().any(|line| line.starts_with(&series)),
                "{role}: {series} is missing in\n{metrics}"
            );
        }
    }
}
