//! `POST /v1/orders:batch` places a stream of orders, and answers each line.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Api, Raw, World, lines, on_each_database};

on_each_database!(
    each_line_is_answered_as_a_single_request_would_be,
    a_batch_that_broke_off_is_sent_again_without_second_orders,
);

fn statuses(answers: &[Value]) -> Vec<u64> {
    answers.iter().map(|answer| answer["status"].as_u64().expect("a status")).collect()
}

async fn each_line_is_answered_as_a_single_request_would_be(world: World) {
    world.import(&[("a", 50)]);
    let ingest = world.start("ingest").await;
    let (api, id, order) = (Api::of(&ingest), Uuid::now_v7(), lines(&[("a", 1)]));
    let with = |name: &str, value: &str| {
        let mut order = order.clone();
        order[name] = json!(value);
        order.to_string()
    };
    let mut both = order.clone();
    (both["order_id"], both["idempotency_key"]) = (json!(Uuid::now_v7()), json!("k"));
    let batch = [
        order.to_string(),
        with("order_id", &id.to_string()),
        with("order_id", &id.to_string()),
        with("idempotency_key", "k"),
        String::new(),
        with("idempotency_key", "k"),
        with("order_id", "no id"),
        with("idempotency_key", "a b"),
        both.to_string(),
        "{".to_owned(),
        lines(&[("unknown", 1)]).to_string(),
        format!("{{\"reference\":\"{}\"}}", "x".repeat(1 << 20)),
        order.to_string(),
    ];

    let answers = api.place_batch(&batch.join("\r\n")).await;

    assert_eq!(
        statuses(&answers),
        [202, 202, 202, 202, 202, 422, 422, 422, 400, 422, 413, 202],
        "{answers:#?}"
    );
    assert_eq!(answers[1]["order_id"], id.to_string());
    assert_eq!(answers[1]["body"], json!({"order_id": id.to_string(), "status": "PENDING"}));
    assert_eq!(
        (&answers[2]["idempotent_replayed"], &answers[2]["order_id"]),
        (&json!(true), &answers[1]["order_id"])
    );
    assert_eq!(answers[3]["order_id"], answers[4]["order_id"]);
    let single = api.place(&lines(&[("unknown", 1)])).await.problem(422);
    assert_eq!(answers[9]["body"], single.body);
}

async fn a_batch_that_broke_off_is_sent_again_without_second_orders(world: World) {
    world.import(&[("a", 5_000)]);
    let ingest = world.start("ingest").await;
    let keyed = |number: usize| {
        let mut order = lines(&[("a", 1)]);
        order["idempotency_key"] = json!(format!("k{number}"));
        order.to_string() + "\n"
    };
    let text: String = (0..2_000).map(keyed).collect();
    let mut broken = Raw::connect(&ingest.http).await;
    let head = format!(
        "POST /v1/orders:batch HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    broken.send(head.as_bytes()).await;
    broken.send(&text.as_bytes()[..text.len() / 2]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;

    ingest.kill();
    let ingest = world.start("ingest").await;
    let answers = Api::of(&ingest).place_batch(&text).await;

    assert!(answers.iter().all(|answer| answer["status"] == 202));
    let replayed = answers.iter().filter(|answer| answer["idempotent_replayed"] == true).count();
    assert!((1..2_000).contains(&replayed), "{replayed} orders were placed before the kill");
    let ids: BTreeSet<_> = answers.iter().map(|answer| answer["order_id"].to_string()).collect();
    assert_eq!((ids.len(), world.count_orders("PENDING").await), (2_000, 2_000));
}
