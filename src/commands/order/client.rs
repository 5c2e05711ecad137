//! The HTTP client of ingest. It repeats a request while no answer comes, so each request must do
//! no harm when it is repeated.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use reqwest::{
    ClientBuilder, Method, RequestBuilder, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};
use serde_json::Value;

use crate::{
    backoff::{Backoff, jittered},
    config::{ClientConfig, ClientToken, Config, is_local},
    trust,
};

/// Most attempts at a request. Their delays take a few seconds, enough for a proxy that restarts.
pub(super) const MAX_ATTEMPTS: u32 = 6;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Most time for the answer to one attempt, beside the time that ingest is asked to wait.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most time that `Retry-After` adds to a delay.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Answers after which a repetition may succeed.
const TRANSIENT: [StatusCode; 5] = [
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];
/// Those of [`TRANSIENT`] after which the request was perhaps carried out.
const AMBIGUOUS: [StatusCode; 2] = [StatusCode::BAD_GATEWAY, StatusCode::GATEWAY_TIMEOUT];

/// Sends requests to `client.url`.
pub(super) struct ApiClient {
    http: reqwest::Client,
    base: String,
}

/// A request that does no harm when it is repeated.
pub(super) struct Request {
    pub(super) method: Method,
    /// From `/v1` on.
    pub(super) path: String,
    pub(super) body: Option<Value>,
    pub(super) idempotency_key: Option<String>,
    /// How long ingest may wait for the outcome, over all attempts together.
    pub(super) wait: Option<Duration>,
}

pub(super) struct Answered {
    pub(super) status: StatusCode,
    /// A body that is not JSON is a string.
    pub(super) body: Value,
    /// Whether an earlier command made this request: not an earlier attempt of this one.
    pub(super) is_replay: bool,
}

/// No attempt was answered for good.
pub(super) struct Unanswered {
    pub(super) error: anyhow::Error,
    /// Whether ingest may have carried out the request all the same.
    pub(super) is_maybe_done: bool,
}

/// Why one attempt is repeated.
struct Failure {
    error: anyhow::Error,
    is_maybe_done: bool,
    retry_after: Duration,
}

impl Request {
    pub(super) fn new(method: Method, path: String) -> Self {
        Self { method, path, body: None, idempotency_key: None, wait: None }
    }
}

impl ApiClient {
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        Ok(Self { http: http_client(config)?.build()?, base: config.client.url.clone() })
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(self.url(path))
    }

    /// Sends the request up to [`MAX_ATTEMPTS`] times, until an answer comes that is not
    /// transient.
    pub(super) async fn send(&self, request: &Request) -> Result<Answered, Unanswered> {
        let (begun, mut backoff, mut is_maybe_done) = (Instant::now(), Backoff::default(), false);
        loop {
            let wait = request.wait.map(|wait| wait.saturating_sub(begun.elapsed()));
            let failure = match self.attempt(request, wait).await {
                Ok(mut answered) => {
                    answered.is_replay &= !is_maybe_done;
                    return Ok(answered);
                }
                Err(failure) => failure,
            };
            is_maybe_done |= failure.is_maybe_done;
            let delay = backoff.next_delay();
            if backoff.failures() == MAX_ATTEMPTS {
                let error = failure.error.context(self.url(&request.path));
                return Err(Unanswered { error, is_maybe_done });
            }
            tokio::time::sleep(delay.max(failure.retry_after)).await;
        }
    }

    async fn attempt(
        &self,
        request: &Request,
        wait: Option<Duration>,
    ) -> Result<Answered, Failure> {
        let mut built = self
            .http
            .request(request.method.clone(), self.url(&request.path))
            .timeout(ANSWER_TIMEOUT + wait.unwrap_or_default());
        if let Some(body) = &request.body {
            built = built.json(body);
        }
        if let Some(key) = &request.idempotency_key {
            built = built.header("idempotency-key", key);
        }
        if let Some(wait) = wait {
            built = built.header("prefer", format!("wait={}", wait.as_millis().div_ceil(1_000)));
        }
        let response = built.send().await.map_err(|error| Failure {
            is_maybe_done: !error.is_connect(),
            // The caller names the URL.
            error: error.without_url().into(),
            retry_after: Duration::ZERO,
        })?;
        let (status, is_replay) =
            (response.status(), response.headers().contains_key("idempotent-replayed"));
        let retry_after = retry_after(&response);
        let body = body_of(response).await.map_err(|error| Failure {
            error,
            is_maybe_done: true,
            retry_after,
        })?;
        if is_transient(status) {
            let is_maybe_done = AMBIGUOUS.contains(&status);
            return Err(Failure { error: described(status, &body), is_maybe_done, retry_after });
        }
        Ok(Answered { status, body, is_replay })
    }

    /// The error of an answer that is neither yes nor no.
    pub(super) fn unexpected(&self, request: &Request, answered: &Answered) -> anyhow::Error {
        described(answered.status, &answered.body).context(self.url(&request.path))
    }
}

