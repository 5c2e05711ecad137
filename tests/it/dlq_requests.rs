//! `stocklock dlq` and the letters of requests: a dry run says what each would do, and it does so.

use std::collections::BTreeMap;

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    adjustments_topic::{self, configured, produce},
    harness::{World, lines, on_each_database},
    intake::{Request, order, request, taken, taking_orders},
};

on_each_database!(
    a_dry_run_says_what_letters_of_order_requests_would_do,
    a_dry_run_says_what_letters_of_adjustments_would_do,
    a_replayed_adjustment_is_as_old_as_its_first_message,
);

/// How many letters have each verdict, by a dry run.
fn verdicts(world: &World) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for letter in dry_run(world) {
        *found.entry(text(&letter["now"]["verdict"])).or_insert(0) += 1;
    }
    found
}

fn dry_run(world: &World) -> Vec<Value> {
    let args = ["--output", "json", "dlq", "replay", "--all", "--dry-run"];
    let told = world.cli(&args).succeeds().stdout();
    let told = told.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    told.filter(|line: &Value| line["letter"].is_string()).collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn expected(verdicts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    verdicts.iter().map(|(verdict, count)| ((*verdict).to_owned(), *count)).collect()
}

async fn a_dry_run_says_what_letters_of_order_requests_would_do(world: World) {
    let world = taking_orders(world);
    world.import(&[("a", 9)]);
    let id = Uuid::now_v7().to_string();
    let of_id = |reference: &str| {
        let mut order = order(reference);
        order["order_id"] = json!(id);
        Request::of(order)
    };
    let old = Request::of(lines(&[("late", 1)])).made_ago(TimeDelta::days(60));
    let all = world.start("all").await;
    let records = [
        of_id("first"),
        of_id("other content"),
        Request::of("{"),
        Request::of(lines(&[("late", 2)])),
        Request::of(lines(&[("never", 2)])),
        old,
    ];
    request(&world, &records, Some(0)).await;
    taken(&world).await;
    world.import(&[("late", 5)]);

    let before = verdicts(&world);
    world.cli(&["dlq", "replay", "--all"]).succeeds();
    taken(&world).await;
    world.settled().await;
    let placed = dry_run(&world).iter().any(|letter| {
        letter["now"]["verdict"] == "changes nothing"
            && text(&letter["now"]["text"]).ends_with("placed already: COMPLETED")
    });

    assert_eq!(before, expected(&[("acts", 1), ("dead letter again", 4)]));
    assert!(placed, "the replayed letter is known as done");
    assert_eq!((world.available("late"), world.count_orders("COMPLETED").await), (3, 2));
    world.verify();
    all.stop();
}

async fn a_dry_run_says_what_letters_of_adjustments_would_do(world: World) {
    let world = configured(world);
    world.import(&[("a", 5)]);
    let worker = world.start("worker").await;
    let adjust = adjustments_topic::request;
    let values =
        [adjust("less", "a", -7), adjust("least", "a", -50), adjust("new", "late", 1), b"{".into()];
    produce(&world, &values, None);
    adjustments_topic::caught_up(&world).await;
    world.import(&[("a", 8), ("late", 0)]);

    let before = verdicts(&world);
    world.cli(&["dlq", "replay", "--all"]).succeeds();
    adjustments_topic::caught_up(&world).await;
    let after = verdicts(&world);

    assert_eq!(before, expected(&[("acts", 2), ("dead letter again", 2)]));
    assert_eq!((world.available("a"), world.available("late")), (1, 1));
    assert_eq!(after["changes nothing"], 2, "{after:?}");
    assert!(!after.contains_key("acts"), "{after:?}");
    world.verify();
    worker.stop();
}

/// Its id may be forgotten, although the message of the replay is new.
async fn a_replayed_adjustment_is_as_old_as_its_first_message(world: World) {
    let world = configured(world);
    world.import(&[("a", 5)]);
    let old = (Utc::now() - TimeDelta::days(91)).timestamp_millis();
    let worker = world.start("worker").await;
    produce(&world, &[adjustments_topic::request("r", "a", 1)], Some(old));
    adjustments_topic::caught_up(&world).await;

    let before = dry_run(&world);
    world.cli(&["dlq", "replay", "--all"]).succeeds();
    adjustments_topic::caught_up(&world).await;

    assert_eq!(before.len(), 1);
    assert!(text(&before[0]["now"]["text"]).starts_with("expired: "), "{before:?}");
    assert_eq!(world.available("a"), 5, "the request was not done");
    assert_eq!(dry_run(&world).len(), 2, "the replayed letter came back");
    world.verify();
    worker.stop();
}
