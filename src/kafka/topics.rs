use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    admin::{AdminOptions, NewTopic, TopicReplication},
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use super::{
    client_config,
    plain::{self, PlainCallbacks},
    producer::MAX_MESSAGE_BYTES,
    token::Tokens,
    topic_settings::TopicSettings,
};
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
    pub(super) kind: Kind,
    name: fn(&TopicsConfig) -> Option<&str>,
}

/// What a topic keeps. Its settings depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Messages, for `topics.retention`.
    Messages,
    /// Dead letters, which may be larger than the messages themselves.
    DeadLetters,
    /// The last message of each key, for ever.
    Compacted,
}

/// The list of topics. `setup` creates these topics, and producers fit their batches to them. A
/// topic that is added here also needs a setting and a field of [`TopicsConfig`].
pub const TOPICS: [TopicDefinition; 9] = [
    TopicDefinition {
        setting: "topics.orders",
        key: "the order id",
        value: "`schemas/order_event.avsc`: an order placed, or an order to release",
        producers: "ingest and the compensator",
        consumers: "the workers",
        kind: Kind::Messages,
        name: |topics| Some(&topics.orders),
    },
    TopicDefinition {
        setting: "topics.order_status",
        key: "the order id",
        value: "`schemas/order_status.avsc`: what became of an order",
        producers: "the workers, and any system with the right to write",
        consumers: "the compensators, and any system",
        kind: Kind::Messages,
        name: |topics| Some(&topics.order_status),
    },
    TopicDefinition {
        setting: "topics.orders_dlq",
        key: "as found",
        value: "the bytes as found on the orders topic, with headers that say why and from where",
        producers: "the workers",
        consumers: "operators",
        kind: Kind::DeadLetters,
        name: |topics| Some(&topics.orders_dlq),
    },
    TopicDefinition {
        setting: "topics.order_status_dlq",
        key: "as found",
        value: "the bytes as found on the status topic, with headers that say why and from where",
        producers: "the compensators",
        consumers: "operators",
        kind: Kind::DeadLetters,
        name: |topics| Some(&topics.order_status_dlq),
    },
    TopicDefinition {
        setting: "topics.order_requests",
        key: "any",
        value: "an order request as `POST /v1/orders` takes it: JSON, or \
                `schemas/order_request.avsc`",
        producers: "any system with the right to write",
        consumers: "ingest, if `ingest.intake` is true",
        kind: Kind::Messages,
        name: |topics| Some(&topics.order_requests.as_ref()?.requests),
    },
    TopicDefinition {
        setting: "topics.order_requests_dlq",
        key: "as found",
        value: "the bytes as found on the topic of requests, with headers that say why and from \
                where",
        producers: "ingest",
        consumers: "operators",
        kind: Kind::DeadLetters,
        name: |topics| Some(&topics.order_requests.as_ref()?.dead_letters),
    },
    TopicDefinition {
        setting: "topics.stock_adjustments",
        key: "any",
        value: "an adjustment as `POST /v1/stock/adjustments` takes it: JSON, or \
                `schemas/stock_adjustment.avsc`",
        producers: "any system with the right to write",
        consumers: "the workers, if it is set, in the group `kafka.group_id` and `-adjustments`",
        kind: Kind::Messages,
        name: |topics| Some(&topics.stock_adjustments.as_ref()?.requests),
    },
    TopicDefinition {
        setting: "topics.stock_adjustments_dlq",
        key: "as found",
        value: "the bytes as found on the topic of adjustments, with headers that say why and \
                from where",
        producers: "the workers",
        consumers: "operators",
        kind: Kind::DeadLetters,
        name: |topics| Some(&topics.stock_adjustments.as_ref()?.dead_letters),
    },
    TopicDefinition {
        setting: "topics.stock_levels",
        key: "the product id",
        value: "`schemas/stock_level.avsc`: the available units and the version of a product",
        producers: "the workers and whatever else changes stock, if it is set",
        consumers: "any system",
        kind: Kind::Compacted,
        name: |topics| topics.stock_levels.as_deref(),
    },
];

impl TopicDefinition {
    /// The topic's configured name, or `None` if the topic is not used.
    pub(crate) fn name<'c>(&self, topics: &'c TopicsConfig) -> Option<&'c str> {
        (self.name)(topics)
    }

    /// The settings with which `setup` creates it.
    fn settings<'r>(&self, retention_ms: &'r str) -> Vec<(&'static str, &'r str)> {
        match self.kind {
            Kind::Messages => vec![("retention.ms", retention_ms)],
            Kind::DeadLetters => {
                vec![("retention.ms", retention_ms), ("max.message.bytes", MAX_MESSAGE_BYTES)]
            }
            Kind::Compacted => vec![("cleanup.policy", "compact")],
        }
    }
}

/// The configured names of all topics that are used.
pub(crate) fn topic_names(topics: &TopicsConfig) -> Vec<&str> {
    TOPICS.iter().filter_map(|topic| topic.name(topics)).collect()
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
    let admin = plain::admin(&client_config(kafka), &Tokens::of(kafka)).await?;
    let options = AdminOptions::new()
        .operation_timeout(Some(ANSWER_TIMEOUT))
        .request_timeout(Some(ANSWER_TIMEOUT));
    let retention_ms = i64::try_from(topics.retention.as_millis()).unwrap_or(i64::MAX);
    let retention = retention_ms.to_string();
    let settings: BTreeMap<_, _> = TOPICS
        .iter()
        .filter_map(|topic| Some((topic.name(topics)?, (topic.kind, topic.settings(&retention)))))
        .collect();
    let wanted: Vec<_> = settings
        .iter()
        .map(|(name, (_, settings))| {
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
                let (kind, settings) = &settings[report.name.as_str()];
                report.problems = found
                    .problems(layout.replicas, *kind)
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                compare(report, found, settings);
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
    let admin = plain::admin(&client_config(kafka), &Tokens::of(kafka)).await?;
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
    let (config, tokens) = (client_config(kafka), Tokens::of(kafka));
    let asked = tokio::task::spawn_blocking(move || {
        let client = plain::asking(&config, PlainCallbacks::new(&tokens))?;
        topics.iter().map(|topic| layout(&client, topic)).collect()
    });
    asked.await.unwrap_or(Err(KafkaError::Canceled))
}

const DISCONNECTED: RDKafkaErrorCode = RDKafkaErrorCode::BrokerTransportFailure;

/// Asks a broker for the layout of a topic. Blocks; fails if the topic is still unknown after 5 s.
fn layout(client: &BaseConsumer<PlainCallbacks>, topic: &str) -> KafkaResult<Layout> {
    // A topic that was created a moment ago may not be in the broker's metadata yet.
    for _ in 0..MAX_LAYOUT_ATTEMPTS {
        let metadata = client.fetch_metadata(Some(topic), ANSWER_TIMEOUT);
        // A broker may end a session while the question is on its way. Then the second one arrives.
        let metadata = match metadata {
            Err(error) if error.rdkafka_error_code() == Some(DISCONNECTED) => {
                plain::serve_callbacks(client);
                client.fetch_metadata(Some(topic), ANSWER_TIMEOUT)?
            }
            metadata => metadata?,
        };
        let partitions = metadata.topics().first().map_or(&[][..], |t| t.partitions());
        if let Some(replicas) = partitions.iter().map(|partition| partition.replicas().len()).min()
        {
            return Ok(Layout { partitions: partitions.len(), replicas });
        }
        std::thread::sleep(LAYOUT_RETRY_DELAY);
    }
    Err(KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition))
}
