//! The routes of the API. The files of `api/` have the handlers.

mod adjust;
mod batch;
mod change;
mod movements;
mod place;
mod show;
mod shown;
mod watch;

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value};
use tokio::net::TcpListener;

pub(crate) use adjust::AdjustTerms;
pub(crate) use batch::BatchSlots;
pub(super) use place::{
    Receipt, Source, check_age, expired_key, products, receipt, refuse_products,
};

use super::{
    Access, Catalog, Changer, Committer, OutcomeWatch, auth,
    problem::{Problem, respond},
};
use crate::{
    domain::{Horizon, OrderId, TraceParent},
    http::{self, Connection, ListenerTls, Refused, ServeTerms},
    lifecycle::Shutdown,
    store::{Change, OrderStore, StockStore},
    telemetry::{Metrics, TracedRequest, Traces},
};

pub(super) const OPENAPI: &str = include_str!("openapi.json");
/// The label of a request that no route takes.
const OTHER_ROUTE: &str = "other";
/// The statuses with which the server refuses a request before it reaches a route.
const REFUSALS: [&str; 2] = ["414", "431"];

/// What the handlers read from headers themselves, as a text.
#[cfg(test)]
pub(super) fn read_headers(headers: &axum::http::HeaderMap) -> String {
    let known = watch::last_event_id(headers);
    format!("{known:?} {}", show::has_version(headers, "\"7\""))
}

/// The parts that the handlers use.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) orders: OrderStore,
    pub(crate) stock: StockStore,
    pub(crate) catalog: Catalog,
    pub(crate) committer: Committer,
    pub(crate) changer: Changer,
    pub(crate) outcomes: OutcomeWatch,
    /// The most unpublished events in the outbox. Above it, new orders are refused with 503.
    pub(crate) outbox_max: u64,
    /// Up to which age a client's id is that of a new order.
    pub(crate) horizon: Horizon,
    /// The longest hold that a client may ask for.
    pub(crate) hold_max_seconds: u32,
    pub(crate) batch_slots: BatchSlots,
    pub(crate) adjusting: AdjustTerms,
    /// Who may use the API.
    pub(crate) access: Arc<Access>,
    pub(crate) max_connections: usize,
    /// `None`: no TLS.
    pub(crate) tls: Option<Arc<ListenerTls>>,
    pub(crate) shutdown: Shutdown,
    pub(crate) metrics: Metrics,
    pub(crate) traces: Traces,
}

/// Serves the API until a stop is requested. Then finishes the requests in flight.
pub(crate) async fn serve(listener: TcpListener, api: Arc<Api>) {
    let shutdown = api.shutdown.clone();
    let metrics = Arc::new(api.metrics.clone());
    let watching = Watching { metrics: Arc::clone(&metrics), traces: api.traces.clone() };
    begin_at_zero(&metrics);
    let terms = serve_terms(&api);
    let document = document(api.hold_max_seconds, api.access.is_on()).to_string();
    let guard = middleware::from_fn_with_state(Arc::clone(&api.access), auth::guard);
    let app = Router::new()
        .route("/v1/orders", post(place::place_order))
        .route("/v1/orders:batch", post(batch::place_batch))
        .route("/v1/orders/{id}", get(show::show_order).put(place::put_order))
        .route("/v1/orders/{id}/cancel", change::without_body(Change::Cancel))
        .route("/v1/orders/{id}/confirm", change::without_body(Change::Confirm))
        .route("/v1/orders/{id}/extend", post(change::extend_order))
        .route("/v1/orders/{id}/events", get(watch::watch_order))
        .route("/v1/products/{id}", get(show::show_product))
        .route("/v1/products/{id}/movements", get(movements::list_movements))
        .route("/v1/stock/adjustments", post(adjust::adjust_stock))
        .route("/openapi.json", get(async move || json_text(document)))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such resource"))
        .method_not_allowed_fallback(async |method: Method| {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed here"))
        })
        .layer(guard)
        .layer(middleware::from_fn_with_state(watching, watch_request))
        .with_state(api);
    http::serve(listener, app, terms, shutdown).await;
}

fn serve_terms(api: &Api) -> ServeTerms {
    let (requests, refusals) =
        (api.metrics.http_requests.clone(), api.metrics.http_refusals.clone());
    let count_refusal = move |refused: Refused<'_>| match refused {
        Refused::Request(status) => requests.with_label_values(&[OTHER_ROUTE, status]).inc(),
        Refused::Handshake => refusals.with_label_values(&[auth::HANDSHAKE]).inc(),
    };
    ServeTerms {
        max_connections: api.max_connections,
        count_refusal: Arc::new(count_refusal),
        tls: api.tls.clone(),
    }
}

