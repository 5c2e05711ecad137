use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use tokio::net::TcpListener;

use super::http_client;

/// A way to an HTTP server that lets only one user through. It keeps the paths of all requests.
pub(crate) struct Gate {
    /// As a URL of the server behind it.
    pub(crate) url: String,
    paths: Arc<Mutex<Vec<String>>>,
    failures: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Behind {
    /// The server, without a path.
    server: String,
    /// What `Authorization` has to be.
    expected: String,
    client: reqwest::Client,
    paths: Arc<Mutex<Vec<String>>>,
    /// How many of the next requests fail.
    failures: Arc<AtomicUsize>,
}

impl Gate {
    /// A gate before the server of a URL. `credentials` are `user:password` in base64.
    pub(crate) async fn before(url: &str, credentials: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let authority = url.split('/').nth(2).expect("a host");
        let paths = Arc::<Mutex<Vec<String>>>::default();
        let failures = Arc::<AtomicUsize>::default();
        let behind = Behind {
            server: format!("http://{authority}"),
            expected: format!("Basic {credentials}"),
            client: http_client(),
            paths: Arc::clone(&paths),
            failures: Arc::clone(&failures),
        };
        let router = Router::new().fallback(pass).with_state(behind);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url: url.replacen(authority, &address, 1), paths, failures }
    }

    /// Has the next requests fail, as those to a server with a fault of its own do.
    pub(crate) fn fail_next(&self, requests: usize) {
        self.failures.store(requests, SeqCst);
    }

    /// How many requests are still to fail.
    pub(crate) fn failures_left(&self) -> usize {
        self.failures.load(SeqCst)
    }

    /// How many requests had a path with this ending.
    pub(crate) fn count(&self, ending: &str) -> usize {
        self.paths.lock().expect("no panic").iter().filter(|path| path.ends_with(ending)).count()
    }
}

async fn pass(
    State(behind): State<Behind>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    behind.paths.lock().expect("no panic").push(uri.path().to_owned());
    if behind.failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if headers.get(header::AUTHORIZATION).is_none_or(|found| found != behind.expected.as_str()) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let request = behind.client.request(method, format!("{}{uri}", behind.server)).body(body);
    let request = request.header(header::CONTENT_TYPE, "application/json");
    let answer = request.send().await.expect("the server");
    let status = answer.status();
    (status, answer.bytes().await.expect("a body")).into_response()
}
