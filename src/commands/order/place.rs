use std::time::Duration;

use clap::Args;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{
    args,
    client::{ApiClient, Request},
    shown,
};
use crate::{
    commands::{Answer, Output},
    config::Config,
    domain::{Line, OrderId},
};

#[derive(Debug, Args)]
pub(in crate::commands) struct PlaceArgs {
    /// Product and number of units
    #[arg(required = true, value_name = "ID=QUANTITY", value_parser = args::line)]
    lines: Vec<Line>,
    /// Only hold the stock for this time, such as 15m; `order confirm` completes the order
    #[arg(long, value_name = "TIME", value_parser = args::hold)]
    hold: Option<Duration>,
    /// Wait up to this time, such as 5s, for the outcome; exit status 1 if the order is refused
    #[arg(long, value_name = "TIME", value_parser = args::wait)]
    wait: Option<Duration>,
    /// Your own name for the order
    #[arg(long)]
    reference: Option<String>,
    /// Your own name for the customer
    #[arg(long)]
    customer: Option<String>,
    /// Your own name for the request: the same key with the same order makes no second order
    #[arg(long, value_name = "KEY", value_parser = args::idempotency_key)]
    #[arg(conflicts_with = "id")]
    idempotency_key: Option<String>,
    /// Id of the order, a new `UUIDv7`; without it and without a key, the command makes one
    #[arg(long)]
    id: Option<OrderId>,
}

/// Places an order. With a key ingest makes the order's id, otherwise this command does. So a
/// repetition finds the order of the first attempt.
pub(super) async fn run(
    args: PlaceArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let client = ApiClient::new(config)?;
    let body = Some(body(&args));
    let (method, path, remedy) = if let Some(key) = &args.idempotency_key {
        let remedy = format!("repeat the command with --idempotency-key {key}");
        (Method::POST, "/v1/orders".to_owned(), remedy)
    } else {
        let id = args.id.unwrap_or_else(OrderId::generate);
        let remedy = format!("repeat the command with --id {id}");
        (Method::PUT, format!("/v1/orders/{id}"), remedy)
    };
    let PlaceArgs { idempotency_key, wait, .. } = args;
    let request = Request { method, path, body, idempotency_key, wait };
    let answered = client.send(&request).await.map_err(|unanswered| {
        let unknown = format!("the order was perhaps saved; to find out, {remedy}");
        let what = if unanswered.is_maybe_done { unknown } else { "not saved".to_owned() };
        unanswered.error.context(what)
    })?;
    let answer = match answered.status {
        StatusCode::CREATED | StatusCode::ACCEPTED => Answer::Done,
        StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => Answer::No,
        _ => return Err(client.unexpected(&request, &answered)),
    };
    let mut shown = answered.body;
    if answered.is_replay && shown.is_object() {
        shown["replayed"] = true.into();
    }
    shown::print(&shown, output);
    Ok(answer)
}

/// The order as the API takes it.
fn body(args: &PlaceArgs) -> Value {
    let lines = args
        .lines
        .iter()
        .map(|line| json!({"product_id": line.product_id().as_str(), "quantity": line.quantity()}));
    let mut body = json!({"lines": lines.collect::<Vec<_>>()});
    if let Some(hold) = args.hold {
        body["hold_seconds"] = hold.as_secs().into();
    }
    let texts = [("reference", &args.reference), ("customer_id", &args.customer)];
    for (name, text) in texts.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?))) {
        body[name] = text.as_str().into();
    }
    body
}
