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

use super::{Answer, Output, order};
use crate::{backoff::Backoff, config::Config};

/// Most repetitions of a request after one of [`UNSAVED`].
const MAX_REPETITIONS: u32 = 20;
/// Answers that mean that the order was not saved, so that it is safe to send it again.
const UNSAVED: [StatusCode; 3] =
    [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT];
/// Most attempts at an order while no server listens at the address. They take some seconds, enough
/// for a server that restarts.
const MAX_CONNECTIONS: u32 = 6;
/// Most errors that are printed. The others are counted.
const MAX_SHOWN_ERRORS: u64 = 10;

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// NDJSON file, or /dev/stdin
    file: PathBuf,
    /// Most requests at the same time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// Wait up to this time, such as 5s, for each outcome
    #[arg(long, value_name = "TIME", value_parser = order::wait)]
    wait: Option<Duration>,
}

/// A request that has its answer.
struct Answered {
    /// The number of its line, from 1.
    line: u64,
    reply: Reply,
    latency: Duration,
}

/// The result of one line.
enum Reply {
    Accepted,
    Completed,
    Refused(String),
    Invalid,
    /// The server answered with a client error: the line is not an order.
    Error(String),
    /// The server accepts no orders now, or did not receive this one in time.
    Overloaded(String),
    /// No server can be reached.
    Unreachable(String),
    /// The order may be placed or not: no answer came, or the answer reports a server error.
    Unknown(String),
}

/// Numbers of lines by result. Accepted, completed and failed orders are placed.
#[derive(Default)]
struct Tally {
    read: u64,
    accepted: u64,
    completed: u64,
    failed: BTreeMap<String, u64>,
    invalid: u64,
    errors: u64,
    /// Not sent, or sent to a server that accepted no orders.
    unplaced: u64,
    unknown: u64,
    complaints: u64,
}

/// A running import.
struct Import<'a> {
    args: &'a ImportArgs,
    client: Client,
    url: String,
    requests: JoinSet<Answered>,
    tally: Tally,
    latencies: Histogram<u64>,
    progress: ProgressBar,
    /// Then the rest of the file is counted, and not sent.
    is_server_away: bool,
}

/// Places the orders of a file. A line that the server refuses does not stop the import. If no
/// server can be reached, the rest of the file is only counted. Fails if the file cannot be read.
pub(super) async fn run(
    args: &ImportArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let file = File::open(&args.file).await.with_context(|| args.file.display().to_string())?;
    let style = ProgressStyle::with_template(
        "{spinner} {pos} orders answered, {per_sec}, {elapsed}  {msg}",
    )?;
    let mut import = Import {
        args,
        client: Client::builder().pool_max_idle_per_host(args.concurrency.into()).build()?,
        url: format!("{}/v1/orders", config.client.url),
        requests: JoinSet::new(),
        tally: Tally::default(),
        latencies: Histogram::new_with_max(600_000_000, 3)?,
        progress: ProgressBar::new_spinner().with_style(style),
        is_server_away: false,
    };
    let begun = Instant::now();
    let read = import.place_all(file).await;
    import.progress.finish_and_clear();
    import.tally.print(begun.elapsed(), &import.latencies, output);
    read.with_context(|| format!("{}: line {}", args.file.display(), import.tally.read + 1))?;
    Ok(import.tally.answer())
}

impl Import<'_> {
    /// Fails if the file cannot be read, after the lines before the error are answered.
    async fn place_all(&mut self, file: File) -> anyhow::Result<()> {
        // Lines are bytes, so that a line that is not UTF-8 does not end the import.
        let mut lines = BufReader::with_capacity(1 << 16, file).split(b'\n');
        let (mut number, mut exhausted) = (0, None);
        while exhausted.is_none() || !self.requests.is_empty() {
            while exhausted.is_none() && self.requests.len() < self.args.concurrency.into() {
                number += 1;
                match lines.next_segment().await {
                    Ok(Some(line)) if line.iter().all(u8::is_ascii_whitespace) => {}
                    Ok(Some(line)) => self.send(number, line),
                    Ok(None) => exhausted = Some(Ok(())),
                    Err(error) => exhausted = Some(Err(error)),
                }
            }
            let Some(answered) = self.requests.join_next().await else { continue };
            let Answered { line, reply, latency } = answered?;
            self.latencies
                .saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            self.is_server_away |= matches!(reply, Reply::Unreachable(_));
            self.tally.add(line, reply, &self.progress);
            self.progress.inc(1);
        }
        Ok(exhausted.unwrap_or(Ok(()))?)
    }

    fn send(&mut self, number: u64, line: Vec<u8>) {
        self.tally.read += 1;
        if self.is_server_away {
            self.tally.unplaced += 1;
            return;
        }
        let (client, url, wait) = (self.client.clone(), self.url.clone(), self.args.wait);
        self.requests.spawn(async move {
            let begun = Instant::now();
            let reply = place(&client, &url, line, wait).await;
            Answered { line: number, reply, latency: begun.elapsed() }
        });
    }
}

