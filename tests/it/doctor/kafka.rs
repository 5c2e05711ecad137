//! Faults of topics, of the rights to them, and of groups.

use std::{collections::BTreeSet, process::Command};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
};
use stocklock::kafka::client_config;

use super::{Diagnosis, Fault, fault};
use crate::harness::{
    Database, PATIENCE, PrivateKafka, Strategy, World, wait_for, wait_for_within,
};

/// What can be wrong with the topic `orders`, with the setting that makes it so.
const OF_ORDERS: [(Fault, &str, &str); 7] = [
    (fault("topic_settings", "wrong", "cleanup.policy is compact"), "cleanup.policy", "compact"),
    (
        fault("topic_settings", "warning", "retention.bytes is 1000000"),
        "retention.bytes",
        "1000000",
    ),
    (fault("topic_settings", "wrong", "max.message.bytes is 16383"), "max.message.bytes", "16383"),
    (fault("topic_settings", "warning", "compression.type is zstd"), "compression.type", "zstd"),
    (
        fault("topic_settings", "warning", "unclean.leader.election.enable is true"),
        "unclean.leader.election.enable",
        "true",
    ),
    (
        fault("topic_settings", "warning", "message.timestamp.before.max.ms is 1000"),
        "message.timestamp.before.max.ms",
        "1000",
    ),
    (fault("retention", "warning", "keeps events for ever"), "retention.ms", "-1"),
];
const TOO_FEW_REPLICAS: Fault =
    fault("topic_settings", "wrong", "min.insync.replicas is 2 of 1 replicas");
const TOO_FEW_PARTITIONS: Fault =
    fault("partitions", "warning", "4 partitions, topics.partitions is 6");
const MISSING: Fault = fault("topic", "wrong", "the topic does not exist");

/// Runs a line of `kafka-configs.sh` by the class that the script runs.
fn run_kafka_configs(line: &str) {
    let arguments = line.strip_prefix("kafka-configs.sh ").expect(line);
    let home = std::env::var("STOCKLOCK_TEST_KAFKA_HOME").expect("Kafka's jars: run dev/test");
    let mut java = Command::new("java");
    java.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", &format!("{home}/*")]);
    java.arg("kafka.admin.ConfigCommand").args(arguments.split_whitespace());
    let ran = java.output().expect("java runs");
    let shown = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&shown));
}

/// Does what a line of `kafka-topics.sh --alter --topic NAME --partitions COUNT` says.
async fn run_kafka_topics(world: &World, line: &str) {
    let words: Vec<_> = line.split_whitespace().collect();
    let ["--alter", "--topic", topic, "--partitions", count] = words[words.len() - 5..] else {
        panic!("{line}")
    };
    let admin: AdminClient<DefaultClientContext> =
        client_config(&world.config.kafka).create().expect("an admin client");
    let more = NewPartitions::new(topic, count.parse().expect("a number"));
    let done = admin.create_partitions(&[more], &AdminOptions::new()).await.expect("the broker");
    assert!(done.iter().all(Result::is_ok), "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_a_topic_is_named_and_mended() {
    let mut world = World::new(Database::MySql, Strategy::Row).await;
    let topics = world.config.topics.clone();
    world.env.insert("STOCKLOCK__TOPICS__PARTITIONS".to_owned(), "6".to_owned());
    let settings = OF_ORDERS.map(|(_, setting, value)| (setting, value));
    world.configure_topic(&topics.orders, &settings).await;
    world.alter_topic(&topics.order_status, "min.insync.replicas", "2").await;
    world.delete_topic(&topics.orders_dlq).await;
    let set: Vec<_> =
        OF_ORDERS.iter().map(|(fault, ..)| *fault).chain([TOO_FEW_REPLICAS]).collect();
    let planted = [&set[..], &[TOO_FEW_PARTITIONS, MISSING]].concat();

    // The broker may need a moment to see the changes itself.
    let ill = wait_for(async || {
        let ill = Diagnosis::with_status(&world, &["--role", "setup"], 1);
        let unseen = planted.iter().find(|fault| ill.lines_if_any(fault).is_empty());
        unseen.map_or(Ok(ill), |fault| Err(format!("{fault:?}")))
    })
    .await;
    std::thread::scope(|scope| {
        for line in set.iter().flat_map(|fault| ill.lines(fault)) {
            scope.spawn(move || run_kafka_configs(&line));
        }
    });
    for line in ill.lines(&TOO_FEW_PARTITIONS) {
        run_kafka_topics(&world, &line).await;
    }
    assert_eq!(ill.lines(&MISSING).first().map(String::as_str), Some("stocklock setup"));
    world.cli(&["setup"]).succeeds();

    wait_for(async || {
        let well = Diagnosis::of(&world, &["--role", "setup"]);
        let left = planted.iter().find(|fault| !well.lines_if_any(fault).is_empty());
        left.map_or(Ok(()), |fault| Err(format!("{fault:?} is not mended")))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_right_that_brokers_withhold_is_named_and_granted() {
    let kafka = PrivateKafka::start();
    let world = World::on_brokers(Database::MySql, Strategy::Row, &kafka.address).await;
    Diagnosis::with_status(&world, &[], 0);
    let (topic, group) = (&world.config.topics.orders, &world.config.kafka.group_id);
    // Other users then have no right.
    let somebody = "--add --allow-principal User:somebody --operation Read";
    kafka.run_acls(&format!("{somebody} --topic {topic}"));
    kafka.run_acls(&format!("{somebody} --group {group}"));
    // A right to describe is what the looks behind it need.
    let faults = [
        fault("topic_rights", "wrong", "may not describe the topic"),
        fault("topic_settings", "warning", "its settings cannot be read"),
        fault("topic_rights", "wrong", "lacks the right Read"),
        fault("topic_rights", "wrong", "lacks the right Write"),
        fault("group", "wrong", "lacks the right Read"),
    ];

    // Brokers learn of a right a moment after it was granted.
    let mut named = BTreeSet::new();
    wait_for_within(2 * PATIENCE, async || {
        let report = Diagnosis::of(&world, &[]);
        let mut lines = BTreeSet::new();
        for fault in &faults {
            let of_fault = report.lines_if_any(fault);
            named.extend((!of_fault.is_empty()).then_some(fault.text));
            lines.extend(of_fault);
        }
        for line in &lines {
            assert!(line.starts_with("kafka-acls.sh --bootstrap-server "), "{line}");
            kafka.run_acls(line);
        }
        if lines.is_empty() && !named.is_empty() { Ok(()) } else { Err(format!("{lines:?}")) }
    })
    .await;

    assert_eq!(named, faults.iter().map(|fault| fault.text).collect());
    assert_eq!(world.count_messages(topic), 0, "a look writes nothing");
    assert_eq!(world.assignor(group), "", "a look joins no group");
    drop(world);
}
