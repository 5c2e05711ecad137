use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Extension, RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::StreamExt as _;
use tokio::{net::TcpListener, time::timeout};
use url::form_urlencoded;

use super::{
    Health, LogFilter, Metrics,
    log_filter::{LogFilterError, MAX_DIRECTIVES_BYTES, ShownLogFilter},
};
use crate::{
    http::{self, Connection, ServeTerms},
    lifecycle::Shutdown,
};

/// Most connections at a time. Probes and scrapes are few, and these file descriptors are reserved.
const MAX_CONNECTIONS: usize = 64;
/// How long the body of a request may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// What a proxy adds to the request of a client elsewhere.
const PROXY_HEADERS: [&str; 3] = ["forwarded", "via", "x-forwarded-for"];

/// What the admin address shows and changes.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) health: Health,
    pub(crate) metrics: Metrics,
    pub(crate) log_filter: LogFilter,
}

/// Serves `/livez`, `/readyz`, `/metrics` and `/log-filter` until the process stops. `/livez` and
/// `/readyz` answer 200, or 503 with a line for each component that is stuck or not ready.
/// `/log-filter` answers 403 to clients on other machines.
pub(crate) async fn serve_admin(listener: TcpListener, admin: Admin, shutdown: Shutdown) {
    let app = Router::new()
        .route(
            "/livez",
            get(|State(admin): State<Admin>| async move {
                verdict(&admin.health.stuck(Instant::now()))
            }),
        )
        .route(
            "/readyz",
            get(|State(admin): State<Admin>| async move { verdict(&admin.health.not_ready()) }),
        )
        .route("/metrics", get(exposition))
        .route("/log-filter", get(show_log_filter).put(change_log_filter).delete(reset_log_filter))
        .with_state(admin);
    let terms =
        ServeTerms { max_connections: MAX_CONNECTIONS, count_refusal: Arc::new(|_| ()), tls: None };
    http::serve(listener, app, terms, shutdown).await;
}

fn verdict(complaints: &[String]) -> (StatusCode, String) {
    if complaints.is_empty() {
        (StatusCode::OK, "ok\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, complaints.join("\n") + "\n")
    }
}

async fn exposition(State(admin): State<Admin>) -> impl IntoResponse {
    let Admin { health, metrics, .. } = &admin;
    metrics.ready.set(i64::from(health.not_ready().is_empty()));
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], metrics.exposition())
}

/// Why a request about the log filter was refused: a status, and a text for the operator.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, text) = self;
        (status, text + "; the log filter was not changed\n").into_response()
    }
}

impl From<LogFilterError> for Refusal {
    fn from(error: LogFilterError) -> Self {
        let status = match error {
            LogFilterError::Invalid(_) => StatusCode::BAD_REQUEST,
            LogFilterError::Replace(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl IntoResponse for ShownLogFilter {
    fn into_response(self) -> Response {
        let body = format!("{}\n", self.to_json());
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

async fn show_log_filter(
    State(admin): State<Admin>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
) -> Result<ShownLogFilter, Refusal> {
    check_local(&connection, &headers)?;
    Ok(admin.log_filter.show())
}

/// The body has the directives as text. `?for=10m`: after that time the filter is `log.level`
/// again.
async fn change_log_filter(
    State(admin): State<Admin>,
    Extension(connection): Extension<Connection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<ShownLogFilter, Refusal> {
    check_local(&connection, &headers)?;
    check_text(&headers)?;
    let duration = duration(query.as_deref().unwrap_or_default())?;
    let too_slow = |_| Refusal(StatusCode::REQUEST_TIMEOUT, "the body took too long".to_owned());
    let body = timeout(BODY_TIMEOUT, read(body)).await.map_err(too_slow)??;
    let directives = str::from_utf8(&body)
        .map_err(|error| Refusal(StatusCode::BAD_REQUEST, format!("not UTF-8: {error}")))?;
    Ok(admin.log_filter.change(directives, duration)?)
}

/// Fails with a 413 if the body is too large, and with a 400 if it breaks off.
async fn read(body: Body) -> Result<Vec<u8>, Refusal> {
    let (mut chunks, mut bytes) = (body.into_data_stream(), Vec::new());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            Refusal(StatusCode::BAD_REQUEST, format!("the body breaks off: {error}"))
        })?;
        if bytes.len() + chunk.len() > MAX_DIRECTIVES_BYTES {
            let text = format!("expected directives of {MAX_DIRECTIVES_BYTES} bytes at most");
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn reset_log_filter(
    State(admin): State<Admin>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
) -> Result<ShownLogFilter, Refusal> {
    check_local(&connection, &headers)?;
    Ok(admin.log_filter.reset()?)
}

/// Fails with a 403 unless the client runs on this machine, with no proxy before it.
fn check_local(connection: &Connection, headers: &HeaderMap) -> Result<(), Refusal> {
    let is_forwarded = PROXY_HEADERS.iter().any(|name| headers.contains_key(*name));
    if connection.is_from_loopback() && !is_forwarded {
        return Ok(());
    }
    let text = "only clients on this machine, from 127.0.0.1 or ::1, may read or change the log \
                filter";
    Err(Refusal(StatusCode::FORBIDDEN, text.to_owned()))
}

/// Fails with a 415 if the content type is given and is not `text/plain`.
fn check_text(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_text = |value: &str| {
        value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/plain"))
    };
    let mut given = headers.get_all(header::CONTENT_TYPE).iter();
    if given.all(|value| value.to_str().is_ok_and(is_text)) {
        return Ok(());
    }
    let text = "the content type is not text/plain";
    Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, text.to_owned()))
}

/// The parameter `for` of a query. Fails with a 400 for any other parameter, and for a second one.
fn duration(query: &str) -> Result<Option<Duration>, Refusal> {
    let refusal = |text| Refusal(StatusCode::BAD_REQUEST, text);
    let mut found = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "for" {
            return Err(refusal(format!("parameter {name:?}: expected \"for\"")));
        }
        if found.is_some() {
            return Err(refusal("for: expected one duration, found two".to_owned()));
        }
        let parsed = humantime::parse_duration(&value).map_err(|error| {
            refusal(format!("for: expected a duration such as 10m, found {value:?}: {error}"))
        })?;
        found = Some(parsed);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::body::Bytes;
    use futures::stream;

    use super::*;

    async fn refused(chunks: Vec<io::Result<Bytes>>) -> (StatusCode, String) {
        let Err(Refusal(status, text)) = read(Body::from_stream(stream::iter(chunks))).await else {
            panic!("accepted")
        };
        (status, text)
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_not_called_too_large() {
        let part = || Ok(Bytes::from(vec![b'x'; MAX_DIRECTIVES_BYTES]));

        let (status, text) = refused(vec![part(), Err(io::Error::other("reset"))]).await;
        assert_eq!(
            (status, text.as_str()),
            (StatusCode::BAD_REQUEST, "the body breaks off: reset")
        );
        assert_eq!(refused(vec![part(), part()]).await.0, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(read(Body::from_stream(stream::iter([part()]))).await.is_ok());
    }

    #[test]
    fn a_change_has_one_duration() {
        assert!(matches!(duration("for=10m"), Ok(Some(time)) if time.as_secs() == 600));
        assert!(matches!(duration(""), Ok(None)));
        assert!(duration("for=10m&for=20m").is_err());
    }
}
