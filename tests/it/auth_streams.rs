//! Requests that last: their tokens, their places, and their connections.

use std::time::{Duration, Instant};

use reqwest::Method;

use crate::{
    auth_limits::{SCOPES, ingest},
    harness::{Api, PATIENCE, Raw, Role, TokensFile, bearer, lines, token_line, wait_until},
};

const ACCEPTED: &str = r#"result="accepted""#;

/// Removes the token of `greedy`, and waits until ingest does not know it any more.
async fn remove_token(file: &TokensFile, api: &Api) {
    file.replace(&token_line("other", "other", SCOPES));
    wait_until("the token is removed", async || api.read_as("greedy").await.status == 401).await;
}

/// A client whose batch has begun.
async fn batch(role: &Role, headers: &str) -> Raw {
    let mut client = Raw::connect(&role.http).await;
    let head = "POST /v1/orders:batch HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let head = format!("{head}transfer-encoding: chunked\r\n{headers}\r\n");
    client.send(head.as_bytes()).await;
    client
}

/// A line of a batch as a chunk of its body.
fn chunk(line: &str) -> Vec<u8> {
    format!("{:x}\r\n{line}\n\r\n", line.len() + 1).into_bytes()
}

/// A client that watches an order.
async fn watch(role: &Role, order_id: &str) -> Raw {
    let mut client = Raw::connect(&role.http).await;
    let head = format!("GET /v1/orders/{order_id}/events HTTP/1.1\r\nhost: x\r\n");
    let rest = "connection: close\r\nauthorization: Bearer greedy\r\n\r\n";
    client.send((head + rest).as_bytes()).await;
    client
}

async fn accepted(role: &Role) -> u64 {
    role.count("stocklock_orders_ingested_total", ACCEPTED).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_ends_soon_after_its_token_was_removed() {
    let (world, role, file) = ingest("", &[]).await;
    let api = Api::of(&role);
    let line = chunk(&lines(&[("a", 1)]).to_string());
    let mut client = batch(&role, "authorization: Bearer greedy\r\n").await;
    client.send(&line).await;
    wait_until("the first order is saved", async || accepted(&role).await == 1).await;

    remove_token(&file, &api).await;
    let (begun, refused) = (Instant::now(), role.refused("unknown_token").await);
    while role.refused("unknown_token").await == refused {
        assert!(begun.elapsed() < PATIENCE, "the batch goes on:\n{}", role.log());
        client.send(&line).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let saved = world.count_orders("PENDING").await;
    let _closed = client.send_for(&line, Duration::from_secs(1)).await;
    let answer = client.read_to_end().await;

    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(answer.contains(r#""status":401"#), "{answer}");
    assert_eq!(world.count_orders("PENDING").await, saved, "an order was placed after the end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_end_soon_after_their_token_was_removed() {
    let (_world, role, file) = ingest("", &[]).await;
    let api = Api::of(&role);
    let order = api.place_as("greedy").await.is(202);
    let mut client = watch(&role, order.order_id()).await;
    let watched = r#"route="/v1/orders/{id}/events",status="200""#;
    wait_until("the client watches", async || {
        role.count("stocklock_http_requests_total", watched).await == 1
    })
    .await;

    remove_token(&file, &api).await;

    client.is_closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_sends_nothing_keeps_no_connection_from_others() {
    let (_world, role, _file) = ingest("", &[("STOCKLOCK__LIMITS__CONNECTIONS", "4")]).await;
    let line = chunk(&lines(&[("a", 1)]).to_string());
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut client = batch(&role, "authorization: Bearer greedy\r\n").await;
        client.send(&line).await;
        slow.push(client);
    }
    wait_until("all orders are saved", async || accepted(&role).await == 4).await;

    let answer = Api::of(&role).read_as("other").await;

    answer.is(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_its_limit_holds_up_keeps_its_connection() {
    let limit = [("STOCKLOCK__LIMITS__CONNECTIONS", "4")];
    let (_world, role, _file) = ingest("requests_per_second=4", &limit).await;
    let lines = chunk(&vec![lines(&[("a", 1)]).to_string(); 60].join("\n"));
    let mut held_up = Vec::new();
    for _ in 0..4 {
        // The lines leave one request in four to the beginning of a batch.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut client = batch(&role, "authorization: Bearer greedy\r\n").await;
        client.send(&lines).await;
        held_up.push(client);
    }

    let mut other = Raw::connect(&role.http).await;

    let answer = other.read_to_end().await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_without_a_place_to_wait_are_answered_at_once() {
    let (_world, role, _file) = ingest("waiters=2", &[]).await;
    let api = Api::of(&role);
    let order = api.place_as("greedy").await.is(202);
    let _watching = [watch(&role, order.order_id()).await, watch(&role, order.order_id()).await];
    let (name, value) = bearer("greedy");
    let headers =
        [("content-type", "application/x-ndjson"), ("prefer", "wait=60"), (name, &*value)];
    let text = format!("{}\n", lines(&[("a", 1)])).repeat(5);
    let watched = r#"route="/v1/orders/{id}/events",status="200""#;
    wait_until("both places are taken", async || {
        role.count("stocklock_http_requests_total", watched).await == 2
    })
    .await;

    let begun = Instant::now();
    let answer = api.send(Method::POST, "/v1/orders:batch", &headers, &text).await.is(200);

    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let answered = answer.body.as_str().expect("lines");
    assert_eq!(answered.matches(r#""status":202"#).count(), 5, "{answered}");
}

/// A browser sends such a request for a page of another origin without asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_must_name_the_type_of_what_it_sends() {
    let (world, role, _file) = ingest("", &[]).await;
    let order = lines(&[("a", 1)]).to_string();
    let token = "authorization: Bearer greedy\r\nconnection: close\r\n";
    let sent = async |headers: &str| {
        let mut client = Raw::connect(&role.http).await;
        client.place(&order, &format!("{token}{headers}")).await;
        client.read_to_end().await
    };

    let of_page = sent("origin: http://page.example\r\n").await;
    let of_page_as_json =
        sent("origin: http://page.example\r\ncontent-type: application/json\r\n").await;
    let of_program = sent("").await;

    assert!(of_page.starts_with("HTTP/1.1 415 "), "{of_page}");
    assert!(of_page_as_json.starts_with("HTTP/1.1 202 "), "{of_page_as_json}");
    assert!(of_program.starts_with("HTTP/1.1 202 "), "{of_program}");
    assert_eq!(world.count_orders("PENDING").await, 2);
}
