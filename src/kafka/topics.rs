use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::{BaseProducer, Producer as _},
};

use super::{client_config, producer::MAX_MESSAGE_BYTES, topic_settings::TopicSettings};
use crate::config::{KafkaConfig, TopicsConfig};

/// How long the brokers may take to answer a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a broker is asked for a topic that was created a moment ago, and the time between.
const MAX_LAYOUT_ATTEMPTS: u32 = 50;
const LAYOUT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A topic of stocklock. [`TOPICS`] lists all of them.
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

/// The list of topics. `setup` creates these topics, and producers fit their batches to them. A
/// topic that is added here also needs a setting and a field of [`TopicsConfig`].
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
    pub(crate) fn name<'c>(&self, topics: &'c TopicsConfig) -> &'c str {
        (self.name)(topics)
    }
}

/// The configured names of all topics.
pub(crate) fn topic_names(topics: &TopicsConfig) -> [&str; TOPICS.len()] {
    TOPICS.map(|topic| topic.name(topics))
}

/// What `setup` found out about a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicReport {
    pub(crate) name: String,
    pub(crate) created: bool,
    /// How an existing topic differs from the configuration. `setup` does not alter it.
    pub(crate) differences: Vec<String>,
    /// What is wrong with its settings, the broker's defaults included, and how to mend it. One
    /// sentence for each problem.
    pub(crate) problems: Vec<String>,
    /// How long it keeps messages, milliseconds. -1 is for ever.
    pub(crate) retention_ms: i64,
}

/// Creates the topics that do not exist, and reports about all of them. Never alters a topic that
/// exists.
///
/// Fails if no broker answers within 15 s, or if a topic cannot be created. If the settings of
/// topics cannot be read, the reports say so.
pub(crate) async fn ensure_topics(
    kafka: &KafkaConfig,
    topics: &TopicsConfig,
) -> KafkaResult<Vec<TopicReport>> {
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create()?;
    let options = AdminOptions::new()
        .operation_timeout(Some(ANSWER_TIMEOUT))
        .request_timeout(Some(ANSWER_TIMEOUT));
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
        let (name, created) = match created {
            Ok(name) => (name, true),
            Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => (name, false),
            Err((_, code)) => return Err(KafkaError::AdminOp(code)),
        };
        let (differences, problems) = (Vec::new(), Vec::new());
        reports.push(TopicReport { name, created, differences, problems, retention_ms });
    }
    let names: Vec<_> = reports.iter().map(|report| report.name.clone()).collect();
    let layouts = layouts(kafka, names.clone()).await?;
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let unknown = TopicSettings::default();
    let described = TopicSettings::describe(&admin, &names, ANSWER_TIMEOUT).await;
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
                    "its settings cannot be read ({error}): grant setup DescribeConfigs"
                ));
            }
        }
    }
    Ok(reports)
}

/// Reports how the settings of an existing topic differ from the configured ones.
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

/// Deletes all topics of the configuration with their messages. Ignores failures of single topics,
/// such as an absent one. Fails if no broker answers.
pub async fn delete_topics(kafka: &KafkaConfig, topics: &TopicsConfig) -> KafkaResult<()> {
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create()?;
    let options = AdminOptions::new()
        .operation_timeout(Some(ANSWER_TIMEOUT))
        .request_timeout(Some(ANSWER_TIMEOUT));
    admin.delete_topics(&topic_names(topics), &options).await?;
    Ok(())
}

/// How a topic is spread over the brokers.
struct Layout {
    partitions: usize,
    /// Replicas of the partition that has the fewest.
    replicas: usize,
}

/// Asks a broker for the layout of each topic.
async fn layouts(kafka: &KafkaConfig, topics: Vec<String>) -> KafkaResult<Vec<Layout>> {
    let producer: BaseProducer = client_config(kafka).create()?;
    let asked = tokio::task::spawn_blocking(move || {
        topics.iter().map(|topic| layout(&producer, topic)).collect()
    });
    asked.await.unwrap_or(Err(KafkaError::Canceled))
}

/// Asks a broker for the layout of a topic. Blocks; fails if the topic is still unknown after 5 s.
fn layout(producer: &BaseProducer, topic: &str) -> KafkaResult<Layout> {
    // A topic that was created a moment ago may not be in the broker's metadata yet.
    for _ in 0..MAX_LAYOUT_ATTEMPTS {
        let metadata = producer.client().fetch_metadata(Some(topic), ANSWER_TIMEOUT)?;
        let partitions = metadata.topics().first().map_or(&[][..], |t| t.partitions());
        if let Some(replicas) = partitions.iter().map(|partition| partition.replicas().len()).min()
        {
            return Ok(Layout { partitions: partitions.len(), replicas });
        }
        std::thread::sleep(LAYOUT_RETRY_DELAY);
    }
    Err(KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition))
}
