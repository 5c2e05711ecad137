//! Which connections ingest keeps, and what their clients see of an answer that ends them.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::harness::{Api, Database, Raw, Role, Strategy, World, lines, wait_until};

async fn ingest() -> (World, Role) {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 500)]);
    let ingest = world.start("ingest").await;
    (world, ingest)
}

/// Ingest with room for few connections, and their number.
async fn small_room() -> (World, Role, usize) {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 500)]);
    let ingest = Role::spawn_with_files(&world.env, "ingest", 256);
    ingest.ready().await;
    let log = ingest.log();
    let digits = log
        .split("connections\":")
        .nth(1)
        .or_else(|| log.split("connections=").nth(1))
        .expect("a bound");
    let room = digits
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    assert!((16..100).contains(&room), "{room} connections");
    (world, ingest, room)
}

async fn comes_to(role: &Role, labels: &str, count: u64) {
    wait_until(&format!("{count} answers of {labels}"), async || {
        role.count("stocklock_http_requests_total", labels).await >= count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_full_of_requests_in_flight_answers_503_to_others() {
    let (_world, ingest, room) = small_room().await;
    let order = lines(&[("a", 1)]).to_string();
    let mut in_flight = Vec::new();
    for _ in 0..room {
        let mut client = Raw::connect(&ingest.http).await;
        client.place(&order, "prefer: wait=30\r\n").await;
        in_flight.push(client);
    }
    wait_until("all orders are saved", async || {
        let saved = ingest.count("stocklock_orders_ingested_total", r#"result="accepted""#).await;
        saved >= room as u64
    })
    .await;

    let mut others = Vec::new();
    for _ in 0..100 {
        others.push(Raw::connect(&ingest.http).await);
    }

    for mut other in others {
        let answer = other.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with('}'), "{answer:?}");
    }
    assert_eq!(
        ingest.count("stocklock_http_requests_total", r#"route="other",status="503""#).await,
        100
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_room_does_not_cut_an_upload_in_progress() {
    let (_world, ingest, room) = small_room().await;
    let (order, steps) = (lines(&[("a", 1)]).to_string(), 2 * room);
    let length = order.len() + steps;
    let head = format!(
        "POST /v1/orders HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n"
    );
    let mut upload = Raw::connect(&ingest.http).await;
    upload.send(head.as_bytes()).await;

    let mut silent = Vec::new();
    for _ in 0..steps {
        upload.send(b" ").await;
        // A client that sends slowly: the time between its bytes is what is tested.
        tokio::time::sleep(Duration::from_millis(20)).await;
        silent.push(Raw::connect(&ingest.http).await);
    }

    upload.send(order.as_bytes()).await;
    let answer = upload.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer:?}");
    silent[0].is_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_ending_keep_their_places() {
    let (_world, ingest, room) = small_room().await;
    let (before, mut most, mut clients) = (ingest.open_files(), 0, Vec::new());

    for _ in 0..6 * room {
        let mut client = Raw::connect(&ingest.http).await;
        // No HTTP: the server answers 400, and waits for the client to close.
        client.send(b"\x01\r\n\r\n").await;
        clients.push(client);
        most = most.max(ingest.open_files());
    }

    assert!(most < before + 2 * room, "{most} files, {before} before, for {room} connections");
    Api::of(&ingest).place(&lines(&[("a", 1)])).await.is(202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_no_one_reads_does_not_hide_the_answer() {
    let (_world, ingest) = ingest().await;
    let body = " ".repeat(8 << 20);
    let next = "GET /v1/products/a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    for (request, header, status) in [
        ("POST /v1/orders", "content-type: text/plain\r\n", "415"),
        ("POST /v1/orders", "idempotency-key: \r\n", "400"),
        ("POST /v1/orders", "", "413"),
        ("PUT /v1/orders", "", "405"),
        ("POST /v1/other", "", "404"),
        ("GET /openapi.json", "", "200"),
    ] {
        let length = body.len();
        let head =
            format!("{request} HTTP/1.1\r\nhost: x\r\n{header}content-length: {length}\r\n\r\n");
        let mut client = Raw::connect(&ingest.http).await;

        client.send((head + &body + next).as_bytes()).await;

        let answers = client.read_to_end().await;
        let statuses: Vec<_> =
            answers.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)).collect();
        assert_eq!(statuses, [status, "200"], "{request} {header}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_grows_too_large_after_100_is_answered_with_413() {
    let (_world, ingest) = ingest().await;
    let head = "POST /v1/orders HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks = format!("10000\r\n{}\r\n", " ".repeat(1 << 16)).repeat(128);
    let mut client = Raw::connect(&ingest.http).await;

    client.send((head.to_owned() + &chunks + "0\r\n\r\n").as_bytes()).await;

    let answers = client.read_to_end().await;
    assert!(
        answers.starts_with("HTTP/1.1 100 ") && answers.contains("HTTP/1.1 413 "),
        "{answers:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_hold_no_memory_of_their_heads() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a higher limit");
    let (_world, ingest) = ingest().await;
    let head =
        format!("GET /openapi.json HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(15 << 10));

    let mut idle = Vec::new();
    // 16 MiB are enough for the heads of 1,450 connections at once.
    for number in 1..=1_600 {
        let mut client = Raw::connect(&ingest.http).await;
        client.send(head.as_bytes()).await;
        idle.push(client);
        if number % 100 == 0 {
            comes_to(&ingest, r#"route="/openapi.json",status="200""#, number).await;
        }
    }

    assert_eq!(
        ingest.count("stocklock_http_requests_total", r#"route="other",status="503""#).await,
        0
    );
}
