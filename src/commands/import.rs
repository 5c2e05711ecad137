use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::{
    fs::File,
    io::{AsyncBufReadExt, BufReader},
    task::JoinSet,
};

use super::{Answer, Output};
use crate::{backoff::Backoff, config::Config};

/// Attempts at an order while the server says that it is overloaded.
const MAX_ATTEMPTS: u32 = 20;
/// Errors that are printed; the others are counted.
const SHOWN: u64 = 10;

#[derive(Debug, Args)]
pub struct ImportArgs {
    file: PathBuf,
    /// Requests at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// Wait up to so many seconds for each outcome
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

/// How one order was answered.
enum Reply {
    Accepted,
    Completed,
    Refused(String),
    Invalid,
    Error(String),
}

#[derive(Default)]
struct Tally {
    placed: u64,
    accepted: u64,
    completed: u64,
    failed: BTreeMap<String, u64>,
    invalid: u64,
    errors: u64,
}

pub async fn run(args: &ImportArgs, config: &Config, output: Output) -> anyhow::Result<Answer> {
    let file = File::open(&args.file).await.with_context(|| args.file.display().to_string())?;
    let mut lines = BufReader::with_capacity(1 << 16, file).lines();
    let client = Client::builder().pool_max_idle_per_host(args.concurrency.into()).build()?;
    let url = format!("{}/v1/orders", config.client.url);
    let style = ProgressStyle::with_template("{spinner} {pos} orders placed, {per_sec}, {elapsed}  {msg}")?;
    let progress = ProgressBar::new_spinner().with_style(style);
    let mut tally = Tally::default();
    let mut latencies = Histogram::<u64>::new_with_max(600_000_000, 3)?;
    let mut requests = JoinSet::new();
    let begun = Instant::now();
    let mut exhausted = false;
    while !exhausted || !requests.is_empty() {
        while !exhausted && requests.len() < args.concurrency.into() {
            match lines.next_line().await.with_context(|| args.file.display().to_string())? {
                Some(line) if line.trim().is_empty() => {}
                Some(line) => drop(requests.spawn(place(client.clone(), url.clone(), line, args.wait))),
                None => exhausted = true,
            }
        }
        let Some(answered) = requests.join_next().await else { break };
        let (reply, latency) = answered?;
        latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        tally.add(reply, &progress);
        progress.inc(1);
    }
    progress.finish_and_clear();
    tally.print(begun.elapsed(), &latencies, output);
    Ok(if tally.errors == 0 { Answer::Done } else { Answer::No })
}

/// Places one order. An order that was surely not saved, as the server was overloaded, is tried again.
async fn place(client: Client, url: String, body: String, wait: Option<u64>) -> (Reply, Duration) {
    let begun = Instant::now();
    let mut failures = Backoff::default();
    loop {
        let mut request = client.post(&url).timeout(Duration::from_secs(wait.unwrap_or(0) + 30));
        if let Some(seconds) = wait {
            request = request.header("prefer", format!("wait={seconds}"));
        }
        let reply = match request.header("content-type", "application/json").body(body.clone()).send().await {
            Err(error) => Reply::Error(format!("{:#}", anyhow::Error::new(error))),
            Ok(response) => match response.status() {
                StatusCode::ACCEPTED => Reply::Accepted,
                StatusCode::CREATED => Reply::Completed,
                StatusCode::CONFLICT => Reply::Refused(reason(response).await),
                StatusCode::UNPROCESSABLE_ENTITY => Reply::Invalid,
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
                    if failures.failures() < MAX_ATTEMPTS =>
                {
                    tokio::time::sleep(failures.next_delay()).await;
                    continue;
                }
                status => Reply::Error(format!("{status}: {}", response.text().await.unwrap_or_default())),
            },
        };
        return (reply, begun.elapsed());
    }
}

async fn reason(response: reqwest::Response) -> String {
    let body: Value = response.json().await.unwrap_or_default();
    body["reason"].as_str().unwrap_or("UNKNOWN").to_owned()
}

impl Tally {
    fn add(&mut self, reply: Reply, progress: &ProgressBar) {
        self.placed += 1;
        match reply {
            Reply::Accepted => self.accepted += 1,
            Reply::Completed => self.completed += 1,
            Reply::Refused(reason) => *self.failed.entry(reason).or_default() += 1,
            Reply::Invalid => self.invalid += 1,
            Reply::Error(error) => {
                self.errors += 1;
                if self.errors <= SHOWN {
                    progress.suspend(|| eprintln!("order {}: {error}", self.placed));
                }
            }
        }
    }

    fn print(&self, elapsed: Duration, latencies: &Histogram<u64>, output: Output) {
        let millis = |quantile| {
            let micros = u32::try_from(latencies.value_at_quantile(quantile)).unwrap_or(u32::MAX);
            (f64::from(micros) / 1000.0 * 100.0).round() / 100.0
        };
        let (p50, p99, seconds) = (millis(0.5), millis(0.99), elapsed.as_secs_f64());
        if output == Output::Json {
            println!(
                "{}",
                json!({"placed": self.placed, "accepted": self.accepted, "completed": self.completed, "failed": self.failed,
                       "invalid": self.invalid, "errors": self.errors, "seconds": (seconds * 1000.0).round() / 1000.0,
                       "p50_ms": p50, "p99_ms": p99})
            );
            return;
        }
        let failed: u64 = self.failed.values().sum();
        println!(
            "{} orders placed in {seconds:.1} s: {} accepted, {} completed, {failed} failed, {} invalid, {} errors",
            self.placed, self.accepted, self.completed, self.invalid, self.errors
        );
        for (reason, count) in &self.failed {
            println!("  failed {count:>8}  {reason}");
        }
        println!("  answered in p50 {p50} ms, p99 {p99} ms");
    }
}
