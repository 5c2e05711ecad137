use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use chrono::{SecondsFormat, Utc};
use clap::Args;
use reqwest::{Response, StatusCode, header};
use serde_json::Value;
use tokio::time::timeout;

use super::{
    client::{
        ANSWER_TIMEOUT, ApiClient, MAX_ATTEMPTS, body_of, described, is_transient, retry_after,
    },
    events::{Event, EventParser},
    shown,
};
use crate::{
    backoff::Backoff,
    commands::{Answer, Output, print},
    config::Config,
    domain::{OrderId, OrderState},
    error_text::with_causes,
};

/// Most failures in a row once ingest has answered. Their delays take about a minute.
const MAX_FAILURES: u32 = 30;
/// A silent connection is given up after this time. Ingest sends a comment every 15 s.
const MAX_SILENCE: Duration = Duration::from_secs(45);
/// A connection that lasted for this time ends a run of failures.
const MIN_STABLE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(in crate::commands) struct WatchArgs {
    /// Id of the order
    id: OrderId,
    /// End with exit status 1 if the order is FAILED or CANCELLED
    #[arg(long)]
    exit_status: bool,
}

/// How one connection ended.
enum Ended {
    /// The order is completed, failed or cancelled.
    Final(OrderState),
    /// The reader of standard output is gone.
    Unread,
    /// The answer is no, and this is its body.
    No(Value),
    /// The connection is to be made again, after this time at least.
    Lost { error: anyhow::Error, retry_after: Duration },
}

/// One order's changes over as many connections as it takes.
struct Watch<'a> {
    client: &'a ApiClient,
    path: String,
    output: Output,
    last_event_id: String,
    /// The newest status that was printed.
    status: Option<String>,
    backoff: Backoff,
    has_connected: bool,
}

/// Prints each change of the order's status, until no event can change it or until it is
/// completed. Fails if ingest does not answer, or answers neither yes nor no.
pub(super) async fn run(
    args: WatchArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let client = ApiClient::new(config)?;
    let mut watch = Watch {
        client: &client,
        path: format!("/v1/orders/{}/events", args.id),
        output,
        last_event_id: String::new(),
        status: None,
        backoff: Backoff::default(),
        has_connected: false,
    };
    loop {
        let (error, retry_after) =
            match watch.follow().await.with_context(|| client.url(&watch.path))? {
                Ended::Final(OrderState::Completed) | Ended::Unread => return Ok(Answer::Done),
                Ended::Final(_) if args.exit_status => return Ok(Answer::No),
                Ended::Final(_) => return Ok(Answer::Done),
                Ended::No(body) => {
                    shown::print(&body, output);
                    return Ok(Answer::No);
                }
                Ended::Lost { error, retry_after } => (error, retry_after),
            };
        let is_first = watch.backoff.failures() == 0;
        let delay = watch.backoff.next_delay().max(retry_after);
        let most = if watch.has_connected { MAX_FAILURES } else { MAX_ATTEMPTS };
        if watch.backoff.failures() >= most {
            return Err(error.context(client.url(&watch.path)));
        }
        if is_first && watch.has_connected {
            let why = with_causes(error.as_ref());
            print::complaint(&format!("connection lost: {why}; connecting again"), output);
        }
        tokio::time::sleep(delay).await;
    }
}

impl Watch<'_> {
    /// Follows one connection to its end. Fails on an answer that no repetition changes.
    async fn follow(&mut self) -> anyhow::Result<Ended> {
        let mut response = match self.connect().await {
            Ok(response) => response,
            Err(ended) => return Ok(ended),
        };
        // The order has ended, and this client has not seen how. Without an id it is told.
        if response.status() == StatusCode::NO_CONTENT && !self.last_event_id.is_empty() {
            self.last_event_id.clear();
            response = match self.connect().await {
                Ok(response) => response,
                Err(ended) => return Ok(ended),
            };
        }
        if response.status() != StatusCode::OK {
            return Ended::of_refusal(response).await;
        }
        if !is_event_stream(&response) {
            bail!("the answer is no stream of events");
        }
        self.has_connected = true;
        let begun = Instant::now();
        let ended = self.read(response).await?;
        if begun.elapsed() >= MIN_STABLE {
            self.backoff = Backoff::default();
        }
        Ok(ended)
    }

    async fn connect(&self) -> Result<Response, Ended> {
        let mut request = self.client.get(&self.path).header(header::ACCEPT, "text/event-stream");
        if !self.last_event_id.is_empty() {
            request = request.header("last-event-id", &self.last_event_id);
        }
        match timeout(ANSWER_TIMEOUT, request.send()).await {
            Ok(answered) => answered.map_err(Ended::of_transport),
            Err(_) => Err(Ended::lost(anyhow!("no answer in time"))),
        }
    }

    async fn read(&mut self, mut response: Response) -> anyhow::Result<Ended> {
        let mut parser = EventParser::default();
        loop {
            let chunk = match timeout(MAX_SILENCE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(Ended::lost(anyhow!("the server closed it"))),
                Ok(Err(error)) => return Ok(Ended::of_transport(error)),
                Err(_) => return Ok(Ended::lost(anyhow!("no sign of the server"))),
            };
            for event in parser.push(&chunk)? {
                if let Some(ended) = self.take(event) {
                    return Ok(ended);
                }
            }
        }
    }

    /// Prints the event if it is a new status. Returns the end of the watch if it is one.
    fn take(&mut self, event: Event) -> Option<Ended> {
        let Event { id, data } = event;
        let change: Value = serde_json::from_str(&data).ok()?;
        let status = change["status"].as_str()?.to_owned();
        self.last_event_id = id;
        if self.status.as_ref() != Some(&status) {
            if !self.print(&change, &status) {
                return Some(Ended::Unread);
            }
            self.status = Some(status.clone());
            self.backoff = Backoff::default();
        }
        // A state of a later version is printed, and is not final.
        let state = OrderState::parse(&status).ok()?;
        (state == OrderState::Completed || state.is_final()).then_some(Ended::Final(state))
    }

    /// Whether somebody reads it.
    fn print(&self, change: &Value, status: &str) -> bool {
        if self.output == Output::Json {
            return print::read_line(format_args!("{change}"));
        }
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let detail = |name: &str| change[name].as_str().map(|text| format!("  {name} {text}"));
        let details = ["reason", "expires_at"].into_iter().filter_map(detail).collect::<String>();
        print::read_line(format_args!("{now}  {status}{details}"))
    }
}

fn is_event_stream(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|name| name.as_bytes().starts_with(b"text/event-stream"))
}

impl Ended {
    /// Fails on an answer that no repetition changes.
    async fn of_refusal(response: Response) -> anyhow::Result<Self> {
        let (status, retry_after) = (response.status(), retry_after(&response));
        let body = match timeout(ANSWER_TIMEOUT, body_of(response)).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) | Err(_) => Value::Null,
        };
        if status == StatusCode::NOT_FOUND {
            return Ok(Self::No(body));
        }
        let error = described(status, &body);
        if is_transient(status) { Ok(Self::Lost { error, retry_after }) } else { Err(error) }
    }

    fn lost(error: anyhow::Error) -> Self {
        Self::Lost { error, retry_after: Duration::ZERO }
    }

    fn of_transport(error: reqwest::Error) -> Self {
        // The caller names the URL.
        Self::lost(error.without_url().into())
    }
}
