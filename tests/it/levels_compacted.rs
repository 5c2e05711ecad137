//! The broker compacts the topic of levels for real: what is left of it is the truth.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    harness::{Api, World, lines, on_each_database, wait_for_within},
    levels::{Read, in_store, levels_are_those_of_the_store, read_levels, turn_on},
};

on_each_database!(a_reader_that_comes_after_compaction_ends_equal_to_the_store);

/// The broker's cleaner looks for work every 15 s.
const COMPACTION_DEADLINE: Duration = Duration::from_secs(120);
/// The broker closes a segment after this time, at the next record. It compacts closed segments.
const SEGMENT_MS: &str = "100";
const ROUNDS: i64 = 20;

/// All products in one request, each by one unit.
fn adjustments(round: i64, products: &[String]) -> Value {
    let adjust = |id: &String| json!({"product_id": id, "delta": -1, "reason": "count"});
    let adjustments: Vec<_> = products.iter().map(adjust).collect();
    json!({"request_id": format!("r-{round}"), "adjustments": adjustments})
}

/// Publishes all levels again and again, so that segments are closed, until fewer records are left
/// than were `written` before. Returns what a reader finds then.
///
/// The broker may have compacted the topic before: so the records that were left then do not count.
async fn compacted(world: &World, topic: &str, written: usize) -> Read {
    let look = async || {
        world.cli(&["stock", "publish"]).succeeds();
        let read = read_levels(world, topic);
        if read.records < written {
            Ok(read)
        } else {
            Err(format!("{} records are left; {written} were written before", read.records))
        }
    };
    wait_for_within(COMPACTION_DEADLINE, look).await
}

async fn a_reader_that_comes_after_compaction_ends_equal_to_the_store(mut world: World) {
    let topic = turn_on(&mut world);
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", SEGMENT_MS),
        ("min.cleanable.dirty.ratio", "0.01"),
    ];
    world.configure_topic(&topic, &settings).await;
    let products: Vec<_> = (0..20).map(|n| format!("p{n}")).collect();
    let stock: Vec<_> = products.iter().map(|id| (id.as_str(), 1_000)).collect();
    world.import(&stock);
    let all = world.start("all").await;
    let api = Api::of(&all);
    for round in 0..ROUNDS {
        api.adjust(&adjustments(round, &products)).await.is(200);
        let order: Vec<_> = products.iter().map(|id| (id.as_str(), 1)).collect();
        api.place_and_wait(&lines(&order), 30).await.is(201);
    }
    levels_are_those_of_the_store(&world, &topic).await;
    all.stop();
    let (early, written) = (read_levels(&world, &topic), world.count_messages(&topic));

    let late = compacted(&world, &topic, written).await;

    let expected = in_store(&world).await;
    assert_eq!(early.highest, expected);
    assert_eq!((&late.last, &late.highest), (&expected, &expected));
    assert!(expected.values().all(|level| level.available == 1_000 - 2 * ROUNDS));
}