/// An HTTP client that presents the token of the settings, and trusts their authorities.
///
/// Fails if a file of theirs cannot be used.
pub(super) fn http_client(config: &Config) -> anyhow::Result<ClientBuilder> {
    let ClientConfig { url, token, ca } = &config.client;
    let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT);
    if Url::parse(url).is_ok_and(|url| is_local(&url)) {
        // A proxy is on another machine, and would see the token.
        builder = builder.no_proxy();
    }
    if let Some(authorities) = trust::authorities(url, ca.as_deref(), "client.ca_location")? {
        builder = builder.tls_certs_only(authorities);
    }
    if let Some(token) = token {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, bearer(token)?);
        builder = builder.default_headers(headers);
    }
    Ok(builder)
}

fn bearer(token: &ClientToken) -> anyhow::Result<HeaderValue> {
    let (key, text) = match token {
        ClientToken::Text(text) => ("client.token", text.clone()),
        ClientToken::File(file) => {
            let named = || format!("client.token_file: {}", file.display());
            ("client.token_file", std::fs::read_to_string(file).with_context(named)?)
        }
    };
    let token = text.trim();
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        bail!("{key}: expected a token of 1 to {MAX_TOKEN_BYTES} bytes");
    }
    // The error of the header would not say which setting is wrong.
    let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {token}")) else {
        bail!("{key}: the token has a character that no header may have");
    };
    value.set_sensitive(true);
    Ok(value)
}

/// The delay that an answer asks for: 0 without one, bounded, and a little longer at random.
pub(super) fn retry_after(response: &Response) -> Duration {
    let header = response.headers().get(header::RETRY_AFTER);
    let seconds = header.and_then(|value| value.to_str().ok()?.parse().ok());
    let delay = seconds.map(Duration::from_secs).unwrap_or_default().min(MAX_RETRY_AFTER);
    jittered(delay, 1.0..1.25)
}

/// An answer as an error: its status, and what its problem document says.
pub(super) fn described(status: StatusCode, body: &Value) -> anyhow::Error {
    let detail = body["detail"].as_str().or(body.as_str()).unwrap_or_default().trim();
    let separator = if detail.is_empty() { "" } else { ": " };
    anyhow!("the server answered {status}{separator}{detail}")
}

/// Whether a repetition may get another answer.
pub(super) fn is_transient(status: StatusCode) -> bool {
    TRANSIENT.contains(&status)
}

/// Reads an answer's body. Fails if the body breaks off or has more than [`MAX_ANSWER_BYTES`].
pub(super) async fn body_of(mut response: Response) -> anyhow::Result<Value> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_ANSWER_BYTES {
            bail!("the answer has more than {MAX_ANSWER_BYTES} bytes");
        }
    }
    Ok(serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())))
}
