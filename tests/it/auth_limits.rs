//! Limits: one principal reaches its own, and the others go on.

use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::Method;

use crate::harness::{
    Answer, Api, Database, Raw, Role, Strategy, TokensFile, World, bearer, lines, token_line,
    wait_until,
};

pub(crate) const SCOPES: &str = "orders:write,orders:read";

/// Ingest with the principals `greedy`, who has these limits, and `other`, who has none.
pub(crate) async fn ingest(limits: &str, settings: &[(&str, &str)]) -> (World, Role, TokensFile) {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 10_000)]);
    let file = TokensFile::with(&[
        token_line("greedy", "greedy", &format!("{SCOPES} {limits}")),
        token_line("other", "other", SCOPES),
    ]);
    let (key, path) = file.setting();
    let settings: Vec<_> =
        [(key, path.as_str())].into_iter().chain(settings.iter().copied()).collect();
    let role = world.start_with("ingest", &settings).await;
    (world, role, file)
}

fn is_told_to_wait(answer: &Answer) -> bool {
    answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| (1..=5).contains(&seconds))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_principal_above_its_rate_gets_429_and_the_others_go_on() {
    let (_world, role, _file) = ingest("requests_per_second=5", &[]).await;
    let api = Api::of(&role);

    let greedy = join_all((0..40).map(|_| api.read_as("greedy"))).await;
    let others = join_all((0..40).map(|_| api.read_as("other"))).await;

    let refused: Vec<_> = greedy.into_iter().filter(|answer| answer.status != 200).collect();
    assert!(refused.len() >= 20, "{} were refused", refused.len());
    for answer in refused {
        let answer = answer.problem(429);
        assert!(is_told_to_wait(&answer), "{answer:?}");
    }
    assert!(others.iter().all(|answer| answer.status == 200), "{others:?}");
    assert!(role.refused("principal_requests").await >= 20);
    wait_until("the rate allows the next request", async || {
        api.read_as("greedy").await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_principals_above_the_rate_of_all_get_503() {
    let limit = [("STOCKLOCK__LIMITS__REQUESTS_PER_SECOND", "5")];
    let (_world, role, _file) = ingest("", &limit).await;
    let api = Api::of(&role);

    let answers = join_all((0..40).map(|_| api.read_as("other"))).await;

    let refused: Vec<_> = answers.into_iter().filter(|answer| answer.status != 200).collect();
    assert!(refused.len() >= 20, "{} were refused", refused.len());
    for answer in refused {
        assert!(is_told_to_wait(&answer.problem(503)));
    }
    api.get("/openapi.json").await.is(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_line_of_a_batch_counts_and_holds_the_stream_up() {
    let (world, role, _file) = ingest("requests_per_second=20", &[]).await;
    let (name, value) = bearer("greedy");
    let batch = format!("{}\n", lines(&[("a", 1)])).repeat(60);
    let headers = [("content-type", "application/x-ndjson"), (name, &*value)];
    let begun = Instant::now();

    Api::of(&role).send(Method::POST, "/v1/orders:batch", &headers, &batch).await.is(200);

    // 20 at once, and 20 in each second after that.
    assert!(begun.elapsed() > Duration::from_millis(1_800), "it took {:?}", begun.elapsed());
    assert_eq!(world.count_orders("PENDING").await, 60, "a line was lost or refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_principal_has_so_many_requests_that_wait_and_no_more() {
    let (world, role, _file) = ingest("waiters=2", &[]).await;
    let api = Api::of(&role);
    let order = api.place_as("greedy").await.is(202);
    let path = format!("/v1/orders/{}/events", order.order_id());
    let watch = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer greedy\r\n\r\n");
    let mut watching = Vec::new();
    for _ in 0..2 {
        let mut client = Raw::connect(&role.http).await;
        client.send(watch.as_bytes()).await;
        watching.push(client);
    }
    let answered = "route=\"/v1/orders/{id}/events\",status=\"200\"";
    wait_until("both watch", async || {
        role.count("stocklock_http_requests_total", answered).await == 2
    })
    .await;
    let waiting = async |token: &str| {
        let (name, value) = bearer(token);
        let headers = [("prefer", "wait=0"), (name, &*value)];
        api.post(&lines(&[("a", 1)]).to_string(), &headers).await
    };

    let watched = {
        let (name, value) = bearer("greedy");
        api.send(Method::GET, &path, &[(name, &value)], "").await.problem(429)
    };
    let waited = waiting("greedy").await.problem(429);
    waiting("other").await.is(202);
    api.place_as("greedy").await.is(202);

    assert!(is_told_to_wait(&watched) && is_told_to_wait(&waited));
    assert_eq!(world.count_orders("PENDING").await, 3, "a refused request was saved");
    drop(watching);
    wait_until("the places are free again", async || waiting("greedy").await.status == 202).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_principal_has_so_many_connections_and_no_more() {
    let (_world, role, _file) = ingest("connections=3", &[]).await;
    let request = "GET /v1/products/a HTTP/1.1\r\nhost: x\r\nauthorization: Bearer greedy\r\n\r\n";
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut client = Raw::connect(&role.http).await;
        client.send(request.repeat(2).as_bytes()).await;
        kept.push(client);
    }
    let answered = "route=\"/v1/products/{id}\",status=\"200\"";
    wait_until("all are answered", async || {
        role.count("stocklock_http_requests_total", answered).await == 6
    })
    .await;

    let mut refused = Raw::connect(&role.http).await;
    refused.send(request.as_bytes()).await;
    let answer = refused.read_to_end().await;

    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    Api::of(&role).read_as("other").await.is(200);
    kept.truncate(2);
    let api = Api::of(&role);
    wait_until("a connection is free", async || api.read_as("greedy").await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bodies_of_a_principal_are_bounded_in_sum() {
    let (world, role, _file) = ingest("body_bytes=300000", &[]).await;
    let api = Api::of(&role);
    let large = format!("{}{}", lines(&[("a", 1)]), " ".repeat(400_000));
    let post = async |token: &str| {
        let (name, value) = bearer(token);
        api.post(&large, &[(name, &value)]).await
    };

    let refused = post("greedy").await.problem(429);
    post("other").await.is(202);
    api.place_as("greedy").await.is(202);

    assert!(is_told_to_wait(&refused));
    assert_eq!(world.count_orders("PENDING").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_connections_can_be_limited() {
    let (_world, role, _file) = ingest("", &[("STOCKLOCK__LIMITS__CONNECTIONS", "4")]).await;
    let order = lines(&[("a", 1)]).to_string();
    let waits = "authorization: Bearer other\r\nprefer: wait=30\r\n";
    let mut in_flight = Vec::new();
    for _ in 0..4 {
        let mut client = Raw::connect(&role.http).await;
        client.place(&order, waits).await;
        in_flight.push(client);
    }
    wait_until("all orders are saved", async || {
        role.count("stocklock_orders_ingested_total", r#"result="accepted""#).await == 4
    })
    .await;

    let mut other = Raw::connect(&role.http).await;
    let answer = other.read_to_end().await;

    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}