/// Places one order. Tries again while the order is surely not saved: the server is overloaded or
/// cannot be reached.
async fn place(client: &Client, url: &str, body: Vec<u8>, wait: Option<Duration>) -> Reply {
    let (mut failures, mut absences) = (Backoff::default(), Backoff::default());
    loop {
        let mut request =
            client.post(url).timeout(wait.unwrap_or_default() + Duration::from_secs(30));
        if let Some(wait) = wait {
            request = request.header("prefer", format!("wait={}", wait.as_secs()));
        }
        let response = match request
            .header("content-type", "application/json")
            .body(body.clone())
            .send()
            .await
        {
            Ok(response) => response,
            Err(error) if error.is_connect() && absences.failures() + 1 < MAX_CONNECTIONS => {
                tokio::time::sleep(absences.next_delay()).await;
                continue;
            }
            Err(error) => {
                let is_away = error.is_connect();
                let why = format!("{:#}", anyhow::Error::new(error));
                return if is_away { Reply::Unreachable(why) } else { Reply::Unknown(why) };
            }
        };
        match response.status() {
            StatusCode::ACCEPTED => return Reply::Accepted,
            StatusCode::CREATED => return Reply::Completed,
            StatusCode::CONFLICT => return Reply::Refused(reason(response).await),
            StatusCode::UNPROCESSABLE_ENTITY => return Reply::Invalid,
            status => {
                let is_unsaved = UNSAVED.contains(&status);
                if is_unsaved && failures.failures() < MAX_REPETITIONS {
                    tokio::time::sleep(failures.next_delay()).await;
                    continue;
                }
                let why = format!("{status}: {}", response.text().await.unwrap_or_default());
                return match status {
                    _ if is_unsaved => Reply::Overloaded(why),
                    _ if status.is_server_error() => Reply::Unknown(why),
                    _ => Reply::Error(why),
                };
            }
        }
    }
}

async fn reason(response: reqwest::Response) -> String {
    let body: Value = response.json().await.unwrap_or_default();
    body["reason"].as_str().unwrap_or("UNKNOWN").to_owned()
}

impl Tally {
    fn add(&mut self, number: u64, reply: Reply, progress: &ProgressBar) {
        let (count, complaint) = match reply {
            Reply::Accepted => (&mut self.accepted, None),
            Reply::Completed => (&mut self.completed, None),
            Reply::Refused(reason) => (self.failed.entry(reason).or_default(), None),
            Reply::Invalid => (&mut self.invalid, None),
            Reply::Error(why) => (&mut self.errors, Some(why)),
            Reply::Overloaded(why) | Reply::Unreachable(why) => {
                (&mut self.unplaced, Some(format!("not placed: {why}")))
            }
            Reply::Unknown(why) => (&mut self.unknown, Some(format!("perhaps placed: {why}"))),
        };
        *count += 1;
        if let Some(why) = complaint {
            self.complaints += 1;
            if self.complaints <= MAX_SHOWN_ERRORS {
                progress.suspend(|| eprintln!("line {number}: {why}"));
            }
        }
    }

    /// `Unknown` if the server could not place an order, or perhaps placed it.
    fn answer(&self) -> Answer {
        match (self.unplaced + self.unknown, self.errors) {
            (0, 0) => Answer::Done,
            (0, _) => Answer::No,
            _ => Answer::Unknown,
        }
    }

    fn print(&self, elapsed: Duration, latencies: &Histogram<u64>, output: Output) {
        let millis = |quantile| {
            let micros = u32::try_from(latencies.value_at_quantile(quantile)).unwrap_or(u32::MAX);
            (f64::from(micros) / 1000.0 * 100.0).round() / 100.0
        };
        let (p50, p99, seconds) = (millis(0.5), millis(0.99), elapsed.as_secs_f64());
        let failed: u64 = self.failed.values().sum();
        let placed = self.accepted + self.completed + failed;
        if output == Output::Json {
            println!(
                "{}",
                json!({
                    "read": self.read, "placed": placed, "accepted": self.accepted,
                    "completed": self.completed, "failed": self.failed, "invalid": self.invalid,
                    "errors": self.errors, "unplaced": self.unplaced, "unknown": self.unknown,
                    "seconds": (seconds * 1000.0).round() / 1000.0, "p50_ms": p50, "p99_ms": p99,
                })
            );
            return;
        }
        println!(
            "{placed} of {} orders placed in {seconds:.1} s: \
             {} accepted, {} completed, {failed} failed",
            self.read, self.accepted, self.completed
        );
        for (reason, count) in &self.failed {
            println!("  failed {count:>8}  {reason}");
        }
        if placed < self.read {
            println!(
                "  the others: {} invalid, {} errors, {} not placed, {} perhaps placed",
                self.invalid, self.errors, self.unplaced, self.unknown
            );
        }
        println!("  answered in p50 {p50} ms, p99 {p99} ms");
    }
}
