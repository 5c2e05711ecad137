//! `POST /v1/orders:batch` places a stream of orders, and answers each line.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Api, Raw, World, lines, on_each_database, wait_until};

on_each_database!(
    each_line_is_answered_as_a_single_request_would_be,
    a_batch_that_broke_off_is_sent_again_without_second_orders,
    a_client_that_reads_no_answers_is_held_up_and_cut_off,
    a_long_batch_needs_little_memory,
);

/// How much memory ingest may take more for a batch of any length. The allocator keeps some.
const MAX_GROWTH_KIB: u64 = 40 << 10;

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
    wait_until("some orders are saved", async || {
        ingest.count("stocklock_orders_ingested_total", r#"result="accepted""#).await > 0
    })
    .await;

    ingest.kill();
    let ingest = world.start("ingest").await;
    let answers = Api::of(&ingest).place_batch(&text).await;

    assert!(answers.iter().all(|answer| answer["status"] == 202));
    let replayed = answers.iter().filter(|answer| answer["idempotent_replayed"] == true).count();
    assert!((1..2_000).contains(&replayed), "{replayed} orders were placed before the kill");
    let ids: BTreeSet<_> = answers.iter().map(|answer| answer["order_id"].to_string()).collect();
    assert_eq!((ids.len(), world.count_orders("PENDING").await), (2_000, 2_000));
}

async fn a_client_that_reads_no_answers_is_held_up_and_cut_off(world: World) {
    world.import(&[("a", 50)]);
    let ingest = world.start("ingest").await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]));
    api.place(&order).await.is(202);
    let before = ingest.peak_memory_kib();
    let mut silent = Raw::connect(&ingest.http).await;
    let head = "POST /v1/orders:batch HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000000\r\n\r\n";
    silent.send(head.as_bytes()).await;

    // The answers are longer than the lines.
    let lines_sent = "{\n".repeat(1 << 15);
    let mut sent = 0_usize;
    while silent.send_for(lines_sent.as_bytes(), Duration::from_secs(2)).await {
        sent += 1;
        assert!(sent < 1_000, "ingest reads on");
    }
    let other = api.place_batch(&format!("{order}\n{order}\n")).await;

    assert_eq!(statuses(&other), [202, 202]);
    api.place(&order).await.is(202);
    wait_until("the client is cut off", async || silent.is_refused().await).await;
    let growth = ingest.peak_memory_kib().saturating_sub(before);
    assert!(growth < MAX_GROWTH_KIB, "{growth} KiB more");
}

async fn a_long_batch_needs_little_memory(world: World) {
    world.import(&[("a", 50_000)]);
    let ingest = world.start("ingest").await;
    let (api, order) = (Api::of(&ingest), lines(&[("a", 1)]).to_string());
    // One line in twenty is an order.
    let of_lines = |count: usize| -> String {
        (0..count)
            .map(|number| if number % 20 == 0 { format!("{order}\n") } else { "{\n".to_owned() })
            .collect()
    };
    api.place_batch(&of_lines(10_000)).await;
    let before = ingest.peak_memory_kib();

    let answers = api.place_batch(&of_lines(400_000)).await;

    let accepted = answers.iter().filter(|answer| answer["status"] == 202).count();
    assert_eq!((answers.len(), accepted), (400_000, 20_000));
    let growth = ingest.peak_memory_kib().saturating_sub(before);
    assert!(growth < MAX_GROWTH_KIB, "{growth} KiB more");
}
