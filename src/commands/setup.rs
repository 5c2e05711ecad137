use std::time::Duration;

use anyhow::Context as _;
use humantime::format_duration;
use serde_json::json;

use super::{Answer, Output};
use crate::{
    config::Config,
    kafka::{TopicReport, ensure_topics},
    store::{migrate_order_store, migrate_stock_store},
};

/// Migrates both stores and creates the topics that do not exist. Topics that differ from the
/// settings are reported, and never altered.
pub(super) async fn run(config: &Config, output: Output) -> anyhow::Result<Answer> {
    let (orders, stock) = (&config.order_store.migrate_url, &config.stock_store.migrate_url);
    migrate_order_store(orders).await.with_context(|| format!("order store, {orders}"))?;
    migrate_stock_store(stock).await.with_context(|| format!("stock store, {stock}"))?;
    let reports = ensure_topics(&config.kafka, &config.topics).await;
    let reports = reports.with_context(|| format!("topics, brokers {}", config.kafka.brokers))?;
    let orders = reports.iter().find(|topic| topic.name == config.topics.orders);
    let mut warnings: Vec<_> =
        orders.and_then(|topic| horizon_warning(topic, config)).into_iter().collect();
    for topic in &reports {
        warnings.extend(
            topic.problems.iter().map(|problem| format!("topic {}: {problem}", topic.name)),
        );
    }
    for warning in &warnings {
        eprintln!("WARNING: {warning}");
    }
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
                "warnings": warnings,
            })
        );
        return Ok(Answer::Done);
    }
    println!("order store  migrated");
    println!("stock store  migrated");
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
    Ok(Answer::Done)
}

/// A warning if the topic keeps events for longer than they may wait before they expire.
fn horizon_warning(orders: &TopicReport, config: &Config) -> Option<String> {
    let (kept, longest) =
        (u64::try_from(orders.retention_ms).ok(), config.retention.horizon.longest_wait());
    let kept = kept.map(Duration::from_millis);
    if kept.is_some_and(|kept| kept <= longest) {
        return None;
    }
    let kept = kept.map_or("for ever".to_owned(), |kept| format!("for {}", format_duration(kept)));
    Some(format!(
        "topic {} keeps events {kept}, but an event that waits for more than {} may be \
         dead-lettered as expired: lower its retention.ms, or raise retention.outcomes",
        orders.name,
        format_duration(longest),
    ))
}
