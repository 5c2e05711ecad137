use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::{BaseProducer, Producer as _},
};

use super::{client_config, producer::MAX_MESSAGE_BYTES};
use crate::config::{Kafka, Topics};

const TIMEOUT: Duration = Duration::from_secs(15);

/// What became of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicReport {
    pub name: String,
    pub created: bool,
    /// How an existing topic differs from what is configured; it is left as it is.
    pub differences: Vec<String>,
    /// How long it keeps messages, in milliseconds; -1: for ever.
    pub retention_ms: i64,
}

/// Creates the topics that do not exist. Never alters one that does.
pub async fn ensure_topics(kafka: &Kafka, topics: &Topics) -> KafkaResult<Vec<TopicReport>> {
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create()?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let retention_ms = i64::try_from(topics.retention.as_millis()).unwrap_or(i64::MAX);
    let retention = retention_ms.to_string();
    let ordinary = vec![("retention.ms", retention.as_str())];
    let dead_letters = vec![("retention.ms", retention.as_str()), ("max.message.bytes", MAX_MESSAGE_BYTES)];
    let settings = BTreeMap::from([
        (topics.orders.as_str(), ordinary.clone()),
        (&topics.order_status, ordinary),
        (&topics.orders_dlq, dead_letters.clone()),
        (&topics.order_status_dlq, dead_letters),
    ]);
    let wanted: Vec<_> = settings
        .iter()
        .map(|(name, settings)| {
            let topic = NewTopic::new(name, topics.partitions, TopicReplication::Fixed(topics.replication));
            settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        })
        .collect();
    let mut reports = Vec::new();
    for created in admin.create_topics(&wanted, &options).await? {
        let report = |name, created| TopicReport { name, created, differences: Vec::new(), retention_ms };
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
        let described = admin.describe_configs(&[ResourceSpecifier::Topic(&report.name)], &options).await?;
        let entries = described.into_iter().map(|resource| resource.map_err(KafkaError::AdminOp));
        let found = entries.collect::<KafkaResult<Vec<_>>>()?;
        for (key, configured) in &settings[report.name.as_str()] {
            let found = found.iter().flat_map(|resource| &resource.entries).find(|entry| entry.name == *key);
            let found = found.and_then(|entry| entry.value.as_deref()).unwrap_or("unknown");
            if *key == "retention.ms" {
                report.retention_ms = found.parse().unwrap_or(-1);
            }
            if found != *configured {
                report.differences.push(format!("{key}: {found}, configured {configured}"));
            }
        }
    }
    Ok(reports)
}

/// Deletes the topics, and all that is in them.
pub async fn delete_topics(kafka: &Kafka, topics: &Topics) -> KafkaResult<()> {
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create()?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let names = [&topics.orders, &topics.order_status, &topics.orders_dlq, &topics.order_status_dlq];
    admin.delete_topics(&names.map(String::as_str), &options).await?;
    Ok(())
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
