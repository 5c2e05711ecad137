//! Orders beyond the horizon of the ledger: their outcomes may be purged, so no role decides or
//! releases them.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use rdkafka::Message as _;
use stocklock::domain::{OrderId, OrderState, ReportedStatus, WORKER_SOURCE};

use crate::harness::{
    Database, Strategy, World, aged, header, made_ago, on_two_stacks, order_lines, release,
    wait_for,
};

/// The order and the error's class of each dead letter, in the order of the ids.
fn letters(world: &World, topic: &str) -> Vec<(OrderId, String)> {
    let mut letters: Vec<_> = world
        .read_topic(topic)
        .iter()
        .map(|letter| {
            let key = String::from_utf8_lossy(letter.key().expect("the key")).into_owned();
            (
                key.parse().expect("an order id"),
                header(letter, "stocklock.error.class").expect("the class"),
            )
        })
        .collect();
    letters.sort();
    letters
}

async fn state(world: &World, id: OrderId) -> OrderState {
    world.order_store().find(id).await.expect("the order store").expect("the order").summary.state
}

on_two_stacks!(an_event_beyond_the_horizon_is_dead_lettered_and_never_decided,);

async fn an_event_beyond_the_horizon_is_dead_lettered_and_never_decided(world: World) {
    let topics = &world.config.topics;
    world.import(&[("a", 10)]);
    // Ten minutes beyond the horizon nothing is purged yet.
    let just_expired =
        [10, 20].map(|minutes| made_ago(TimeDelta::days(30) + TimeDelta::minutes(minutes)));
    let ids = [aged(-2), aged(0), aged(29), just_expired[0], just_expired[1], aged(4000)];
    let saved = world.save_as(ids.map(|id| (id, order_lines(&[("a", 1)]))).to_vec()).await;
    let [ahead, now, within, expired, released, ancient] =
        [0, 1, 2, 3, 4, 5].map(|index: usize| saved[index].order_id);
    let mut events = saved.clone();
    // A release alone would record that its order is not to be decided.
    events[4] = release(&saved[4]);
    world.produce_events(&events).await;

    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    world.caught_up(&world.config.kafka.group_id, &topics.orders).await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;

    let mut expected =
        [(ahead, "invalid"), (expired, "expired"), (released, "expired"), (ancient, "expired")]
            .map(|(id, c)| (id, c.to_owned()));
    expected.sort();
    assert_eq!(letters(&world, &topics.orders_dlq), expected);
    assert_eq!(
        (world.count_orders("COMPLETED").await, world.count_orders("PENDING").await),
        (2, 4)
    );
    assert_eq!(
        (state(&world, now).await, state(&world, within).await),
        (OrderState::Completed, OrderState::Completed)
    );
    let snapshot = world.stock_store(&World::metrics()).snapshot().await.expect("a snapshot");
    assert_eq!((snapshot.outcomes, world.available("a")), (2, 8));
    worker.stop();
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completed_order_fails_only_while_its_stock_can_be_released() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let compensator = world.start("compensator").await;
    let (group, topic) = (&world.config.compensator.group_id, &world.config.topics.order_status);
    let saved = world
        .save_as([28, 30, 31].map(|days| (aged(days), order_lines(&[("a", 1)]))).to_vec())
        .await;
    let [in_time, too_late, pending] = [0, 1, 2].map(|index: usize| saved[index].order_id);

    for id in [in_time, too_late] {
        world.report(id, ReportedStatus::Completed, WORKER_SOURCE).await;
    }
    world.caught_up(group, topic).await;
    for id in [in_time, too_late, pending] {
        world.report_failed(id, "payment declined").await;
    }
    world.caught_up(group, topic).await;
    compensator.stop();

    let states =
        [state(&world, in_time).await, state(&world, too_late).await, state(&world, pending).await];
    assert_eq!(states, [OrderState::Failed, OrderState::Completed, OrderState::Failed]);
    let mut events: Vec<_> = world.read_events().iter().map(|event| event.order_id).collect();
    events.dedup();
    assert_eq!(events, [in_time], "the release of the oldest would be a dead letter");
    let owed = world
        .order_store()
        .find_owed_releases(&[in_time, too_late, pending])
        .await
        .expect("the order store");
    assert_eq!(owed.into_keys().collect::<BTreeSet<_>>(), BTreeSet::from([pending, in_time]));
    assert_eq!(
        letters(&world, &world.config.topics.order_status_dlq),
        [(too_late, "expired".to_owned())]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setup_warns_of_a_retention_longer_than_events_can_be_decided() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let unchanged = world.cli(&["setup"]).succeeds().stderr();
    // The database of the tests is not durable.
    let is_of_store = |line: &str| {
        ["WARNING: order_store", "WARNING: stock_store"].iter().any(|text| line.contains(text))
    };
    let warnings = unchanged.lines().filter(|line| line.contains("WARNING"));
    assert!(warnings.clone().all(is_of_store), "{unchanged}");

    for (retention_ms, kept) in [("3456000000", "for 1month 9days"), ("-1", "for ever")] {
        world.alter_topic(&world.config.topics.orders, "retention.ms", retention_ms).await;
        // The broker may need a moment to see the change itself.
        let warned = wait_for(async || {
            let warned = world.cli(&["--output", "json", "setup"]).succeeds();
            let is_seen = warned.stdout().contains(&format!("retention.ms: {retention_ms},"));
            if is_seen { Ok(warned) } else { Err(warned.stdout()) }
        })
        .await;
        let warning = warned.json()["warnings"][0].as_str().expect("a warning").to_owned();
        assert!(warning.contains(kept) && warning.contains("retention.outcomes"), "{warning}");
        let text = warned.stderr();
        assert!(text.lines().any(|line| line == format!("WARNING: {warning}")), "{text}");
    }
}
