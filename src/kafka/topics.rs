use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::{BaseProducer, Producer as _},
};

use super::{client_config, producer::MAX_MESSAGE_BYTES, topic_settings::TopicSettings};
use crate::config::{KafkaConfig, TopicsConfig};

const TIMEOUT: Duration = Duration::from_secs(15);

/// A topic that stocklock uses. [`TOPICS`] lists all of them.
#[derive(Debug, Clone, Copy)]
pub struct TopicDefinition {
    /// The setting with the topic's name. [`crate::config::KEYS`] has its default.
    pub setting: &'static str,
    /// The key of its messages.
    pub key: &'static str,
    /// The value of its messages.
    pub value: &'static str,
    /// The roles and systems that produce to it.
    pub producers: &'static str,
    /// The roles and systems that consume it.
    pub consumers: &'static str,
    /// Whether its messages are dead letters, which may be larger than the messages themselves.
    has_dead_letters: bool,
    name: fn(&TopicsConfig) -> &str,
}

/// The list of topics. `setup` creates them, and the reference of topics is written from it. A
/// topic that is added here also needs a field in [`TopicsConfig`] and its setting.
pub const TOPICS: [TopicDefinition; 4] = [
    TopicDefinition {
        setting: "topics.orders",
        key: "the order id",
        value: "`schemas/order_event.avsc`: an order placed, or an order to release",
        producers: "ingest and the compensator",
        consumers: "the workers",
        has_dead_letters: false,
        name: |topics| &topics.orders,
    },
    TopicDefinition {
        setting: "topics.order_status",
        key: "the order id",
        value: "`schemas/order_status.avsc`: what became of an order",
        producers: "the workers, and any system with the right to write",
        consumers: "the compensators, and any system",
        has_dead_letters: false,
        name: |topics| &topics.order_status,
    },
    TopicDefinition {
        setting: "topics.orders_dlq",
        key: "as found",
        value: "the bytes as found on the orders topic, with headers that say why and from where",
        producers: "the workers",
        consumers: "operators",
        has_dead_letters: true,
        name: |topics| &topics.orders_dlq,
    },
    TopicDefinition {
        setting: "topics.order_status_dlq",
        key: "as found",
        value: "the bytes as found on the status topic, with headers that say why and from where",
        producers: "the compensators",
        consumers: "operators",
        has_dead_letters: true,
        name: |topics| &topics.order_status_dlq,
    },
];

impl TopicDefinition {
    /// The topic's configured name.
    pub fn name<'c>(&self, topics: &'c TopicsConfig) -> &'c str {
        (self.name)(topics)
    }
}

/// The configured names of all topics.
pub(crate) fn topic_names(topics: &TopicsConfig) -> [&str; TOPICS.len()] {
    TOPICS.map(|topic| topic.name(topics))
}

/// What became of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicReport {
    pub(crate) name: String,
    pub(crate) created: bool,
    /// How an existing topic differs from what is configured; it is left as it is.
    pub(crate) differences: Vec<String>,
    /// What is wrong with its settings, the broker's defaults included, and what to do: a sentence
    /// each.
    pub(crate) problems: Vec<String>,
    /// How long it keeps messages, in milliseconds; -1: for ever.
    pub(crate) retention_ms: i64,
}

/// Creates the topics that do not exist. Never alters one that does.
pub(crate) async fn ensure_topics(
    kafka: &KafkaConfig,
    topics: &TopicsConfig,
) -> KafkaResult<Vec<TopicReport>> {
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create()?;
    let options =
        AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let retention_ms = i64::try_from(topics.retention.as_millis()).unwrap_or(i64::MAX);
    let retention = retention_ms.to_string();
    let settings: BTreeMap<_, _> = TOPICS
        .iter()
        .map(|topic| {
            let mut settings = vec![("retention.ms", retention.as_str())];
            if topic.has_dead_letters {
                settings.push(("max.message.bytes", MAX_MESSAGE_BYTES));
            }
            (topic.name(topics), settings)
        })
        .collect();
    let wanted: Vec<_> = settings
        .iter()
        .map(|(name, settings)| {
            let topic =
                NewTopic::new(name, topics.partitions, TopicReplication::Fixed(topics.replication));
            settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        })
        .collect();
    let mut reports = Vec::new();
    for created in admin.create_topics(&wanted, &options).await? {
        let report = |name, created| TopicReport {
            name,
            created,
            differences: Vec::new(),
            problems: Vec::new(),
            retention_ms,
        };
        match created {
            Ok(name) => reports.push(report(name, true)),
            Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => reports.push(report(name, false)),
            Err((_, code)) => return Err(KafkaError::AdminOp(code)),
        }
    }
    let names: Vec<_> = reports.iter().map(|report| report.name.clone()).collect();
    let layouts = layouts(kafka, names.clone()).await?;
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let unknown = TopicSettings::default();
    let described = TopicSettings::describe(&admin, &names, TIMEOUT).await;
    for (report, layout) in reports.iter_mut().zip(layouts) {
        if !report.created && i32::try_from(layout.partitions) != Ok(topics.partitions) {
            report.differences.push(format!(
                "partitions: {}, configured {}",
                layout.partitions, topics.partitions
            ));
        }
        match &described {
            Ok(described) => {
                let found = described.get(&report.name).unwrap_or(&unknown);
                report.problems = found.problems(layout.replicas);
                compare(report, found, &settings[report.name.as_str()]);
            }
            Err(error) => {
                report.problems.push(format!(
                    "its settings cannot be read ({error}); allow setup DescribeConfigs"
                ));
            }
        }
    }
    Ok(reports)
}

/// Reports how the settings of a topic that existed differ from what is configured.
fn compare(report: &mut TopicReport, found: &TopicSettings, settings: &[(&str, &str)]) {
    if report.created {
        return;
    }
    for (key, configured) in settings {
        let found = found.get(key).unwrap_or("unknown");
        if *key == "retention.ms" {
            report.retention_ms = found.parse().unwrap_or(-1);
        }
        if found != *configured {
            report.differences.push(format!("{key}: {found}, configured {configured}"));
        }
    }
}

/// Deletes the topics, and all that is in them.
pub async fn delete_topics(kafka: &KafkaConfig, topics: &TopicsConfig) -> KafkaResult<()> {
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create()?;
    let options =
        AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    admin.delete_topics(&topic_names(topics), &options).await?;
    Ok(())
}

/// How a topic is spread over the brokers.
struct Layout {
    partitions: usize,
    /// Of the partition that has the fewest.
    replicas: usize,
}

/// Asks how each of these topics is spread.
async fn layouts(kafka: &KafkaConfig, topics: Vec<String>) -> KafkaResult<Vec<Layout>> {
    let producer: BaseProducer = client_config(kafka).create()?;
    let asked = tokio::task::spawn_blocking(move || {
        topics.iter().map(|topic| layout(&producer, topic)).collect()
    });
    asked.await.unwrap_or(Err(KafkaError::Canceled))
}

fn layout(producer: &BaseProducer, topic: &str) -> KafkaResult<Layout> {
    // A topic that was created a moment ago may not be in the broker's metadata yet.
    for _ in 0..50 {
        let metadata = producer.client().fetch_metadata(Some(topic), TIMEOUT)?;
        let partitions = metadata.topics().first().map_or(&[][..], |t| t.partitions());
        if let Some(replicas) = partitions.iter().map(|partition| partition.replicas().len()).min()
        {
            return Ok(Layout { partitions: partitions.len(), replicas });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition))
}
