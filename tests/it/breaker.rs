//! A lane halts if it would dead-letter too many of its messages. It does not dead-letter a whole
//! topic, and it loses no message.

use std::{collections::BTreeSet, time::Duration};

use rdkafka::Message as _;
use stocklock::{
    domain::{Lines, OrderId, OrderStatus, ReportedStatus},
    wire::OrderStatusCodec,
};

use crate::harness::{
    Database, Role, Strategy, World, header, http_get, on_each_database, order_lines, readiness,
    stays, wait_for,
};

/// The most dead letters that the breaker lets through among a lane's last 1,000 messages.
const MOST: usize = 200;
/// Refuses every order.
const REFUSE_ALL: &str = "CREATE TRIGGER refuses BEFORE INSERT ON order_outcomes FOR EACH ROW
                          SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not today'";

/// Waits until a role's lane is halted and the role reports it.
async fn is_halted(worker: &Role) {
    wait_for(async || {
        let stopped = worker.metric("stocklock_lanes_stopped", "").await;
        let (_, why) = readiness(worker).await;
        let is_halted =
            stopped == 1.0 && why.contains("halted: 200 dead letters among 1000 messages");
        if is_halted { Ok(()) } else { Err(format!("{stopped} lanes stopped, {why}")) }
    })
    .await;
    let live = http_get(format!("{}/livez", worker.admin)).await.expect("an answer");
    assert!(live.status().is_success(), "a restart would only dead-letter more messages");
}

/// The partition and the offset of each dead-lettered message, and the number of letters.
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
async fn a_lane_of_nothing_but_poison_halts_and_goes_on_after_a_restart() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    world.import(&[("a", 100)]);
    let poison = (0..2 * MOST).map(|_| (OrderId::generate(), b"poison".to_vec()));
    world.produce(topic, poison.collect()).await;
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 50]).await).await;
    let _compensator = world.start("compensator").await;

    let worker = Role::spawn(&world.env, "worker", &[]);
    worker.listening().await;
    is_halted(&worker).await;

    stays(Duration::from_secs(7), "the lane is halted", async || letters(&world).1 == MOST).await;
    is_halted(&worker).await;

    worker.stop();
    let left = world.uncommitted(group, topic);
    assert!(
        (200..=250).contains(&left),
        "{left} remain: 200 of the poison, and the orders behind it"
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

on_each_database!(a_lane_halts_while_all_its_orders_are_refused_and_then_goes_on,);

async fn a_lane_halts_while_all_its_orders_are_refused_and_then_goes_on(world: World) {
    let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    world.import(&[("a", 1000)]);
    world.tamper_with_stock(REFUSE_ALL).await;
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 450]).await).await;

    let (worker, _compensator) =
        (Role::spawn(&world.env, "worker", &[]), world.start("compensator").await);
    worker.listening().await;
    is_halted(&worker).await;

    world.tamper_with_stock("DROP TRIGGER refuses").await;
    world.caught_up(group, topic).await;
    worker.ready().await;

    assert_eq!(worker.metric("stocklock_lanes_stopped", "").await, 0.0);
    assert_eq!(letters(&world).1, MOST);
    world.caught_up(&world.config.compensator.group_id, &world.config.topics.order_status).await;
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (250, 750));
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_lane_gives_its_partitions_up_at_once() {
    let world = World::new(Database::MariaDb, Strategy::Row).await;
    let topics = &world.config.topics;
    world.import(&[("a", 1000)]);
    world.tamper_with_stock(REFUSE_ALL).await;
    let orders = world.save(&vec![order_lines(&[("a", 1)]); 600]).await;
    world.produce_events(&orders).await;
    let (worker, _compensator) =
        (Role::spawn(&world.env, "worker", &[]), world.start("compensator").await);
    worker.listening().await;
    is_halted(&worker).await;

    let rival = Role::spawn(&world.env, "worker", &[]);
    rival.listening().await;
    worker.shows("stocklock_rebalances_total", "revoke", |revocations| revocations > 0.0).await;

    let log = worker.log();
    let given_up =
        log.lines().find(|line| line.contains("partitions revoked")).expect("a line of it");
    assert!(given_up.contains("drained=true"), "{given_up}");
    is_halted(&worker).await;

    world.tamper_with_stock("DROP TRIGGER refuses").await;
    world.caught_up(&world.config.kafka.group_id, &topics.orders).await;
    world.caught_up(&world.config.compensator.group_id, &topics.order_status).await;
    let letters = world.read_topic(&topics.orders_dlq);
    assert!(letters.len() <= 2 * MOST, "{} letters of two lanes", letters.len());
    let dead_lettered: BTreeSet<_> =
        letters.iter().filter_map(|letter| Some(letter.key()?.to_vec())).collect();
    let statuses: BTreeSet<_> =
        world.read_statuses().into_iter().map(|status| status.order_id).collect();
    for order in &orders {
        let id = order.order_id;
        assert!(
            statuses.contains(&id) || dead_lettered.contains(id.to_string().as_bytes()),
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
        let status =
            OrderStatus { order_id: *order_id, status, source, occurred_at, reference: None };
        (*order_id, codec.encode(&status))
    };
    world.produce(&topics.order_status, ids.iter().map(value).collect()).await;

    let compensator = Role::spawn(&world.env, "compensator", &[]);
    compensator.listening().await;
    is_halted(&compensator).await;

    assert!(readiness(&compensator).await.1.contains("messages of source \"worker\""));
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
    is_halted(&compensator).await;

    let (_, ready) = readiness(&compensator).await;
    assert!(
        ready.contains("messages of partition ") && ready.contains("unknown_schema"),
        "{ready}"
    );
    assert_eq!(world.count_messages(&topics.order_status_dlq), MOST);
}
