use anyhow::Context as _;
use serde_json::json;

use super::{Answer, Output};
use crate::{
    config::Config,
    kafka::ensure_topics,
    store::{migrate_order_store, migrate_stock_store},
};

pub async fn run(config: &Config, output: Output) -> anyhow::Result<Answer> {
    let (orders, stock) = (&config.order_store.migrate_url, &config.stock_store.migrate_url);
    migrate_order_store(orders).await.with_context(|| format!("order store, {orders}"))?;
    migrate_stock_store(stock).await.with_context(|| format!("stock store, {stock}"))?;
    let reports = ensure_topics(&config.kafka, &config.topics).await;
    let reports = reports.with_context(|| format!("topics, brokers {}", config.kafka.brokers))?;
    if output == Output::Json {
        let topics =
            reports.iter().map(|t| json!({"name": t.name, "created": t.created, "differences": t.differences}));
        println!(
            "{}",
            json!({"order_store": "migrated", "stock_store": "migrated", "topics": topics.collect::<Vec<_>>()})
        );
        return Ok(Answer::Done);
    }
    println!("order store  migrated");
    println!("stock store  migrated");
    for topic in reports {
        let what = match (topic.created, topic.differences.is_empty()) {
            (true, _) => "created".to_owned(),
            (false, true) => "exists".to_owned(),
            (false, false) => format!("exists and is left as it is, but differs: {}", topic.differences.join("; ")),
        };
        println!("topic {:24} {what}", topic.name);
    }
    Ok(Answer::Done)
}
