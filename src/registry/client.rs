use std::{fmt::Display, time::Duration};

use reqwest::{Method, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{backoff::Backoff, config::RegistryConfig, error_text, telemetry::Lack, trust};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Most time for a whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// The most characters of an answer that an error shows.
const MAX_SHOWN_CHARS: usize = 500;
/// Of a subject with more versions, the latest ones are read.
const MAX_VERSIONS: usize = 20;
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// Why the registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// It does not answer. The source names its address.
    #[error("the schema registry does not answer")]
    Unreachable(#[source] reqwest::Error),
    /// It wants other credentials.
    #[error(
        "the schema registry refuses the credentials ({status}): \
         check schema_registry.username and schema_registry.password"
    )]
    Forbidden { status: StatusCode },
    /// It answers and refuses, in its own words.
    #[error("the schema registry refuses: {status}: {words}")]
    Refused { status: StatusCode, words: String },
    /// It has no such schema, subject or version.
    #[error("the schema registry has no such entry: {words}")]
    Missing { words: String },
    /// It answers that it cannot work.
    #[error("the schema registry fails: {status}: {words}")]
    Failing { status: StatusCode, words: String },
    #[error("the answer of the schema registry has more than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
    #[error("the answer of the schema registry is no JSON of its API")]
    Unreadable(#[source] serde_json::Error),
    #[error("schema_registry.url cannot have a path behind it")]
    NoBase,
}

impl RegistryError {
    /// Whether a repetition may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Failing { .. } => true,
            Self::Forbidden { .. }
            | Self::Refused { .. }
            | Self::Missing { .. }
            | Self::TooLarge
            | Self::Unreadable(_)
            | Self::NoBase => false,
        }
    }

    /// Whether the registry answers and refuses. Waiting does not help.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Forbidden { .. } | Self::Refused { .. } | Self::NoBase => true,
            Self::Unreachable(_)
            | Self::Missing { .. }
            | Self::Failing { .. }
            | Self::TooLarge
            | Self::Unreadable(_) => false,
        }
    }
}

/// The most attempts of a command that ends by itself.
const MAX_ATTEMPTS: u32 = 6;
/// The shortest pause between two of them.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Repeats a call that failed, if `is_transient` says that a repetition may help. Makes 6 attempts,
/// with growing pauses of some seconds together. Fails with the last error.
pub(crate) async fn with_attempts<T, E: Display>(
    call: impl AsyncFn() -> Result<T, E>,
    is_transient: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let mut backoff = Backoff::default();
    loop {
        match call().await {
            Err(error) if is_transient(&error) && backoff.failures() + 1 < MAX_ATTEMPTS => {
                let delay = backoff.next_delay().max(MIN_PAUSE);
                tracing::debug!(%error, ?delay, "the schema registry failed, asking again");
                tokio::time::sleep(delay).await;
            }
            answer => return answer,
        }
    }
}

/// A schema with its id.
#[derive(Debug, Deserialize)]
pub(crate) struct RegisteredSchema {
    pub(crate) id: u32,
    pub(crate) version: u32,
    pub(crate) schema: String,
}

