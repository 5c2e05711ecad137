//! Orders from the request to the order store, with both answers to the client.

use reqwest::StatusCode;
use serde_json::Value;

use crate::harness::{World, http_client, lines, on_every_stack};

async fn place(url: &str, body: &Value, wait: Option<u64>) -> (StatusCode, Value) {
    let mut request = http_client().post(format!("{url}/v1/orders")).json(body);
    if let Some(seconds) = wait {
        request = request.header("prefer", format!("wait={seconds}"));
    }
    let response = request.send().await.expect("an answer");
    (response.status(), response.json().await.expect("JSON"))
}

on_every_stack!(the_synchronous_answer_is_the_outcome,);

async fn the_synchronous_answer_is_the_outcome(world: World) {
    world.import(&[("a", 3), ("b", 1)]);
    let all = world.start("all").await;

    let (status, completed) = place(&all.http, &lines(&[("a", 2), ("b", 1)]), Some(30)).await;
    assert_eq!((status, completed["status"].as_str()), (StatusCode::CREATED, Some("COMPLETED")));

    let (status, refused) = place(&all.http, &lines(&[("a", 1), ("b", 1)]), Some(30)).await;
    assert_eq!((status, refused["order_status"].as_str()), (StatusCode::CONFLICT, Some("FAILED")));
    assert_eq!(refused["reason"], "INSUFFICIENT_STOCK");

    let shown = world
        .cli(&[
            "--output",
            "json",
            "order",
            "show",
            refused["order_id"].as_str().unwrap(),
            "--set",
            &format!("client.url={}", all.http),
        ])
        .succeeds()
        .json();
    assert_eq!(
        (shown["status"].as_str(), shown["reason"].as_str()),
        (Some("FAILED"), Some("INSUFFICIENT_STOCK"))
    );

    assert_eq!((world.available("a"), world.available("b")), (1, 0));
    world.verify();
    all.stop();
}
