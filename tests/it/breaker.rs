//! A lane of which too much would be set aside stops, rather than dead-letter a whole topic, and loses nothing by it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rdkafka::Message as _;
use stocklock::{
    domain::{Lines, OrderId, OrderStatus, ReportedStatus},
    wire::OrderStatusCodec,
};

use crate::harness::{
    Database, PATIENCE, Role, Strategy, World, header, on_each_database, order_lines,
};

/// What the breaker lets by of a lane's last 1,000 messages.
const MOST: usize = 200;
/// Refuses every order.
const REFUSE_ALL: &str = "CREATE TRIGGER refuses BEFORE INSERT ON order_outcomes FOR EACH ROW
                          SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not today'";

/// Waits until a worker's lane stands still, and says so.
async fn stands_still(worker: &Role) {
    let begun = Instant::now();
    loop {
        let stopped = worker.metric("stocklock_lanes_stopped", "").await;
        let ready = reqwest::get(format!("{}/readyz", worker.admin))
            .await
            .expect("an answer")
            .text()
            .await
            .expect("text");
        if stopped == 1.0 && ready.contains("halted: 200 dead letters among 1000 messages") {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{stopped} lanes stopped, {ready}:\n{}", worker.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let live = reqwest::get(format!("{}/livez", worker.admin)).await.expect("an answer");
    assert!(live.status().is_success(), "a restart by itself would only set more aside");
}

async fn readiness(role: &Role) -> String {
    reqwest::get(format!("{}/readyz", role.admin))
        .await
        .expect("an answer")
        .text()
        .await
        .expect("text")
}

/// Where the messages that were set aside came from, and how many letters there are.
fn letters(world: &World) -> (BTreeSet<(String, String)>, usize) {
    let letters = world.read_topic(&world.config.topics.orders_dlq);
    let origin =
        |name, letter| header(letter, &format!("stocklock.original.{name}")).expect("the origin");
    (
        letters
            .iter()
            .map(|letter| (origin("partition", letter), origin("offset", letter)))
            .collect(),
        letters.len(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_meets_nothing_but_poison_stops_and_goes_on_after_a_restart() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    world.import(&[("a", 100)]);
    let poison = (0..2 * MOST).map(|_| (OrderId::generate(), b"poison".to_vec()));
    world.produce(topic, poison.collect()).await;
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 50]).await).await;
    let _compensator = world.start("compensator").await;

    let worker = Role::spawn(&world.env, "worker", &[]);
    worker.listening().await;
    stands_still(&worker).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(letters(&world).1, MOST, "it stands still");
    stands_still(&worker).await;
    worker.stop();
    let left = world.uncommitted(group, topic);
    assert!(
        (200..=250).contains(&left),
        "{left} are left: 200 of the poison, and the orders behind it"
    );

    let worker = world.start("worker").await;
    world.settled().await;
    world.caught_up(group, topic).await;
    let (origins, count) = letters(&world);
    assert_eq!((origins.len(), count), (2 * MOST, 2 * MOST), "each once");
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (50, 50));
    assert_eq!(worker.metric("stocklock_lanes_stopped", "").await, 0.0);
    world.verify();
    worker.stop();
}

