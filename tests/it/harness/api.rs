use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use reqwest::{Client, Method, header::HeaderMap};
use serde_json::Value;

use super::{Role, http_client, world::PATIENCE};

/// What the API promises. Every answer that a test gets is held against it.
static PROMISED: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../src/ingest/openapi.json"))
        .expect("an OpenAPI document in JSON")
});

/// The HTTP API as a client sees it.
#[derive(Clone)]
pub(crate) struct Api {
    url: String,
    client: Client,
}

/// A response, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    request: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Api {
    pub(crate) fn of(role: &Role) -> Self {
        Self { url: role.http.clone(), client: http_client() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn place(&self, order: &Value) -> Answer {
        self.post(&order.to_string(), &[]).await
    }

    /// Places an order and asks to be answered with its outcome.
    pub(crate) async fn place_and_wait(&self, order: &Value, seconds: u64) -> Answer {
        self.post(&order.to_string(), &[("prefer", &format!("wait={seconds}"))]).await
    }

    /// Places an order under an id of the client.
    pub(crate) async fn put(&self, id: &str, body: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::PUT, &format!("/v1/orders/{id}"), headers, body).await
    }

    pub(crate) async fn post(&self, body: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::POST, "/v1/orders", headers, body).await
    }

    /// Places orders as one batch. Returns the answers to the lines.
    pub(crate) async fn place_batch(&self, lines: &str) -> Vec<Value> {
        let headers = [("content-type", "application/x-ndjson")];
        let answer = self.send(Method::POST, "/v1/orders:batch", &headers, lines).await.is(200);
        let text = match answer.body {
            Value::String(text) => text,
            only => only.to_string(),
        };
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Requests to adjust stock.
    pub(crate) async fn adjust(&self, request: &Value) -> Answer {
        self.send(Method::POST, "/v1/stock/adjustments", &[], &request.to_string()).await
    }

    /// Requests a change of an order: `cancel` or `confirm`.
    pub(crate) async fn request(&self, id: &str, change: &str) -> Answer {
        self.send(Method::POST, &format!("/v1/orders/{id}/{change}"), &[], "").await
    }

    pub(crate) async fn extend(&self, id: &str, hold_seconds: i64) -> Answer {
        let body = format!(r#"{{"hold_seconds":{hold_seconds}}}"#);
        self.send(Method::POST, &format!("/v1/orders/{id}/extend"), &[], &body).await
    }

    /// Fails the test where the OpenAPI document does not promise such an answer.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request = self
            .client
            .request(method.clone(), format!("{}{path}", self.url))
            .body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.timeout(Duration::from_secs(90)).send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a body");
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let answer = Answer { request: format!("{method} {path}"), status, headers, body };
        answer.is_promised(method.as_str(), path);
        answer
    }

    /// Waits until an order is in a state, and answers how it is shown then.
    pub(crate) async fn becomes(&self, id: &str, status: &str) -> Value {
        let begun = Instant::now();
        loop {
            let shown = self.get(&format!("/v1/orders/{id}")).await.is(200).body;
            if shown["status"] == status {
                return shown;
            }
            assert!(begun.elapsed() < PATIENCE, "order {id} is still {}", shown["status"]);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until an order is no longer pending, and answers how it is shown then.
    pub(crate) async fn decided(&self, id: &str) -> Value {
        let begun = Instant::now();
        loop {
            let shown = self.get(&format!("/v1/orders/{id}")).await.is(200).body;
            if shown["status"] != "PENDING" {
                return shown;
            }
            assert!(begun.elapsed() < PATIENCE, "order {id} is still pending");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Fails the test unless it is an RFC 9457 problem of this status.
    #[track_caller]
    pub(crate) fn problem(self, status: u16) -> Self {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let (kind, title, detail) = (&self.body["type"], &self.body["title"], &self.body["detail"]);
        assert!(kind.is_string() && title.is_string() && detail.is_string(), "{self:?}");
        assert_eq!(self.body["status"], status, "{self:?}");
        self.is(status)
    }

    /// The pointers to the fields that are to blame.
    pub(crate) fn blamed(&self) -> Vec<&str> {
        let errors = self.body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(errors.iter().all(|error| error["detail"].is_string()), "{self:?}");
        errors.iter().filter_map(|error| error["pointer"].as_str()).collect()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn order_id(&self) -> &str {
        self.body["order_id"].as_str().unwrap_or_else(|| panic!("no order_id: {self:?}"))
    }

    fn is_promised(&self, method: &str, path: &str) {
        let Some(route) = PROMISED["paths"].get(route(path)) else {
            assert_eq!(self.status, 404, "{} is no documented route: {self:?}", self.request);
            return;
        };
        let Some(operation) = route.get(method.to_lowercase()) else {
            assert_eq!(self.status, 405, "{} is not documented: {self:?}", self.request);
            return;
        };
        let promised = operation["responses"].get(self.status.to_string());
        let promised =
            promised.unwrap_or_else(|| panic!("{} may not answer {}", self.request, self.status));
        let promised = resolved(promised);
        let content_type = self.header("content-type");
        let is_empty = promised["content"].is_null() && content_type.is_empty();
        assert!(
            is_empty || promised["content"].get(content_type).is_some(),
            "{}: {content_type} is not promised",
            self.request
        );
        for (name, header) in promised["headers"].as_object().into_iter().flatten() {
            let is_optional = resolved(header)["required"] == false;
            assert!(
                is_optional || self.headers.contains_key(name),
                "{}: the header {name} is missing",
                self.request
            );
        }
    }
}

/// A part of the document, or the part that it refers to.
fn resolved(part: &'static Value) -> &'static Value {
    let Some(reference) = part["$ref"].as_str() else { return part };
    PROMISED.pointer(reference.trim_start_matches('#')).expect("a reference that resolves")
}

/// The documented route that a path belongs to, or the path itself. The query does not count.
fn route(path: &str) -> &str {
    let path = path.split('?').next().unwrap_or(path);
    let parts: Vec<_> = path.split('/').collect();
    let fits = |route: &&String| {
        let of_route: Vec<_> = route.split('/').collect();
        let mut pairs = of_route.iter().zip(&parts);
        of_route.len() == parts.len()
            && pairs.all(|(of_route, part)| {
                of_route == part || of_route.starts_with('{') && !part.is_empty()
            })
    };
    let routes = PROMISED["paths"].as_object().expect("paths");
    routes.keys().find(fits).map_or(path, String::as_str)
}
