//! Changes of brokers and topics while the roles run: partitions are added, topics are created
//! again, data is lost, addresses change.

use std::time::Duration;

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use stocklock::kafka::{client_config, delete_topics};

use crate::harness::{
    BrokerProxy, Database, PATIENCE, PrivateKafka, Role, Strategy, World, body, order_lines,
    place_all, random_orders, wait_for, wait_until,
};

const PROTOCOL: &str = "STOCKLOCK__KAFKA__GROUP_PROTOCOL";

/// Places orders of one unit of "a" each.
async fn place(ingest: &Role, orders: usize) {
    let bodies = vec![body(&order_lines(&[("a", 1)])); orders];
    assert_eq!(place_all(&ingest.http, &bodies, 8).await.len(), orders);
}

/// The sum of the lags that a role shows of a topic, or `None` if it shows none.
async fn lag(role: &Role, topic: &str) -> Option<f64> {
    let text = role.metrics().await;
    let lines = text
        .lines()
        .filter(|line| line.starts_with("stocklock_consumer_lag{") && line.contains(topic));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).reduce(std::ops::Add::add)
}

async fn shows_lag(role: &Role, topic: &str, expected: Option<f64>) {
    wait_for(async || match lag(role, topic).await {
        shown if shown == expected => Ok(()),
        shown => Err(format!("the lag is {shown:?}, not {expected:?}")),
    })
    .await;
}

/// Waits until a role has replaced its consumer.
async fn replaced(role: &Role, topic: &str) {
    role.shows("stocklock_consumer_recreations_total", topic, |consumers| consumers > 0.0).await;
}

async fn partitions_are_added(protocol: &str) {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 1000)]);
    let settings = [(PROTOCOL, protocol)];
    let (worker, _compensator) =
        (world.start_with("worker", &settings).await, world.start("compensator").await);
    let ingest = world.start("ingest").await;
    place(&ingest, 20).await;
    world.completed(20).await;

    let admin: AdminClient<DefaultClientContext> =
        client_config(&world.config.kafka).create().unwrap();
    let topic = &world.config.topics.orders;
    admin.create_partitions(&[NewPartitions::new(topic, 8)], &AdminOptions::new()).await.unwrap()
        [0]
    .as_ref()
    .unwrap();

    wait_until("the broker shows the partitions", async || {
        let metadata = admin.inner().fetch_metadata(Some(topic), PATIENCE).expect("metadata");
        metadata.topics().iter().all(|topic| topic.partitions().len() == 8)
    })
    .await;
    // A producer made now knows them at once.
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 60]).await).await;
    world.completed(80).await;
    shows_lag(&worker, topic, Some(0.0)).await;
    let ends = world.read_partitions(topic, 8);
    assert!(ends.iter().skip(4).any(|end| *end > 0), "no order is in a new partition: {ends:?}");
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn added_partitions_are_read_within_seconds() {
    partitions_are_added("classic").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn added_partitions_are_read_under_the_broker_s_protocol() {
    partitions_are_added("consumer").await;
}

/// The new topic has more messages than the old one when the clients notice: an offset of the old
/// one is within the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_anew_is_read_from_its_beginning() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topic = &world.config.topics.orders;
    world.import(&[("a", 1000)]);
    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    let ingest = world.start("ingest").await;
    place(&ingest, 20).await;
    world.completed(20).await;
    world.caught_up(&world.config.kafka.group_id, topic).await;

    delete_topics(&world.config.kafka, &world.config.topics).await.unwrap();
    wait_until("the topics are created", async || {
        world.cli(&["setup"]).stdout().contains("created")
    })
    .await;
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 100]).await).await;

    for role in [&worker, &compensator] {
        replaced(role, "").await;
        assert!(role.log().contains("the topic was replaced"), "{}", role.log());
    }
    world.completed(120).await;
    place(&ingest, 20).await;
    world.completed(140).await;
    tokio::join!(worker.ready(), compensator.ready());
    world.caught_up(&world.config.kafka.group_id, topic).await;
    world.verify();
    for role in [worker, compensator, ingest] {
        role.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_gone_makes_its_readers_unready_until_it_is_back() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 1000)]);
    let consumer = [(PROTOCOL, "consumer")];
    let (worker, compensator) =
        (world.start("worker").await, world.start_with("compensator", &consumer).await);

    delete_topics(&world.config.kafka, &world.config.topics).await.unwrap();
    tokio::join!(worker.complains("Unknown topic"), compensator.complains("Unknown topic"));
    shows_lag(&worker, &world.config.topics.orders, None).await;

    world.cli(&["setup"]).succeeds();
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 20]).await).await;
    world.completed(20).await;
    tokio::join!(worker.ready(), compensator.ready());
    worker.stop();
    compensator.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_become_final_whatever_the_broker_forgets() {
    let mut kafka = PrivateKafka::start();
    let world = World::on_brokers(Database::MySql, Strategy::Row, &kafka.address).await;
    let topic = &world.config.topics.orders;
    world.import(&[("a", 1000)]);
    let impatient = [("STOCKLOCK__INGEST__PENDING_AFTER", "3s")];
    let ingest = world.start_with("ingest", &impatient).await;
    let (worker, compensator) = (world.start("worker").await, world.start("compensator").await);
    place(&ingest, 100).await;
    world.completed(100).await;
    world.caught_up(&world.config.kafka.group_id, topic).await;

    // The partitions are shorter than the workers have read: offsets must go back.
    kafka.crash();
    kafka.lose_messages(topic);
    kafka.go_on();
    // No message shows it to the workers at first.
    world.caught_up(&world.config.kafka.group_id, topic).await;
    place(&ingest, 20).await;
    world.completed(120).await;
    world.caught_up(&world.config.kafka.group_id, topic).await;

    // All is gone, topics and groups.
    kafka.crash();
    place(&ingest, 20).await;
    kafka.lose_disk();
    kafka.go_on();
    world.cli(&["setup"]).succeeds();
    world.completed(140).await;
    place(&ingest, 20).await;
    world.completed(160).await;
    tokio::join!(worker.ready(), compensator.ready(), ingest.ready());
    world.verify();
    for role in [worker, compensator, ingest] {
        role.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_read_a_worker_is_not_ready() {
    let kafka = PrivateKafka::start();
    let world = World::on_brokers(Database::MySql, Strategy::Row, &kafka.address).await;
    let topic = &world.config.topics.orders;
    world.import(&[("a", 1000)]);
    let (worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    shows_lag(&worker, topic, Some(0.0)).await;

    kafka.deny_reading(topic);
    worker.complains("refuses fetches").await;
    assert!(worker.count("stocklock_poll_errors_total", topic).await > 0, "{}", worker.log());
    shows_lag(&worker, topic, None).await;
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 20]).await).await;

    kafka.allow_reading(topic);
    world.completed(20).await;
    worker.ready().await;
    shows_lag(&worker, topic, Some(0.0)).await;
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_back_under_another_address_is_found() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 1000)]);
    let proxy = BrokerProxy::before(&world.config.kafka.brokers).await;
    proxy.move_broker().await;
    let settings = [("STOCKLOCK__KAFKA__BROKERS", &*proxy.address)];
    let (worker, compensator) = (
        world.start_with("worker", &settings).await,
        world.start_with("compensator", &settings).await,
    );
    let ingest = world.start_with("ingest", &settings).await;
    place(&ingest, 20).await;
    world.completed(20).await;

    proxy.move_broker().await;
    place(&ingest, 20).await;
    worker.complains("orders:").await;
    world.completed(40).await;
    tokio::join!(worker.ready(), compensator.ready());
    world.verify();
    for role in [worker, compensator, ingest] {
        role.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_is_reported_once_and_not_for_ever() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topic = &world.config.topics.order_status;
    let proxy = BrokerProxy::before(&world.config.kafka.brokers).await;
    let compensator =
        world.start_with("compensator", &[("STOCKLOCK__KAFKA__BROKERS", &*proxy.address)]).await;
    shows_lag(&compensator, topic, Some(0.0)).await;

    proxy.cut();
    compensator.complains("order-status:").await;
    shows_lag(&compensator, topic, None).await;
    let before = compensator.log().lines().count();
    // How much the role logs in a time is what is tested.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let lines = compensator.log().lines().count() - before;
    assert!(lines < 10, "{lines} lines in ten seconds:\n{}", compensator.log());

    proxy.mend();
    compensator.ready().await;
    shows_lag(&compensator, topic, Some(0.0)).await;
    compensator.stop();
}

