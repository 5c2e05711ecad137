use anyhow::Context as _;
use chrono::Utc;
use serde_json::json;

use super::shown;
use crate::{
    commands::{Answer, Output, process::SchemaRegistry},
    config::{Config, StatusFormat},
    domain::{OrderId, OrderStatus, Reason, ReportedStatus},
    kafka::{Message, Producer},
    wire::OrderStatusCodec,
};

/// Produces a FAILED to `order-status`. Fails if the brokers do not acknowledge it.
pub(super) async fn run(
    config: &Config,
    order_id: OrderId,
    reason: &str,
    source: String,
    output: Output,
) -> anyhow::Result<Answer> {
    let status = ReportedStatus::Failed(Reason::parse(reason));
    let status = OrderStatus { order_id, status, source, occurred_at: Utc::now(), reference: None };
    let registry = match config.topics.status_format {
        StatusFormat::Avro => SchemaRegistry::open_for_command(config).await?,
        StatusFormat::Json => None,
    };
    let schemas = registry.as_ref().map(|registry| &registry.schemas);
    let codec = OrderStatusCodec::new()?.on(&config.topics, schemas);
    let message = Message::of_status(&codec, &status);
    let producer = Producer::new(&config.kafka)?;
    let topic = &config.topics.order_status;
    producer
        .produce(topic, vec![message])
        .await
        .with_context(|| format!("brokers {}", config.kafka.brokers))?;
    let reported = json!({
        "order_id": order_id.to_string(), "reported": "FAILED", "topic": topic,
        "outcome": "unknown",
    });
    shown::print(&reported, output);
    if output == Output::Text {
        println!(
            "Whether the order exists and may still fail, this command cannot know. Ask: \
             stocklock order show {order_id}"
        );
    }
    Ok(Answer::Done)
}
