//! The clients that place orders over HTTP.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::json;
use tokio::task::JoinSet;

use crate::domain::{Lines, OrderId};

/// Clients that place orders one after another.
const CLIENTS: usize = 256;
/// Requests that an open loop may have in flight.
const MAX_REQUESTS: usize = 10_000;

/// How ingest would know a request again that it receives twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Identity {
    /// Not at all: `POST /v1/orders`
    None,
    /// By an `Idempotency-Key` of its own for each order
    Key,
    /// By the id that the client makes: `PUT /v1/orders/{id}`
    OrderId,
}

impl Identity {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Key => "key",
            Self::OrderId => "order-id",
        }
    }

    fn request(self, client: &Client, url: &str) -> RequestBuilder {
        match self {
            Self::None => client.post(url),
            Self::Key => {
                client.post(url).header("Idempotency-Key", OrderId::generate().to_string())
            }
            Self::OrderId => client.put(format!("{url}/{}", OrderId::generate())),
        }
    }
}

/// Places all orders at `url`: `rate` a second whatever the answers, or as many as 256 clients get
/// answered. Fails if an answer is not 202.
pub(super) async fn place_all(
    url: &str,
    orders: &[Lines],
    rate: Option<u32>,
    identity: Identity,
) -> anyhow::Result<()> {
    let client = Client::builder().pool_max_idle_per_host(CLIENTS).build()?;
    let most = rate.map_or(CLIENTS, |_| MAX_REQUESTS);
    let begun = Instant::now();
    let mut requests = JoinSet::new();
    for (index, lines) in (0_u32..).zip(orders) {
        if let Some(rate) = rate {
            tokio::time::sleep_until((begun + Duration::from_secs(1) * index / rate).into()).await;
        }
        while requests.len() >= most {
            requests.join_next().await.context("a request")???;
        }
        requests.spawn(place(identity.request(&client, url), lines.clone()));
    }
    while let Some(placed) = requests.join_next().await {
        placed??;
    }
    Ok(())
}

async fn place(request: RequestBuilder, lines: Lines) -> anyhow::Result<()> {
    let lines = lines.as_slice().iter();
    let lines = lines
        .map(|line| json!({"product_id": line.product_id().as_str(), "quantity": line.quantity()}));
    let response = request.json(&json!({"lines": lines.collect::<Vec<_>>()})).send().await?;
    match response.status() {
        StatusCode::ACCEPTED => Ok(()),
        status => bail!(
            "an order was answered with {status}: {}",
            response.text().await.unwrap_or_default()
        ),
    }
}
