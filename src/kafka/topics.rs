use std::time::Duration;

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::{BaseProducer, Producer as _},
};

use super::client_config;
use crate::config::{Kafka, Topics};

const TIMEOUT: Duration = Duration::from_secs(15);

/// What became of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicReport {
    pub name: String,
    pub created: bool,
    /// How an existing topic differs from what is configured; it is left as it is.
    pub differences: Vec<String>,
}

/// Creates the topics that do not exist. Never alters one that does.
pub async fn ensure_topics(kafka: &Kafka, topics: &Topics) -> KafkaResult<Vec<TopicReport>> {
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create()?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let retention = topics.retention.as_millis().to_string();
    let names = [&topics.orders, &topics.order_status, &topics.orders_dlq, &topics.order_status_dlq];
    let wanted: Vec<_> = names
        .iter()
        .map(|name| {
            NewTopic::new(name, topics.partitions, TopicReplication::Fixed(topics.replication))
                .set("retention.ms", &retention)
        })
        .collect();
    let mut reports = Vec::new();
    for created in admin.create_topics(&wanted, &options).await? {
        let report = |name, created| TopicReport { name, created, differences: Vec::new() };
        match created {
            Ok(name) => reports.push(report(name, true)),
            Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => reports.push(report(name, false)),
            Err((_, code)) => return Err(KafkaError::AdminOp(code)),
        }
    }
    for report in reports.iter_mut().filter(|report| !report.created) {
        let partitions = count_partitions(kafka, &report.name).await?;
        if i32::try_from(partitions) != Ok(topics.partitions) {
            report.differences.push(format!("partitions: {partitions}, configured {}", topics.partitions));
        }
        let config = admin.describe_configs(&[ResourceSpecifier::Topic(&report.name)], &options).await?;
        let entries = config.into_iter().filter_map(Result::ok).flat_map(|resource| resource.entries);
        for entry in entries.filter(|entry| entry.name == "retention.ms") {
            let found = entry.value.unwrap_or_default();
            if found != retention {
                report.differences.push(format!("retention.ms: {found}, configured {retention}"));
            }
        }
    }
    Ok(reports)
}

async fn count_partitions(kafka: &Kafka, topic: &str) -> KafkaResult<usize> {
    let producer: BaseProducer = client_config(kafka).create()?;
    let topic = topic.to_owned();
    let counted = tokio::task::spawn_blocking(move || {
        // A topic that was created a moment ago may not be in the broker's metadata yet.
        for _ in 0..50 {
            let metadata = producer.client().fetch_metadata(Some(&topic), TIMEOUT)?;
            let partitions = metadata.topics().first().map_or(0, |t| t.partitions().len());
            if partitions > 0 {
                return Ok(partitions);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition))
    });
    counted.await.unwrap_or(Err(KafkaError::Canceled))
}