/// Some errors of a heartbeat end a librdkafka client for good. A new client works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_ends_by_a_fatal_error_is_replaced() {
    const INVALID_REQUEST: i16 = 42;
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("a", 1000)]);
    world.shorten_sessions().await;
    let proxy = BrokerProxy::before(&world.config.kafka.brokers).await;
    let settings = [("STOCKLOCK__KAFKA__BROKERS", &*proxy.address), (PROTOCOL, "consumer")];
    let (worker, _compensator) =
        (world.start_with("worker", &settings).await, world.start("compensator").await);
    let topic = &world.config.topics.orders;

    proxy.fail_heartbeat(INVALID_REQUEST);
    replaced(&worker, topic).await;
    assert!(proxy.has_failed_heartbeat(), "the fault never fired");
    world.produce_events(&world.save(&vec![order_lines(&[("a", 1)]); 20]).await).await;
    world.completed(20).await;
    worker.ready().await;
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_no_messages_are_no_lag() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topic = &world.config.topics.orders;
    let worker = world.start("worker").await;

    let mut config = client_config(&world.config.kafka);
    let producer: BaseProducer = config.set("transactional.id", topic).create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    for partition in 0..4 {
        producer
            .send(BaseRecord::<[u8], [u8]>::to(topic).partition(partition).payload(b"no event"))
            .unwrap();
    }
    producer.commit_transaction(PATIENCE).unwrap();

    wait_until("the messages are dead-lettered", async || {
        world.count_messages(&world.config.topics.orders_dlq) >= 4
    })
    .await;
    shows_lag(&worker, topic, Some(0.0)).await;
    worker.stop();
}

/// Workers are restarted one by one with another group protocol, there and back, under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_group_protocol_is_changed_by_a_rolling_restart() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("p0", 900), ("p1", 900), ("p2", 900)]);
    let (ingest, _compensator) = (world.start("ingest").await, world.start("compensator").await);
    let mut workers = vec![world.start("worker").await, world.start("worker").await];
    // Members of the classic protocol that own partitions keep others out.
    for worker in &workers {
        shows_lag(worker, &world.config.topics.orders, Some(0.0)).await;
    }

    let mut placed = 0;
    for protocol in ["consumer", "classic"] {
        for _ in 0..2 {
            workers.remove(0).stop();
            let bodies: Vec<_> = random_orders(placed, 50, 3).iter().map(body).collect();
            placed += place_all(&ingest.http, &bodies, 8).await.len() as u64;
            workers.push(world.start_with("worker", &[(PROTOCOL, protocol)]).await);
        }
    }

    world.settled().await;
    assert_eq!(placed, 200);
    world.verify();
}
