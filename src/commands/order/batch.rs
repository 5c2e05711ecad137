//! The client of `POST /v1/orders:batch`: sends a stream of orders, one a line, and receives an
//! answer to each line.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::{Context as _, bail};
use hyper::body::{Body, Bytes, Frame};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::client::{body_of, described, http_client, is_transient, retry_after};
use crate::config::Config;

/// Lines that wait are sent together, up to this size.
const MAX_CHUNK_BYTES: usize = 64 << 10;
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Answers that were received and not taken yet. Beyond them, the client reads no more.
const MAX_ANSWERS: usize = 1_000;

/// A request whose lines are sent one by one. It breaks off when it is dropped.
pub(in crate::commands) struct BatchStream {
    /// `None` once the last line is sent.
    lines: Option<mpsc::Sender<Bytes>>,
    answers: mpsc::Receiver<Result<LineAnswer, StreamFailure>>,
    _reading: AbortOnDropHandle<()>,
}

/// The answer to one line.
#[derive(Debug, Deserialize)]
pub(in crate::commands) struct LineAnswer {
    pub(in crate::commands) status: u16,
    /// Whether the order was saved for an earlier request.
    #[serde(default)]
    pub(in crate::commands) idempotent_replayed: bool,
    #[serde(default)]
    body: LineBody,
}

/// The parts of an answer that this client reports.
#[derive(Debug, Default, Deserialize)]
struct LineBody {
    reason: Option<String>,
    detail: Option<String>,
    #[serde(default)]
    errors: Vec<FieldError>,
}

#[derive(Debug, Deserialize)]
struct FieldError {
    pointer: String,
    detail: String,
}

/// Why a stream broke, or was never begun.
pub(in crate::commands) struct StreamFailure {
    pub(in crate::commands) error: anyhow::Error,
    /// Whether ingest perhaps saved orders of the lines that have no answer.
    pub(in crate::commands) is_maybe_saved: bool,
    /// Whether another attempt may succeed.
    pub(in crate::commands) is_transient: bool,
    /// The delay that the server asks for.
    pub(in crate::commands) retry_after: Duration,
}

impl StreamFailure {
    /// The lines without an answer were perhaps handled, and may be sent again.
    pub(in crate::commands) fn broken(error: anyhow::Error) -> Self {
        let retry_after = Duration::ZERO;
        Self { error, is_maybe_saved: true, is_transient: true, retry_after }
    }
}

impl LineAnswer {
    /// Why the order has failed.
    pub(in crate::commands) fn reason(&self) -> &str {
        self.body.reason.as_deref().unwrap_or("UNKNOWN")
    }

    /// The answer in one line, for a person.
    pub(in crate::commands) fn detail(&self) -> String {
        let fields = self.body.errors.iter();
        let fields = fields.map(|FieldError { pointer, detail }| format!("{pointer}: {detail}"));
        let parts: Vec<_> = self.body.detail.clone().into_iter().chain(fields).collect();
        parts.join("; ")
    }
}

/// The HTTP client of batches. Each stream has a connection of its own: a connection that was used
/// before may be closed, and a stream cannot be sent twice.
pub(in crate::commands) fn batch_client(config: &Config) -> anyhow::Result<Client> {
    Ok(http_client(config)?.pool_max_idle_per_host(0).build()?)
}

impl BatchStream {
    /// Begins a request. Ingest waits up to `wait` for each outcome. At most `max_lines` may be
    /// without an answer.
    pub(in crate::commands) fn open(
        client: &Client,
        url: &str,
        wait: Option<Duration>,
        max_lines: usize,
    ) -> Self {
        let (lines, sent) = mpsc::channel(max_lines);
        let (received, answers) = mpsc::channel(MAX_ANSWERS);
        let mut request = client.post(url).header("content-type", "application/x-ndjson");
        if let Some(wait) = wait {
            request = request.header("prefer", format!("wait={}", wait.as_secs()));
        }
        let request = request.body(reqwest::Body::wrap(SentLines(sent)));
        let reading = tokio::spawn(read(request, received));
        Self { lines: Some(lines), answers, _reading: AbortOnDropHandle::new(reading) }
    }

    /// Sends a line, given without its end. Does nothing if the stream has ended: [`Self::next`]
    /// then says why.
    pub(in crate::commands) fn send(&self, line: Bytes) {
        if let Some(lines) = &self.lines {
            let _has_ended = lines.try_send(line);
        }
    }

    /// Ends the request. The answers still arrive.
    pub(in crate::commands) fn finish(&mut self) {
        self.lines = None;
    }

    pub(in crate::commands) fn is_finished(&self) -> bool {
        self.lines.is_none()
    }

    /// Returns the next answer, `None` after the last. May be cancelled: no answer is lost.
    pub(in crate::commands) async fn next(&mut self) -> Result<Option<LineAnswer>, StreamFailure> {
        self.answers.recv().await.transpose()
    }
}

async fn read(request: RequestBuilder, answers: mpsc::Sender<Result<LineAnswer, StreamFailure>>) {
    if let Err(failure) = read_all(request, &answers).await {
        let _is_heard = answers.send(Err(failure)).await;
    }
}

async fn read_all(
    request: RequestBuilder,
    answers: &mpsc::Sender<Result<LineAnswer, StreamFailure>>,
) -> Result<(), StreamFailure> {
    let mut response = request.send().await.map_err(|error| StreamFailure {
        is_maybe_saved: !error.is_connect(),
        error: error.into(),
        is_transient: true,
        retry_after: Duration::ZERO,
    })?;
    let (status, url) = (response.status(), response.url().to_string());
    if status != StatusCode::OK {
        let retry_after = retry_after(&response);
        let body = body_of(response).await.unwrap_or_default();
        return Err(StreamFailure {
            error: described(status, &body).context(url),
            is_maybe_saved: false,
            is_transient: is_transient(status),
            retry_after,
        });
    }
    let mut partial = Vec::new();
    loop {
        let chunk = match response.chunk().await.context("the answers break off") {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Ok(()),
            Err(error) => return Err(StreamFailure::broken(error.context(url))),
        };
        let mut rest = &chunk[..];
        while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
            partial.extend_from_slice(&rest[..at]);
            rest = &rest[at + 1..];
            let answer = parsed(&partial)
                .map_err(|error| StreamFailure::broken(error.context(url.clone())))?;
            partial.clear();
            if answers.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
        partial.extend_from_slice(rest);
        if partial.len() > MAX_ANSWER_BYTES {
            let error = anyhow::anyhow!("an answer has more than {MAX_ANSWER_BYTES} bytes");
            return Err(StreamFailure::broken(error.context(url)));
        }
    }
}

pub(super) fn parsed(line: &[u8]) -> anyhow::Result<LineAnswer> {
    match serde_json::from_slice(line) {
        Ok(answer) => Ok(answer),
        Err(error) => bail!("an answer is not as expected: {error}"),
    }
}

/// The body of the request: the lines as they come.
struct SentLines(mpsc::Receiver<Bytes>);

impl Body for SentLines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(first) = ready!(self.0.poll_recv(context)) else { return Poll::Ready(None) };
        let mut chunk = Vec::with_capacity(first.len() + 1);
        chunk.extend_from_slice(&first);
        chunk.push(b'\n');
        while chunk.len() < MAX_CHUNK_BYTES
            && let Ok(line) = self.0.try_recv()
        {
            chunk.extend_from_slice(&line);
            chunk.push(b'\n');
        }
        Poll::Ready(Some(Ok(Frame::data(chunk.into()))))
    }
}
