//! The clients that place orders.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::ValueEnum;
use futures::future::try_join_all;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep_until};

use super::site::Site;
use crate::{
    commands::order::BatchStream,
    domain::{Lines, OrderId},
    trust,
};

/// Clients that place orders one after another.
const CLIENTS: usize = 256;
/// Requests that an open loop may have in flight.
const MAX_REQUESTS: usize = 10_000;

/// Streams of lines at the same time.
const STREAMS: usize = 4;
/// Lines of a stream that wait for their answers.
const MAX_LINES_IN_FLIGHT: usize = 500;

/// How orders come to ingest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// One order a request
    Requests,
    /// As lines of a few streams: `POST /v1/orders:batch`
    Batch,
    /// As records of `topics.order_requests`, in Avro
    Kafka,
}

impl Via {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Batch => "batch",
            Self::Kafka => "kafka",
        }
    }
}

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

    /// The order as a line of a batch.
    fn line(self, lines: &Lines) -> String {
        let mut order = body(lines);
        match self {
            Self::None => {}
            Self::Key => order["idempotency_key"] = OrderId::generate().to_string().into(),
            Self::OrderId => order["order_id"] = OrderId::generate().to_string().into(),
        }
        order.to_string()
    }
}

/// How the orders of a run are placed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placing {
    pub(super) via: Via,
    pub(super) identity: Identity,
    /// Orders a second, whatever the answers. `None`: as many as get answered.
    pub(super) rate: Option<u32>,
}

impl Placing {
    /// Places all orders. `url` is the address of `/v1/orders`. Without a rate, 256 clients place
    /// them, or the lines of 4 streams, or a producer that has 4,000 records in flight.
    ///
    /// Fails if an answer is not 202, or if the broker does not take a record.
    pub(super) async fn place_all(
        self,
        site: &Site,
        url: &str,
        orders: &[Lines],
    ) -> anyhow::Result<()> {
        match self.via {
            Via::Requests => self.send_requests(url, orders).await,
            Via::Batch => self.send_lines(&format!("{url}:batch"), orders).await,
            Via::Kafka => self.produce(site, orders).await,
        }
    }

    async fn send_requests(self, url: &str, orders: &[Lines]) -> anyhow::Result<()> {
        let client = trust::client_without_tls().pool_max_idle_per_host(CLIENTS).build()?;
        let most = self.rate.map_or(CLIENTS, |_| MAX_REQUESTS);
        let begun = Instant::now();
        let mut requests = JoinSet::new();
        for (index, lines) in (0_u32..).zip(orders) {
            self.due(begun, index).await;
            while requests.len() >= most {
                requests.join_next().await.context("a request")???;
            }
            requests.spawn(place(self.identity.request(&client, url), lines.clone()));
        }
        while let Some(placed) = requests.join_next().await {
            placed??;
        }
        Ok(())
    }

    async fn send_lines(self, url: &str, orders: &[Lines]) -> anyhow::Result<()> {
        let client = trust::client_without_tls().pool_max_idle_per_host(0).build()?;
        let begun = Instant::now();
        let streams = (0..STREAMS).map(|first| {
            let orders = (0_u32..).zip(orders).skip(first).step_by(STREAMS);
            self.send_stream(BatchStream::open(&client, url, None, MAX_REQUESTS), orders, begun)
        });
        try_join_all(streams).await.map(drop)
    }

    async fn send_stream(
        self,
        mut stream: BatchStream,
        orders: impl Iterator<Item = (u32, &Lines)>,
        begun: Instant,
    ) -> anyhow::Result<()> {
        let most = self.rate.map_or(MAX_LINES_IN_FLIGHT, |_| MAX_REQUESTS);
        let (mut orders, mut in_flight) = (orders.peekable(), 0);
        while in_flight > 0 || orders.peek().is_some() {
            let next = orders.peek().map_or(0, |(index, _)| *index);
            let may_send = in_flight < most && orders.peek().is_some();
            tokio::select! {
                biased;
                answer = stream.next() => {
                    let answer = answer.map_err(|failure| failure.error)?;
                    let answer = answer.context("a stream ended before its last answer")?;
                    if answer.status != StatusCode::ACCEPTED {
                        bail!("a line was answered with {}: {}", answer.status, answer.detail());
                    }
                    in_flight -= 1;
                }
                () = self.due(begun, next), if may_send => {
                    let (_, lines) = orders.next().ok_or_else(|| anyhow!("no order"))?;
                    stream.send(self.identity.line(lines).into());
                    in_flight += 1;
                }
            }
        }
        Ok(())
    }

    /// Waits until an order is due.
    pub(super) async fn due(self, begun: Instant, index: u32) {
        if let Some(rate) = self.rate {
            sleep_until((begun + Duration::from_secs(1) * index / rate).into()).await;
        }
    }
}

async fn place(request: RequestBuilder, lines: Lines) -> anyhow::Result<()> {
    let response = request.json(&body(&lines)).send().await?;
    match response.status() {
        StatusCode::ACCEPTED => Ok(()),
        status => bail!(
            "an order was answered with {status}: {}",
            response.text().await.unwrap_or_default()
        ),
    }
}

fn body(lines: &Lines) -> Value {
    let lines = lines.as_slice().iter();
    let lines = lines
        .map(|line| json!({"product_id": line.product_id().as_str(), "quantity": line.quantity()}));
    json!({"lines": lines.collect::<Vec<_>>()})
}
