//! Workers come and go under load: the partitions of one go to another, and no order is lost or
//! done twice.

use std::{collections::BTreeSet, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::{
    Database, Role, Strategy, World, body, on_two_stacks, order_lines, place_all, random_orders,
    stays, unchanged_for, wait_for, wait_until,
};

/// Waits until a worker has decided something itself.
async fn works(worker: &Role) {
    worker.shows("stocklock_orders_decided_total", "", |decided| decided > 0.0).await;
}

/// Waits until partitions of a worker were revoked.
async fn gave_up(worker: &Role) {
    worker.shows("stocklock_rebalances_total", "revoke", |revocations| revocations > 0.0).await;
}

/// Waits until a worker owns all partitions. The partitions of a killed worker come when its
/// session has expired.
async fn owns_all(worker: &Role) {
    wait_until("the worker owns all partitions", async || {
        let log = worker.log();
        let count = |what: &str| -> usize {
            let lists = log
                .lines()
                .filter(|line| line.contains(what))
                .filter_map(|line| line.split(['[', ']']).nth(1));
            lists.map(|list| list.split(',').filter(|id| !id.trim().is_empty()).count()).sum()
        };
        count("partitions assigned") - count("partitions revoked") == 4
    })
    .await;
}

/// Orders that are placed without a pause.
struct Load {
    over: CancellationToken,
    placing: JoinHandle<Vec<String>>,
}

impl Load {
    fn on(ingest: &Role) -> Self {
        let (over, url) = (CancellationToken::new(), ingest.http.clone());
        let placing = tokio::spawn({
            let over = over.clone();
            async move {
                let (mut acknowledged, mut seed) = (Vec::new(), 0);
                while !over.is_cancelled() {
                    let bodies: Vec<_> = random_orders(seed, 50, 3).iter().map(body).collect();
                    acknowledged.extend(place_all(&url, &bodies, 4).await);
                    seed += 1;
                }
                acknowledged
            }
        });
        Self { over, placing }
    }

    /// Ends the load. Fails the test unless each acknowledged order is decided once.
    async fn ends_well(self, world: &World) {
        self.over.cancel();
        let acknowledged = self.placing.await.unwrap();
        world.settled().await;
        let total = world.count_orders("COMPLETED").await + world.count_orders("FAILED").await;
        assert_eq!(total, i64::try_from(acknowledged.len()).unwrap());
        world.verify();
    }
}

on_two_stacks!(
    workers_that_come_and_go_under_load_lose_nothing_and_do_nothing_twice,
    workers_that_come_and_go_under_the_broker_s_protocol_lose_nothing,
    a_worker_that_was_frozen_loses_its_partitions_and_joins_again,
);

async fn workers_that_come_and_go_under_load_lose_nothing_and_do_nothing_twice(world: World) {
    let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    world.import(&[("p0", 900), ("p1", 900), ("p2", 900)]);
    let (ingest, _compensator) = (world.start("ingest").await, world.start("compensator").await);
    let (first, second) = (world.start("worker").await, world.start("worker").await);

    let load = Load::on(&ingest);
    tokio::join!(works(&first), works(&second));
    assert_eq!(world.assignor(group), "cooperative-sticky");

    let third = world.start("worker").await;
    works(&third).await;
    gave_up(&first).await;
    first.stop();
    third.kill();
    // The partitions of the killed worker come to the second once its session has expired.
    owns_all(&second).await;

    load.ends_well(&world).await;
    second.stop();
    assert_eq!(world.uncommitted(group, topic), 0, "a graceful stop commits what it did");
}

/// With KIP-848 the broker moves the partitions. Batches in flight are still finished before a
/// partition goes.
async fn workers_that_come_and_go_under_the_broker_s_protocol_lose_nothing(world: World) {
    let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    let protocol = [("STOCKLOCK__KAFKA__GROUP_PROTOCOL", "consumer")];
    world.import(&[("p0", 900), ("p1", 900), ("p2", 900)]);
    let (ingest, _compensator) =
        (world.start("ingest").await, world.start_with("compensator", &protocol).await);

    let first = world.start_with("worker", &protocol).await;
    let load = Load::on(&ingest);
    works(&first).await;

    let second = world.start_with("worker", &protocol).await;
    works(&second).await;
    gave_up(&first).await;
    assert_eq!(world.assignor(group), "", "the members chose an assignor");
    let log = first.log();
    let revoked: Vec<_> = log.lines().filter(|line| line.contains("partitions revoked")).collect();
    assert!(!revoked.is_empty(), "no partition was revoked");
    for line in revoked {
        assert!(line.contains("kind=\"revoke\"") && line.contains("drained=true"), "{line}");
    }

    first.stop();
    owns_all(&second).await;
    load.ends_well(&world).await;
    second.stop();
    assert_eq!(world.uncommitted(group, topic), 0, "a graceful stop commits what it did");
}

/// A worker that is frozen for longer than its session is out of the group, and notices when it
/// goes on.
async fn a_worker_that_was_frozen_loses_its_partitions_and_joins_again(world: World) {
    let impatient = [
        ("STOCKLOCK__KAFKA__SESSION_TIMEOUT", "6s"),
        ("STOCKLOCK__KAFKA__MAX_POLL_INTERVAL", "6s"),
    ];
    world.import(&[("p0", 900), ("p1", 900), ("p2", 900)]);
    let (ingest, _compensator) = (world.start("ingest").await, world.start("compensator").await);
    let (frozen, other) =
        (world.start_with("worker", &impatient).await, world.start("worker").await);

    let load = Load::on(&ingest);
    tokio::join!(works(&frozen), works(&other));

    frozen.freeze();
    owns_all(&other).await;
    frozen.thaw();

    frozen.shows("stocklock_rebalances_total", "lost", |losses| losses > 0.0).await;
    let before = frozen.metric("stocklock_orders_decided_total", "").await;
    frozen.shows("stocklock_orders_decided_total", "", |decided| decided > before).await;
    frozen.ready().await;
    assert!(frozen.log().contains("kind=\"lost\""), "{}", frozen.log());

    load.ends_well(&world).await;
    frozen.stop();
    other.stop();
    assert_eq!(world.uncommitted(&world.config.kafka.group_id, &world.config.topics.orders), 0);
}

/// Restarts one of two static members. Fails the test if the other sees a rebalance.
async fn restart_a_static_member(protocol: &str) {
    let world = World::new(Database::MySql, Strategy::Row).await;
    world.import(&[("p0", 900), ("p1", 900), ("p2", 900)]);
    let settings = |id| {
        [
            ("STOCKLOCK__KAFKA__GROUP_PROTOCOL", protocol),
            ("STOCKLOCK__KAFKA__SESSION_TIMEOUT", "45s"),
            ("STOCKLOCK__KAFKA__GROUP_INSTANCE_ID", id),
        ]
    };
    let (ingest, _compensator) = (world.start("ingest").await, world.start("compensator").await);
    let first = world.start_with("worker", &settings("first")).await;
    let second = world.start_with("worker", &settings("second")).await;

    let load = Load::on(&ingest);
    tokio::join!(works(&first), works(&second));
    gave_up(&first).await;
    let rebalances = async || {
        let mut counts = Vec::new();
        for kind in ["assign", "revoke", "lost"] {
            counts.push(first.count("stocklock_rebalances_total", kind).await);
        }
        counts
    };

    let before = unchanged_for(Duration::from_secs(5), &rebalances).await;

    second.stop();
    let second = world.start_with("worker", &settings("second")).await;
    works(&second).await;
    // A rebalance would come within a few heartbeats.
    stays(Duration::from_secs(15), "no rebalance", async || rebalances().await == before).await;

    load.ends_well(&world).await;
    first.stop();
    second.stop();
    assert_eq!(world.uncommitted(&world.config.kafka.group_id, &world.config.topics.orders), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_s_restart_causes_no_rebalance() {
    restart_a_static_member("classic").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_s_restart_under_the_broker_s_protocol_is_quiet() {
    restart_a_static_member("consumer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_instance_id_another_uses_ends_and_says_why() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let name = [("STOCKLOCK__KAFKA__GROUP_INSTANCE_ID", "the-one")];
    let first = world.start_with("worker", &name).await;
    let second = world.start_with("worker", &name).await;
    let log = first.ended(2).await;
    assert!(log.contains("consumer shut out of its group"), "{log}");
    owns_all(&second).await;

    // Under the broker's protocol the broker refuses the second worker.
    let broker_s = [
        name[0],
        ("STOCKLOCK__KAFKA__GROUP_PROTOCOL", "consumer"),
        ("STOCKLOCK__KAFKA__GROUP_ID", &world.env["STOCKLOCK__COMPENSATOR__GROUP_ID"]),
        ("STOCKLOCK__COMPENSATOR__GROUP_ID", &world.env["STOCKLOCK__KAFKA__GROUP_ID"]),
    ];
    let first = world.start_with("worker", &broker_s).await;
    let log = Role::spawn(&world.env, "worker", &broker_s).ended(2).await;
    assert!(log.contains("consumer shut out of its group"), "{log}");
    first.stop();
    second.stop();
}

/// The partitions whose lag a worker shows.
async fn shown_lags(worker: &Role, topic: &str) -> BTreeSet<String> {
    let text = worker.metrics().await;
    let of_topic = text
        .lines()
        .filter(|line| line.starts_with("stocklock_consumer_lag{") && line.contains(topic));
    of_topic
        .filter_map(|line| line.split("partition=\"").nth(1)?.split('"').next().map(str::to_owned))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lag_of_a_partition_is_shown_by_its_owner_alone() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let topic = &world.config.topics.orders;
    let comes_to = async |workers: &[&Role], expected: &[usize]| {
        wait_for(async || {
            let mut shown = Vec::new();
            for worker in workers {
                shown.push(shown_lags(worker, topic).await);
            }
            let all: BTreeSet<_> = shown.iter().flatten().collect();
            let is_right =
                all.len() == 4 && shown.iter().map(BTreeSet::len).eq(expected.iter().copied());
            if is_right { Ok(()) } else { Err(format!("{shown:?}, not {expected:?}")) }
        })
        .await;
    };

    let first = world.start("worker").await;
    comes_to(&[&first], &[4]).await;

    let second = world.start("worker").await;
    comes_to(&[&first, &second], &[2, 2]).await;
    first.stop();
    comes_to(&[&second], &[4]).await;
    second.stop();
}

/// Orders that are decided and not reported must come again: only a status brings the outcome to
/// the order store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_cannot_report_its_outcomes_keeps_its_offsets() {
    let world = World::new(Database::MySql, Strategy::Row).await;
    let (group, topic) = (&world.config.kafka.group_id, &world.config.topics.orders);
    world.import(&[("a", 100)]);
    let orders = world.save(&vec![order_lines(&[("a", 1)]); 10]).await;
    world.produce_events(&orders).await;
    // The broker makes no topic whose name collides with that of another one.
    let colliding = world.config.topics.order_status.replace('.', "_");

    let mute =
        Role::spawn(&world.env, "worker", &[("STOCKLOCK__TOPICS__ORDER_STATUS", &colliding)]);
    mute.listening().await;
    mute.shows("stocklock_retries_total", "kafka", |retries| retries > 0.0).await;

    assert!(world.available("a") < 100, "orders were decided");
    mute.stop();
    assert_eq!(world.uncommitted(group, topic), 10);

    let (_worker, _compensator) = (world.start("worker").await, world.start("compensator").await);
    world.settled().await;
    assert_eq!((world.count_orders("COMPLETED").await, world.available("a")), (10, 90));
    world.verify();
}
