//! An order that another system fails is released once, whatever message arrives first and however
//! often.

use rdkafka::Message as _;
use stocklock::{
    domain::{EventKind, OrderId, OrderState, OrderStatus, Reason, ReportedStatus, WORKER_SOURCE},
    store::OrderSummary,
};

use crate::harness::{
    Database, Strategy, World, deliver, header, lines, on_every_stack, order_lines, place_all,
    release, try_step,
};

const WORDS: &str = "card declined: “Überziehung”";

async fn order(world: &World, id: OrderId) -> OrderSummary {
    world.order_store().find(id).await.expect("the order store").expect("the order").summary
}

/// Fails the test unless the order failed in the reporter's words and all its units are available.
async fn check_released(world: &World, id: OrderId) {
    let order = order(world, id).await;
    assert_eq!((order.state, order.reason.as_deref()), (OrderState::Failed, Some(WORDS)));
    assert_eq!((world.available("a"), world.available("b")), (10, 10));
    world.verify();
}

fn wanted() -> stocklock::domain::Lines {
    order_lines(&[("b", 1), ("a", 2), ("b", 3)])
}

on_every_stack!(
    a_completed_order_that_fails_later_is_released_once,
    a_failure_that_comes_before_the_decision_leaves_the_stock_as_it_was,
    a_release_that_comes_before_its_order_makes_the_order_do_nothing,
    a_completion_that_meets_a_failed_order_releases_it,
);

async fn a_completed_order_that_fails_later_is_released_once(world: World) {
    world.import(&[("a", 10), ("b", 10)]);
    let (worker, compensator) =
        (world.worker(&World::metrics()), world.compensator(&World::metrics()));
    let placed = world.save(&[wanted()]).await;
    world.produce_events(&placed).await;
    world.replay_orders(&worker).await;
    world.replay_statuses(&compensator).await;
    assert_eq!(order(&world, placed[0].order_id).await.state, OrderState::Completed);
    assert_eq!((world.available("a"), world.available("b")), (8, 6));

    for _ in 0..2 {
        world.report_failed(placed[0].order_id, WORDS).await;
        world.replay_statuses(&compensator).await;
    }
    // The release comes in a batch with the order and its own repeats, then with all of it again.
    world.produce_events(&[release(&placed[0]), placed[0].clone(), release(&placed[0])]).await;
    for _ in 0..2 {
        world.replay_orders(&worker).await;
        world.replay_statuses(&compensator).await;
        check_released(&world, placed[0].order_id).await;
    }
}

async fn a_failure_that_comes_before_the_decision_leaves_the_stock_as_it_was(world: World) {
    world.import(&[("a", 10), ("b", 10)]);
    let (worker, compensator) =
        (world.worker(&World::metrics()), world.compensator(&World::metrics()));

    let placed = world.save(&[wanted()]).await;
    world.produce_events(&placed).await;
    world.report_failed(placed[0].order_id, WORDS).await;
    world.replay_statuses(&compensator).await;

    let kinds: Vec<_> = world.read_events().iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Placed, EventKind::Release]);

    // The worker comes to the order only now, and to its release in the same batch.
    world.replay_orders(&worker).await;

    world.replay_statuses(&compensator).await;
    check_released(&world, placed[0].order_id).await;
    world.replay_statuses(&compensator).await;
    world.replay_orders(&worker).await;
    check_released(&world, placed[0].order_id).await;
}

async fn a_release_that_comes_before_its_order_makes_the_order_do_nothing(world: World) {
    world.import(&[("a", 10), ("b", 10)]);
    let (worker, compensator) =
        (world.worker(&World::metrics()), world.compensator(&World::metrics()));

    let placed = world.save(&[wanted()]).await;
    world.report_failed(placed[0].order_id, WORDS).await;
    world.replay_statuses(&compensator).await;

    assert_eq!(deliver(&worker, &[release(&placed[0])]).await, 1);
    for _ in 0..2 {
        assert_eq!(deliver(&worker, &placed).await, 0);
        assert_eq!(deliver(&worker, &[placed[0].clone(), release(&placed[0])]).await, 0);
    }

    let of_worker: Vec<_> =
        world.read_statuses().into_iter().filter(OrderStatus::is_from_worker).collect();
    assert_eq!(of_worker.len(), 7, "one of each event");
    assert!(
        of_worker.iter().all(|status| status.status == ReportedStatus::Released),
        "{of_worker:?}"
    );

    world.replay_statuses(&compensator).await;
    check_released(&world, placed[0].order_id).await;
}

