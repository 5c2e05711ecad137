use std::collections::HashMap;

use super::*;
use crate::telemetry::Health;

/// A group with one partition, whose leader is broker 1.
fn statistics(broker: &str, group: &str, partition: statistics::Partition) -> Statistics {
    let broker = statistics::Broker { nodeid: 1, state: broker.to_owned(), ..Default::default() };
    let topic = statistics::Topic {
        partitions: HashMap::from([(0, partition)]),
        ..statistics::Topic::default()
    };
    let (state, join_state) = (group.to_owned(), "steady".to_owned());
    Statistics {
        brokers: HashMap::from([("broker".to_owned(), broker)]),
        topics: HashMap::from([("orders".to_owned(), topic)]),
        cgrp: Some(statistics::ConsumerGroup { state, join_state, ..Default::default() }),
        ..Statistics::default()
    }
}

fn partition(next_offset: i64, end: i64) -> statistics::Partition {
    statistics::Partition {
        leader: 1,
        next_offset,
        hi_offset: end,
        ls_offset: end,
        ..Default::default()
    }
}

fn condition() -> (Health, Condition) {
    let health = Health::default();
    let condition = Condition::new("orders", GroupProtocol::Consumer, &health.register("orders"));
    (health, condition)
}

#[test]
fn a_member_is_ready_once_it_has_joined_with_or_without_partitions() {
    let (health, condition) = condition();
    assert_eq!(health.not_ready(), ["orders: starting"]);
    condition.observe(&statistics("UP", "wait-coord", partition(0, 0)), &[], Instant::now());
    assert_eq!(health.not_ready(), ["orders: starting"]);
    condition.observe(&statistics("UP", "up", partition(0, 0)), &[], Instant::now());
    assert_eq!(health.not_ready(), [""; 0]);
}

#[test]
fn a_member_of_the_broker_s_protocol_is_ready_without_a_partition() {
    let (health, condition) = condition();
    let mut statistics = statistics("UP", "up", partition(0, 0));
    for (stateage, complaints) in [(1000, 1), (3000, 0)] {
        let group = statistics.cgrp.as_mut().unwrap();
        (group.join_state, group.stateage) = ("init".to_owned(), stateage);
        condition.observe(&statistics, &[], Instant::now());
        assert_eq!(health.not_ready().len(), complaints);
    }
}

#[test]
fn a_partition_at_its_end_is_in_order_while_others_have_messages() {
    let (health, condition) = condition();
    condition.replaced("partition 0 stalled", Some(0));
    condition.joined();
    let at_end = statistics::Partition { fetchq_cnt: 500, ..partition(7, 7) };

    condition.observe(&statistics("UP", "up", at_end), &[0], Instant::now());

    assert_eq!(health.not_ready(), [""; 0]);
}

#[test]
fn a_stalled_partition_that_another_member_has_is_no_complaint() {
    let (health, condition) = condition();
    condition.replaced("partition 0 stalled", Some(0));
    condition.observe(&statistics("UP", "wait-coord", partition(7, 9)), &[], Instant::now());
    assert!(health.not_ready()[0].contains("makes no progress"), "{:?}", health.not_ready());

    condition.observe(&statistics("UP", "up", partition(7, 9)), &[], Instant::now());

    assert_eq!(health.not_ready(), [""; 0]);
}

#[test]
fn one_slow_answer_is_no_complaint_and_silence_of_seconds_is() {
    let (health, condition) = condition();
    condition.joined();
    let now = Instant::now();

    condition.set_unanswered(Some(now));
    assert_eq!((health.not_ready(), condition.is_healthy()), (Vec::new(), false));
    condition.set_unanswered(None);
    condition.set_unanswered(now.checked_sub(Duration::from_secs(5)));

    assert_eq!(health.not_ready(), ["orders: a broker does not answer"]);
    condition.set_unanswered(Some(now));
    assert!(
        condition.unreachable_for(now) >= Some(Duration::from_secs(5)),
        "the first failure counts"
    );
}

#[test]
fn a_new_client_is_healthy_once_two_statistics_have_shown_it() {
    let (_health, condition) = condition();
    condition.replaced("it reaches no broker, but a new client does", None);
    condition.joined();
    for confirmed in [false, true] {
        assert!(!condition.is_healthy(), "no statistics have shown it yet");

        condition.observe(&statistics("UP", "up", partition(7, 7)), &[0], Instant::now());

        assert_eq!(condition.is_healthy(), confirmed);
    }
}

#[test]
fn a_fault_counts_when_two_statistics_show_it() {
    let (health, condition) = condition();
    let start = Instant::now();
    condition.joined();
    for (number, complaints) in [(0, 0), (1, 1), (2, 1)] {
        let now = start + Duration::from_secs(number);
        assert_eq!(
            condition.observe(&statistics("DOWN", "up", partition(7, 7)), &[0], now),
            [0; 0]
        );
        assert_eq!(health.not_ready().len(), complaints, "{:?}", health.not_ready());
        assert_eq!(condition.unreachable_for(now), Some(Duration::from_secs(number)));
    }
    assert_eq!(condition.observe(&statistics("UP", "up", partition(7, 7)), &[0], start), [0]);
    assert_eq!((health.not_ready(), condition.unreachable_for(start)), (Vec::new(), None));
}

#[test]
fn a_refused_fetch_is_no_reason_for_a_new_client() {
    let (health, condition) = condition();
    condition.joined();
    for _ in 0..2 {
        condition.observe(&statistics("UP", "up", partition(7, -1)), &[0], Instant::now());
    }
    assert!(health.not_ready()[0].contains("refuses"), "{:?}", health.not_ready());
    assert_eq!(condition.unreachable_for(Instant::now()), None);
}

#[test]
fn a_failed_poll_counts_until_every_partition_is_fetched_again() {
    let (health, condition) = condition();
    condition.joined();
    let observe =
        |partition| condition.observe(&statistics("UP", "up", partition), &[0], Instant::now());
    condition
        .poll_failed(&KafkaError::MessageConsumption(RDKafkaErrorCode::BrokerTransportFailure));
    assert_eq!(health.not_ready(), [""; 0], "the error is of one connection");

    condition.poll_failed(&KafkaError::MessageConsumption(RDKafkaErrorCode::BadMessage));
    for _ in 0..5 {
        observe(partition(7, 9));
        assert_eq!(
            health.not_ready().len(),
            1,
            "the partition has a backlog and makes no progress"
        );
    }
    observe(partition(9, 9));
    observe(partition(9, 9));
    assert_eq!(health.not_ready(), [""; 0]);
}

#[test]
fn a_stalled_partition_counts_after_the_replacement_until_it_progresses() {
    let (health, condition) = condition();
    let observe =
        |partition| condition.observe(&statistics("UP", "up", partition), &[0], Instant::now());
    condition.joined();
    condition.replaced("partition 0 stalled", Some(0));
    condition.joined();
    for _ in 0..3 {
        observe(partition(7, 9));
        assert_eq!(health.not_ready(), ["orders: partition 0 makes no progress"]);
    }
    observe(partition(8, 9));
    assert_eq!(health.not_ready(), [""; 0]);
}