/// The API's document, as the program has it.
pub(super) fn own_document() -> Value {
    serde_json::from_str(OPENAPI).unwrap_or_default()
}

/// The API's document, with the longest hold that this process accepts. Without authentication, no
/// operation needs a token.
fn document(hold_max_seconds: u32, needs_token: bool) -> Value {
    let mut document = own_document();
    document["components"]["schemas"]["HoldSeconds"]["maximum"] = hold_max_seconds.into();
    if !needs_token {
        let paths = document["paths"].as_object_mut();
        let methods = paths.into_iter().flat_map(|paths| paths.values_mut());
        let operations = methods.filter_map(Value::as_object_mut).flat_map(Map::values_mut);
        for operation in operations.filter_map(Value::as_object_mut) {
            operation.remove("security");
        }
    }
    document
}

/// Creates the metrics of every response in the API's document at 0, so that `rate()` sees the
/// first increment.
fn begin_at_zero(metrics: &Metrics) {
    let document = own_document();
    for (route, methods) in document["paths"].as_object().into_iter().flatten() {
        metrics.http_request_seconds.with_label_values(&[route]);
        metrics.http_requests.with_label_values(&[route.as_str(), "405"]);
        for (_, operation) in methods.as_object().into_iter().flatten() {
            let statuses = operation["responses"].as_object().into_iter().flat_map(Map::keys);
            for status in statuses.filter(|status| !REFUSALS.contains(&status.as_str())) {
                metrics.http_requests.with_label_values(&[route, status]);
            }
        }
    }
    for status in REFUSALS.iter().chain(&["400", "404", "503"]) {
        metrics.http_requests.with_label_values(&[OTHER_ROUTE, *status]);
    }
    metrics.http_request_seconds.with_label_values(&[OTHER_ROUTE]);
}

/// What is noted of every request.
#[derive(Clone)]
struct Watching {
    metrics: Arc<Metrics>,
    traces: Traces,
}

/// Counts, times and traces every request. A sampled request carries its `TraceContext`.
async fn watch_request(
    State(Watching { metrics, traces }): State<Watching>,
    mut request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map(MatchedPath::as_str);
    let connection = request.extensions().get::<Connection>();
    let traced = TracedRequest {
        method: request.method().as_str(),
        route,
        path: request.uri().path(),
        is_encrypted: connection.is_some_and(Connection::is_encrypted),
    };
    let mut span = traces.http_request(|| trace_parent(request.headers()), traced);
    let route = route.unwrap_or(OTHER_ROUTE);
    if let Some(span) = &span {
        request.extensions_mut().insert(span.context().clone());
    }
    let response = next.run(request).await;
    if let Some(span) = &mut span {
        span.answered(response.status().as_u16());
    }
    metrics.http_requests.with_label_values(&[route, response.status().as_str()]).inc();
    metrics.http_request_seconds.with_label_values(&[route]).observe(begun.elapsed().as_secs_f64());
    response
}

/// The trace of the caller. `None` without exactly one valid `traceparent`.
fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut parents = headers.get_all("traceparent").iter();
    let parent = parents.next().filter(|_| parents.next().is_none())?;
    // One list may come as several headers.
    let states: Vec<_> = headers.get_all("tracestate").iter().map(HeaderValue::as_bytes).collect();
    TraceParent::parse(parent.as_bytes(), Some(&states.join(&b","[..])))
}

fn json_text(text: String) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text)
}

fn answer(status: StatusCode, mut headers: Vec<(HeaderName, String)>, body: &Value) -> Response {
    headers.push((header::CONTENT_TYPE, "application/json".to_owned()));
    respond(status, &headers, body)
}

fn location(id: OrderId) -> (HeaderName, String) {
    (header::LOCATION, format!("/v1/orders/{id}"))
}

/// RFC 3339, UTC, with milliseconds.
fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::OrderState;

    #[test]
    fn the_document_of_the_api_has_every_order_state() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();

        let documented = &document["components"]["schemas"]["Status"]["enum"];

        assert_eq!(*documented, json!(OrderState::ALL.map(OrderState::as_str)));
    }
}