async fn a_completion_that_meets_a_failed_order_releases_it(world: World) {
    world.import(&[("a", 10), ("b", 10)]);
    let (worker, compensator) =
        (world.worker(&World::metrics()), world.compensator(&World::metrics()));
    let placed = world.save(&[wanted()]).await;
    assert_eq!(deliver(&worker, &placed).await, 1);

    // Somebody's failure overtakes our completion on its way to the compensator.
    let overtaken = world.read_topic(&world.config.topics.order_status);
    world.report_failed(placed[0].order_id, WORDS).await;
    let all = world.read_topic(&world.config.topics.order_status);
    let failure: Vec<_> =
        all.into_iter().filter(|m| !overtaken.iter().any(|o| o.payload() == m.payload())).collect();
    try_step(&compensator, &failure).await.expect("applied");
    compensator.relay.drain().await;

    let releases = world.read_events().len();
    try_step(&compensator, &overtaken).await.expect("applied");
    compensator.relay.drain().await;
    assert_eq!((releases, world.read_events().len()), (1, 2), "the completion releases it too");

    world.replay_orders(&worker).await;
    world.replay_statuses(&compensator).await;
    check_released(&world, placed[0].order_id).await;
}

/// The whole way through the processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reported_failure_brings_the_stock_back_through_the_running_roles() {
    let world = World::new(Database::MySql, Strategy::Redlock).await;
    world.import(&[("a", 10), ("b", 10)]);
    let all = world.start("all").await;
    let placed = place_all(&all.http, &vec![lines(&[("a", 1), ("b", 2)]); 4], 1).await;
    world.settled().await;
    assert_eq!((world.available("a"), world.available("b")), (6, 2));

    for _ in 0..2 {
        world.cli(&["order", "fail", &placed[1], "--reason", WORDS]).succeeds();
    }

    world.has_available(&[("a", 7), ("b", 4)]).await;
    assert_eq!(order(&world, placed[1].parse().unwrap()).await.reason.as_deref(), Some(WORDS));
    assert_eq!((world.count_orders("COMPLETED").await, world.count_orders("FAILED").await), (3, 1));
    world.verify();
    all.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_no_order_and_completions_of_no_worker_are_dead_lettered() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let placed = world.save(&[wanted(), wanted()]).await;
    let unknown = OrderId::generate();
    world.report(placed[0].order_id, ReportedStatus::Completed, "warehouse").await;
    world.report(unknown, ReportedStatus::Failed(Reason::parse(WORDS)), "payments").await;
    world.report(placed[1].order_id, ReportedStatus::Completed, WORKER_SOURCE).await;

    let compensator = world.start("compensator").await;
    world.caught_up(&world.config.compensator.group_id, &world.config.topics.order_status).await;

    assert_eq!(order(&world, placed[0].order_id).await.state, OrderState::Pending);
    assert_eq!(order(&world, placed[1].order_id).await.state, OrderState::Completed);
    let mut letters: Vec<_> = world
        .read_topic(&world.config.topics.order_status_dlq)
        .iter()
        .map(|letter| {
            let key = String::from_utf8_lossy(letter.key().expect("the key")).into_owned();
            (key, header(letter, "stocklock.error.class").expect("the class"))
        })
        .collect();
    letters.sort();
    let mut expected = [
        (placed[0].order_id.to_string(), "invalid".to_owned()),
        (unknown.to_string(), "unknown_order".to_owned()),
    ];
    expected.sort();
    assert_eq!(letters, expected);
    compensator.stop();
}