on_each_database! {
    async fn a_lane_whose_orders_are_all_refused_stops_and_goes_on_when_they_are_not(world: World) {
        let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
        world.import(&[("a", 1000)]);
        world.tamper_with_stock(REFUSE_ALL).await;
        world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 450]).await).await;
        let (worker, _compensator) = (Role::spawn(&world.env, "worker", &[]), world.start("compensator").await);
        worker.listening().await;
        stands_still(&worker).await;
        world.tamper_with_stock("DROP TRIGGER refuses").await;
        world.caught_up(group, topic).await;
        worker.ready().await;
        assert_eq!(worker.metric("stocklock_lanes_stopped", "").await, 0.0);
        assert_eq!(letters(&world).1, MOST);
        world.caught_up(&world.config.compensator.group_id, &world.config.topics.order_status).await;
        assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (250, 750));
        worker.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_stands_still_gives_its_partitions_up_at_once() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let topics = &world.config.topics;
    world.import(&[("a", 1000)]);
    world.tamper_with_stock(REFUSE_ALL).await;
    let orders = world.save(&vec![order_lines(&[("a", 1)]); 600]).await;
    world.produce_events(&orders).await;
    let (worker, _compensator) =
        (Role::spawn(&world.env, "worker", &[]), world.start("compensator").await);
    worker.listening().await;
    stands_still(&worker).await;
    let rival = Role::spawn(&world.env, "worker", &[]);
    rival.listening().await;
    let begun = Instant::now();
    while worker.count("stocklock_rebalances_total", "revoke").await == 0 {
        assert!(begun.elapsed() < PATIENCE, "it keeps its partitions:\n{}", worker.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = worker.log();
    let given_up =
        log.lines().find(|line| line.contains("partitions revoked")).expect("a line of it");
    assert!(given_up.contains("drained=true"), "{given_up}");
    stands_still(&worker).await;

    world.tamper_with_stock("DROP TRIGGER refuses").await;
    world.caught_up(&world.config.kafka.group_id, &topics.orders).await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;
    let letters = world.read_topic(&topics.orders_dlq);
    assert!(letters.len() <= 2 * MOST, "{} letters of two lanes", letters.len());
    let set_aside: BTreeSet<_> =
        letters.iter().filter_map(|letter| Some(letter.key()?.to_vec())).collect();
    let statuses: BTreeSet<_> =
        world.read_statuses().into_iter().map(|status| status.order_id).collect();
    for order in &orders {
        let id = order.order_id;
        assert!(
            statuses.contains(&id) || set_aside.contains(id.to_string().as_bytes()),
            "{id} is lost"
        );
    }
    assert_eq!(world.available("a"), 1000 - i64::try_from(statuses.len()).unwrap());
    worker.stop();
    rival.stop();
}

/// A failover may have lost commits of the order store: then the worker is right, and the store is
/// wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_stops_when_workers_report_orders_that_are_unknown() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topics = &world.config.topics;
    let ids: Vec<_> = (0..MOST + 50).map(|_| OrderId::generate()).collect();
    let codec = OrderStatusCodec::new().unwrap();
    let value = |order_id: &OrderId| {
        let (status, source, occurred_at) =
            (ReportedStatus::Completed, "worker".to_owned(), chrono::Utc::now());
        let status = OrderStatus { order_id: *order_id, status, source, occurred_at };
        (*order_id, codec.encode(&status))
    };
    world.produce(&topics.order_status, ids.iter().map(value).collect()).await;

    let compensator = Role::spawn(&world.env, "compensator", &[]);
    compensator.listening().await;
    stands_still(&compensator).await;

    assert!(readiness(&compensator).await.contains("messages of source \"worker\""));
    assert_eq!(world.count_messages(&topics.order_status_dlq), MOST);
    let lines: Lines = order_lines(&[("a", 1)]);
    world.save_as(ids.into_iter().map(|id| (id, lines.clone())).collect()).await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;
    assert_eq!(world.count_messages(&topics.order_status_dlq), MOST);
    assert_eq!(world.count_orders("COMPLETED").await, 50);
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_stops_at_a_partition_of_values_whose_schema_is_unknown() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let topics = &world.config.topics;
    let (key, value) = (OrderId::generate(), b"\xc3\x01a schema that nobody knows".to_vec());
    world.produce(&topics.order_status, vec![(key, value); MOST + 50]).await;

    let compensator = Role::spawn(&world.env, "compensator", &[]);
    compensator.listening().await;
    stands_still(&compensator).await;

    let ready = readiness(&compensator).await;
    assert!(
        ready.contains("messages of partition ") && ready.contains("unknown_schema"),
        "{ready}"
    );
    assert_eq!(world.count_messages(&topics.order_status_dlq), MOST);
}
