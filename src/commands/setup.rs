use anyhow::Context as _;
use humantime::format_duration;
use serde_json::json;

use super::{Answer, Output, doctor, process::SchemaRegistry};
use crate::{
    config::Config,
    finding::{Finding, Verdict},
    kafka::{TopicReport, ensure_topics, kept_too_long, why_unreachable},
    registry::{Registration, RegistryError, register, with_attempts},
    store::{migrate_order_store, migrate_stock_store},
};

/// Migrates both stores, creates the topics that do not exist, and registers the schemas if a
/// registry is configured. Topics that differ from the settings are reported, and never altered.
///
/// Answers `No` if the registry has an incompatible schema for a topic.
pub(super) async fn run(config: &Config, output: Output) -> anyhow::Result<Answer> {
    let insecure = insecure_stores(config);
    for warning in &insecure {
        eprintln!("WARNING: {warning}");
    }
    let (orders, stock) = (&config.order_store.migrate_url, &config.stock_store.migrate_url);
    migrate_order_store(orders).await.with_context(|| format!("order store, {orders}"))?;
    migrate_stock_store(stock).await.with_context(|| format!("stock store, {stock}"))?;
    let reports = create_topics(config).await?;
    let orders = reports.iter().find(|topic| topic.name == config.topics.orders);
    let mut warnings: Vec<_> =
        orders.and_then(|topic| horizon_warning(topic, config)).into_iter().collect();
    for topic in &reports {
        warnings.extend(
            topic.problems.iter().map(|problem| format!("topic {}: {problem}", topic.name)),
        );
    }
    let stores = doctor::look_at_stores(config).await;
    let of_stores = stores.iter().filter(|finding| finding.verdict != Verdict::Fine);
    warnings.extend(of_stores.map(Finding::sentence));
    let schemas = register_schemas(config).await?;
    for warning in &warnings {
        eprintln!("WARNING: {warning}");
    }
    warnings.splice(0..0, insecure);
    let is_compatible = !schemas.iter().any(SubjectReport::is_incompatible);
    let answer = if is_compatible { Answer::Done } else { Answer::No };
    if output == Output::Json {
        let topics = reports
            .iter()
            .map(|t| json!({"name": t.name, "created": t.created, "differences": t.differences}));
        let topics = topics.collect::<Vec<_>>();
        let stores = "migrated";
        println!(
            "{}",
            json!({
                "order_store": stores, "stock_store": stores, "topics": topics,
                "schemas": schemas.iter().map(SubjectReport::to_json).collect::<Vec<_>>(),
                "readable_by": config.topics.readable_by.to_string(), "warnings": warnings,
            })
        );
        return Ok(answer);
    }
    println!("order store  migrated");
    println!("stock store  migrated");
    println!("values       readable by version {} and later", config.topics.readable_by);
    for topic in reports {
        let what = match (topic.created, topic.differences.is_empty()) {
            (true, _) => "created".to_owned(),
            (false, true) => "exists".to_owned(),
            (false, false) => format!(
                "exists and is left as it is, but differs: {}",
                topic.differences.join("; ")
            ),
        };
        println!("topic {:24} {what}", topic.name);
    }
    for SubjectReport { subject, done } in schemas {
        let what = match done {
            Registration::Known { id } => format!("is registered as id {id}"),
            Registration::Registered { id } => format!("registered as id {id}"),
            Registration::Incompatible { why } => format!("NOT REGISTERED, incompatible: {why}"),
        };
        println!("schema {subject:23} {what}");
    }
    Ok(answer)
}

/// Warnings of connections to the stores that nobody protects. `setup` does not use Redis.
fn insecure_stores(config: &Config) -> Vec<String> {
    let connections = config.insecure_connections().into_iter();
    connections.filter(|it| it.section != "redis").map(|it| it.to_string()).collect()
}

/// Fails with what the brokers say, and what to do about it.
async fn create_topics(config: &Config) -> anyhow::Result<Vec<TopicReport>> {
    let failed = match ensure_topics(&config.kafka, &config.topics).await {
        Ok(reports) => return Ok(reports),
        Err(error) => anyhow::Error::from(error),
    };
    let brokers = || format!("brokers {}", config.kafka.brokers);
    let why = why_unreachable(&config.kafka, &config.topics.orders).await.unwrap_or_else(brokers);
    Err(failed.context(format!("topics, {why}")))
}

/// What was done with the schema of a topic.
struct SubjectReport {
    subject: String,
    done: Registration,
}

impl SubjectReport {
    fn is_incompatible(&self) -> bool {
        matches!(self.done, Registration::Incompatible { .. })
    }

    fn to_json(&self) -> serde_json::Value {
        let Self { subject, done } = self;
        match done {
            Registration::Known { id } => json!({"subject": subject, "id": id, "created": false}),
            Registration::Registered { id } => {
                json!({"subject": subject, "id": id, "created": true})
            }
            Registration::Incompatible { why } => json!({"subject": subject, "incompatible": why}),
        }
    }
}

/// Registers the schemas of the topics that are used, if a registry is configured.
///
/// Fails if the registry does not answer, or refuses the credentials or a schema.
async fn register_schemas(config: &Config) -> anyhow::Result<Vec<SubjectReport>> {
    let Some(SchemaRegistry { client, schemas }) = SchemaRegistry::open(config)? else {
        return Ok(Vec::new());
    };
    let url = config.schema_registry.as_ref().map_or("", |registry| &registry.url);
    let mut reports = Vec::new();
    for subject in schemas.subjects() {
        let ask = async || register(&client, subject).await;
        let done = with_attempts(ask, RegistryError::is_transient).await;
        let done =
            done.with_context(|| format!("schema registry, {url}, subject {}", subject.name))?;
        reports.push(SubjectReport { subject: subject.name.clone(), done });
    }
    Ok(reports)
}

/// A warning if the topic keeps events for longer than they may wait before they expire.
fn horizon_warning(orders: &TopicReport, config: &Config) -> Option<String> {
    let longest = config.retention.horizon.longest_wait();
    let kept = kept_too_long(orders.retention_ms, longest)?;
    Some(format!(
        "topic {} keeps events {kept}, but an event that waits for more than {} may be \
         dead-lettered as expired: lower its retention.ms, or raise retention.outcomes",
        orders.name,
        format_duration(longest),
    ))
}