/// A schema that was found by its id.
#[derive(Debug, Deserialize)]
pub(crate) struct FoundSchema {
    pub(crate) schema: String,
    /// Missing for Avro.
    #[serde(rename = "schemaType")]
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Id {
    id: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct Compatibility {
    is_compatible: bool,
    #[serde(default)]
    messages: Vec<String>,
    /// What Apicurio has instead of messages.
    reason: Option<String>,
}

/// The answer to a question for a subject's compatibility.
#[derive(Debug, Deserialize)]
struct Level {
    /// Registries have one name or the other.
    #[serde(rename = "compatibilityLevel", alias = "compatibility")]
    compatibility_level: Option<String>,
}

/// A client of a registry with the API of Confluent's.
#[derive(Clone)]
pub(crate) struct RegistryClient {
    http: reqwest::Client,
    base: Url,
    credentials: Option<(String, String)>,
}

impl RegistryClient {
    /// Fails if the client cannot be made. Does not connect.
    pub(crate) fn new(config: &RegistryConfig) -> anyhow::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        if let Some(authorities) = trust::authorities(&config.url, None, "schema_registry.url")? {
            builder = builder.tls_certs_only(authorities);
        }
        let http = builder.build()?;
        let base = Url::parse(&config.url)?;
        Ok(Self { http, base, credentials: config.credentials.clone() })
    }

    /// Whether the registry answers and accepts the credentials.
    pub(crate) async fn probe(&self) -> Result<(), Lack> {
        self.ask_for_subjects().await.map_err(|error| {
            let why = error_text::with_causes(&error);
            Lack { why, is_refusal: error.is_refusal() }
        })
    }

    /// The same. Fails with `Missing` or `Unreadable` if the URL has no registry's API.
    pub(super) async fn ask_for_subjects(&self) -> Result<(), RegistryError> {
        match self.get::<Value>(&["subjects"]).await {
            // The list may be long. That it begins is enough.
            Ok(_) | Err(RegistryError::TooLarge) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The schema of an id. Fails with `Missing` if there is none.
    pub(crate) async fn schema(&self, id: u32) -> Result<FoundSchema, RegistryError> {
        self.get(&["schemas", "ids", &id.to_string()]).await
    }

    /// The latest versions of a subject, ascending, 20 at most. Empty if the subject is unknown.
    pub(crate) async fn versions(
        &self,
        subject: &str,
    ) -> Result<Vec<RegisteredSchema>, RegistryError> {
        let numbers: Vec<u32> = match self.get(&["subjects", subject, "versions"]).await {
            Err(RegistryError::Missing { .. }) => return Ok(Vec::new()),
            numbers => numbers?,
        };
        let mut versions = Vec::new();
        for number in &numbers[numbers.len().saturating_sub(MAX_VERSIONS)..] {
            versions.push(self.get(&["subjects", subject, "versions", &number.to_string()]).await?);
        }
        Ok(versions)
    }

    /// Registers a schema, and returns its id. A schema that is registered keeps its id.
    pub(crate) async fn register(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let request = self.request(Method::POST, &["subjects", subject, "versions"])?;
        let answer: Id = answer(request.json(&json!({"schema": schema}))).await?;
        Ok(answer.id)
    }

    /// Why the registry finds a schema incompatible with the latest version of a subject. `None` if
    /// it is compatible, or the subject is unknown.
    pub(crate) async fn incompatibility(
        &self,
        subject: &str,
        schema: &str,
    ) -> Result<Option<String>, RegistryError> {
        let path = ["compatibility", "subjects", subject, "versions", "latest"];
        let request = self.request(Method::POST, &path)?.json(&json!({"schema": schema}));
        match answer::<Compatibility>(request).await {
            Ok(Compatibility { is_compatible: true, .. }) | Err(RegistryError::Missing { .. }) => {
                Ok(None)
            }
            Ok(Compatibility { mut messages, reason, .. }) => {
                messages.extend(reason);
                Ok(Some(shortened(&messages.join("; "))))
            }
            Err(error) => Err(error),
        }
    }

    /// Has the registry refuse later versions of a subject that cannot read the values of the
    /// version before.
    pub(crate) async fn require_backward(&self, subject: &str) -> Result<(), RegistryError> {
        let request = self.request(Method::PUT, &["config", subject])?;
        let _level: Value = answer(request.json(&json!({"compatibility": "BACKWARD"}))).await?;
        Ok(())
    }

    /// The compatibility that the registry demands of later versions of a subject. `None` if the
    /// subject has no level of its own.
    pub(super) async fn compatibility(
        &self,
        subject: &str,
    ) -> Result<Option<String>, RegistryError> {
        match self.get::<Level>(&["config", subject]).await {
            Ok(Level { compatibility_level }) => Ok(compatibility_level),
            Err(RegistryError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The URL of the compatibility of a subject.
    pub(super) fn compatibility_url(&self, subject: &str) -> String {
        format!("{}/config/{subject}", self.base.as_str().trim_end_matches('/'))
    }

    async fn get<T: for<'de> Deserialize<'de>>(&self, path: &[&str]) -> Result<T, RegistryError> {
        answer(self.request(Method::GET, path)?).await
    }

    fn request(&self, method: Method, path: &[&str]) -> Result<RequestBuilder, RegistryError> {
        let mut url = self.base.clone();
        url.path_segments_mut().map_err(|()| RegistryError::NoBase)?.pop_if_empty().extend(path);
        if method == Method::POST {
            // Asks for the causes of an incompatibility. Other calls ignore it.
            url.set_query(Some("verbose=true"));
        }
        let request = self.http.request(method, url).header("Accept", CONTENT_TYPE);
        Ok(match &self.credentials {
            Some((username, password)) => request.basic_auth(username, Some(password)),
            None => request,
        })
    }
}

/// Sends a request and reads its answer.
async fn answer<T: for<'de> Deserialize<'de>>(request: RequestBuilder) -> Result<T, RegistryError> {
    let mut response = request.send().await.map_err(RegistryError::Unreachable)?;
    let (status, mut body) = (response.status(), Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(RegistryError::Unreachable)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(RegistryError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    read(status, &body)
}

/// Reads the body of an answer. Fails if the status is no success, or if the body is not as the API
/// has it.
pub(super) fn read<T: for<'de> Deserialize<'de>>(
    status: StatusCode,
    body: &[u8],
) -> Result<T, RegistryError> {
    if status.is_success() {
        return serde_json::from_slice(body).map_err(RegistryError::Unreadable);
    }
    let words = words(body);
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Forbidden { status },
        StatusCode::NOT_FOUND => RegistryError::Missing { words },
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            RegistryError::Failing { status, words }
        }
        status => RegistryError::Refused { status, words },
    })
}

/// What an error of the registry says.
fn words(body: &[u8]) -> String {
    let message = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|body| Some(body.get("message")?.as_str()?.to_owned()));
    shortened(&message.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned()))
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}
