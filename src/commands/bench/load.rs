//! The two ways to measure the pipeline.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::StatusCode;
use serde_json::json;
use tokio::task::JoinSet;

use super::{report::Run, role::Role, scratch::Scratch, workload::Workload};
use crate::{domain::Lines, store::OrderStore};

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Without any order becoming final for so long, a run is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Clients that place orders one after another.
const CLIENTS: usize = 256;
/// Requests that an open loop may have under way.
const MAX_REQUESTS: usize = 10_000;

pub struct Load<'a> {
    pub scratch: &'a Scratch,
    pub workload: &'a Workload,
    pub workers: usize,
    /// What the roles say.
    pub log: &'a File,
}

impl Load<'_> {
    /// From a backlog on the topic: the time begins when the first worker has its partitions.
    pub async fn drain(&self, orders: &OrderStore) -> anyhow::Result<(Run, Histogram<u64>)> {
        let events = self.scratch.place(orders, self.workload).await?;
        self.scratch.publish(&events).await?;
        drop(events);
        let mut roles = vec![self.start("compensator").await?, self.start("worker").await?];
        let begun = Instant::now();
        for _ in 1..self.workers {
            roles.push(self.start("worker").await?);
        }
        self.finish(roles, begun, orders).await
    }

    /// From HTTP requests: `rate` a second whatever the answers, or as many as 256 clients get answered.
    pub async fn end_to_end(&self, orders: &OrderStore, rate: Option<u32>) -> anyhow::Result<(Run, Histogram<u64>)> {
        let mut roles = vec![self.start("compensator").await?];
        for _ in 0..self.workers {
            roles.push(self.start("worker").await?);
        }
        let ingest = self.start("ingest").await?;
        let url = format!("http://{}/v1/orders", ingest.http);
        roles.push(ingest);
        let begun = Instant::now();
        let placing = place_all(&url, &self.workload.orders, rate);
        let (placed, finished) = tokio::join!(placing, self.finish(roles, begun, orders));
        placed?;
        finished
    }

    async fn start(&self, role: &'static str) -> anyhow::Result<Role> {
        Role::start(role, self.scratch, self.log).await
    }

    /// Waits until all orders are final, and stops the roles.
    async fn finish(
        &self,
        roles: Vec<Role>,
        begun: Instant,
        orders: &OrderStore,
    ) -> anyhow::Result<(Run, Histogram<u64>)> {
        let seconds = self.all_final(&roles, begun).await?;
        let mut run = Run {
            workload: self.workload.name.clone(),
            orders: self.workload.orders.len(),
            lines: self.workload.count_lines(),
            workers: self.workers,
            ..Run::default()
        };
        let mut batches = 0.0;
        for role in roles {
            if role.name == "worker" {
                batches += role.metrics().await?.sum("stocklock_batch_orders_count", "");
            }
            run.tell_usage(role.name, role.usage()?);
            role.stop().await?;
        }
        run.tell_rates(seconds, batches);
        Ok((run, orders.settle_times().await?))
    }

    async fn all_final(&self, roles: &[Role], begun: Instant) -> anyhow::Result<f64> {
        let compensator = roles.first().context("the compensator")?;
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} orders final, {per_sec}, {elapsed}")?;
        let progress = ProgressBar::new(self.workload.orders.len() as u64).with_style(style);
        let mut moved_at = Instant::now();
        while progress.position() < self.workload.orders.len() as u64 {
            tokio::time::sleep(LOOK_EVERY).await;
            let metrics = compensator.metrics().await?;
            let kinds = ["kind=\"completed\"", "kind=\"failed\""];
            let moved: f64 = kinds.iter().map(|kind| metrics.sum("stocklock_compensations_total", kind)).sum();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
            let moved = moved as u64;
            if moved > progress.position() {
                progress.set_position(moved);
                moved_at = Instant::now();
            }
            if moved_at.elapsed() > PATIENCE {
                bail!(
                    "{moved} of {} orders are final, and none became so for {PATIENCE:?}",
                    self.workload.orders.len()
                );
            }
        }
        progress.finish_and_clear();
        Ok(begun.elapsed().as_secs_f64())
    }
}

async fn place_all(url: &str, orders: &[Lines], rate: Option<u32>) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(CLIENTS).build()?;
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
        requests.spawn(place(client.clone(), url.to_owned(), lines.clone()));
    }
    while let Some(placed) = requests.join_next().await {
        placed??;
    }
    Ok(())
}

async fn place(client: reqwest::Client, url: String, lines: Lines) -> anyhow::Result<()> {
    let lines = lines.as_slice().iter();
    let lines = lines.map(|line| json!({"product_id": line.product_id().as_str(), "quantity": line.quantity()}));
    let response = client.post(url).json(&json!({"lines": lines.collect::<Vec<_>>()})).send().await?;
    match response.status() {
        StatusCode::ACCEPTED => Ok(()),
        status => bail!("an order was answered with {status}: {}", response.text().await.unwrap_or_default()),
    }
}
