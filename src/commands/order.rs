use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::Utc;
use clap::Subcommand;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::{Answer, Output, import};
use crate::{
    config::Config,
    domain::{Line, OrderId, OrderStatus, ProductId, Reason, ReportedStatus},
    kafka::{Message, Producer},
    wire::OrderStatusCodec,
};

/// Most time that the API waits for an outcome.
pub(super) const MAX_WAIT_SECONDS: u64 = 60;

#[derive(Debug, Subcommand)]
pub(super) enum OrderCommand {
    /// Place one order
    Place {
        /// Product and number of units
        #[arg(required = true, value_name = "ID=QUANTITY", value_parser = parse_line)]
        lines: Vec<Line>,
        /// Wait up to this many seconds for the outcome; exit status 1 if the order is refused
        #[arg(long, value_name = "SECONDS")]
        #[arg(value_parser = clap::value_parser!(u64).range(..=MAX_WAIT_SECONDS))]
        wait: Option<u64>,
        /// Your own name for the order
        #[arg(long)]
        reference: Option<String>,
    },
    /// Show an order
    Show {
        /// Id of the order
        id: OrderId,
    },
    /// Place the orders of an NDJSON file, one request body per line; invalid lines are counted and
    /// skipped
    Import(import::ImportArgs),
    /// Report that an order failed, as a downstream system does
    ///
    /// The command produces a FAILED to the order-status topic. It cannot know whether the order
    /// exists or may still fail; `stocklock order show` tells that later.
    Fail {
        /// Id of the order
        id: OrderId,
        /// Reason that is stored with the order
        #[arg(long)]
        reason: String,
        /// Name of the reporting system
        #[arg(long, default_value = "stocklock-cli")]
        source: String,
    },
}

fn parse_line(text: &str) -> Result<Line, String> {
    let (id, quantity) = text.rsplit_once('=').ok_or("expected ID=QUANTITY")?;
    let quantity =
        quantity.parse().map_err(|_| format!("expected a whole number, found {quantity:?}"))?;
    let id = ProductId::parse(id).map_err(|e| e.to_string())?;
    Line::new(id, quantity).map_err(|e| e.to_string())
}

pub(super) async fn run(
    command: OrderCommand,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    match command {
        OrderCommand::Place { lines, wait, reference } => {
            place(config, &lines, wait, reference, output).await
        }
        OrderCommand::Show { id } => show(config, id, output).await,
        OrderCommand::Import(args) => import::run(&args, config, output).await,
        OrderCommand::Fail { id, reason, source } => {
            fail(config, id, &reason, source, output).await
        }
    }
}

async fn place(
    config: &Config,
    lines: &[Line],
    wait: Option<u64>,
    reference: Option<String>,
    output: Output,
) -> anyhow::Result<Answer> {
    let lines = lines
        .iter()
        .map(|line| json!({"product_id": line.product_id().as_str(), "quantity": line.quantity()}));
    let mut body = json!({"lines": lines.collect::<Vec<_>>()});
    if let Some(reference) = reference {
        body["reference"] = json!(reference);
    }
    let url = format!("{}/v1/orders", config.client.url);
    let mut request =
        Client::builder().build()?.post(&url).timeout(Duration::from_secs(wait.unwrap_or(0) + 30));
    if let Some(seconds) = wait {
        request = request.header("prefer", format!("wait={seconds}"));
    }
    let response = request.json(&body).send().await.with_context(|| url.clone())?;
    let (status, body) = (response.status(), body_of(response).await);
    print(&body, output);
    match status {
        StatusCode::CREATED | StatusCode::ACCEPTED => Ok(Answer::Done),
        StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => Ok(Answer::No),
        status => bail!("{url}: unexpected answer {status}"),
    }
}

async fn show(config: &Config, id: OrderId, output: Output) -> anyhow::Result<Answer> {
    let url = format!("{}/v1/orders/{id}", config.client.url);
    let response = Client::builder()
        .build()?
        .get(&url)
        .timeout(Duration::from_secs(30))
        .send()
        .await
        .with_context(|| url.clone())?;
    let (status, body) = (response.status(), body_of(response).await);
    print(&body, output);
    match status {
        StatusCode::OK => Ok(Answer::Done),
        StatusCode::NOT_FOUND => Ok(Answer::No),
        status => bail!("{url}: unexpected answer {status}"),
    }
}

/// The body of an answer as JSON. A body that is not JSON becomes a string.
async fn body_of(response: reqwest::Response) -> Value {
    let text = response.text().await.unwrap_or_default();
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

/// Prints one line per member of an object, or the JSON itself.
fn print(body: &Value, output: Output) {
    match (output, body) {
        (Output::Text, Value::Object(members)) => {
            for (name, value) in members {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                println!("{name:12} {value}");
            }
        }
        _ => println!("{body}"),
    }
}

async fn fail(
    config: &Config,
    order_id: OrderId,
    reason: &str,
    source: String,
    output: Output,
) -> anyhow::Result<Answer> {
    let status = ReportedStatus::Failed(Reason::parse(reason));
    let status = OrderStatus { order_id, status, source, occurred_at: Utc::now(), reference: None };
    let message = Message::of_order(order_id, OrderStatusCodec::new()?.encode(&status));
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
    print(&reported, output);
    if output == Output::Text {
        println!(
            "Whether the order exists and may still fail, this command cannot know. Ask: \
             stocklock order show {order_id}"
        );
    }
    Ok(Answer::Done)
}
