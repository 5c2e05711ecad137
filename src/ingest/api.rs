//! The routes of the API: what each handler does, and which response the client receives.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::{Extension, MatchedPath, Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use super::{
    Catalog, Committer, OrderRequest, OutcomeWatch, SaveError, body,
    outcomes::DecidedState,
    prefer,
    problem::{FieldError, Problem, respond},
};
use crate::{
    domain::{OrderId, OrderState, ProductId},
    error_text,
    http::{self, Connection},
    lifecycle::Shutdown,
    store::{NewOrder, OrderStore, StockStore, StoredOrder},
    telemetry::Metrics,
};

const OPENAPI: &str = include_str!("openapi.json");
/// The label of a request that no route takes.
const OTHER_ROUTE: &str = "other";
/// The statuses with which the server refuses a request before it reaches a route.
const REFUSALS: [&str; 2] = ["414", "431"];

/// The parts that the handlers use.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) orders: OrderStore,
    pub(crate) stock: StockStore,
    pub(crate) catalog: Catalog,
    pub(crate) committer: Committer,
    pub(crate) outcomes: OutcomeWatch,
    /// The most unpublished events in the outbox. Above it, new orders are refused with 503.
    pub(crate) outbox_max: u64,
    pub(crate) max_connections: usize,
    pub(crate) metrics: Metrics,
}

/// Serves the API until a stop is requested. Then finishes the requests in flight.
pub(crate) async fn serve(listener: TcpListener, api: Api, shutdown: Shutdown) {
    let (metrics, max_connections) = (api.metrics.clone(), api.max_connections);
    begin_at_zero(&metrics);
    let requests = metrics.http_requests.clone();
    let app = Router::new()
        .route("/v1/orders", post(place_order))
        .route("/v1/orders/{id}", get(show_order))
        .route("/v1/products/{id}", get(show_product))
        .route(
            "/openapi.json",
            get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI)),
        )
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no such resource"))
        .method_not_allowed_fallback(async |method: Method| {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed here"))
        })
        .layer(middleware::from_fn_with_state(metrics, measure))
        .with_state(Arc::new(api));
    let count_refusal =
        move |status: &str| requests.with_label_values(&[OTHER_ROUTE, status]).inc();
    http::serve(listener, app, max_connections, Arc::new(count_refusal), shutdown).await;
}

/// Creates the metrics of every response in the API's document at 0, so that `rate()` sees the
/// first increment.
fn begin_at_zero(metrics: &Metrics) {
    let document: Value = serde_json::from_str(OPENAPI).unwrap_or_default();
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

/// Counts and times every request.
async fn measure(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or(OTHER_ROUTE, MatchedPath::as_str)
        .to_owned();
    let response = next.run(request).await;
    metrics.http_requests.with_label_values(&[route.as_str(), response.status().as_str()]).inc();
    metrics
        .http_request_seconds
        .with_label_values(&[&route])
        .observe(begun.elapsed().as_secs_f64());
    response
}

/// Responds 202, or 201 or 409 if the client waited for the outcome. Fails as [`Api::place`] does.
async fn place_order(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let placed = api.place(&headers, body, &connection).await;
    let result = match &placed {
        Ok(_) => "accepted",
        Err(problem) if problem.status() == StatusCode::UNPROCESSABLE_ENTITY => "invalid",
        Err(_) => "rejected",
    };
    api.metrics.orders_ingested.with_label_values(&[result]).inc();
    let order_id = placed?;
    let Some(max_wait) = prefer::wait(&headers) else { return Ok(accepted(order_id)) };
    match api.outcomes.wait(order_id, max_wait).await {
        Some(outcome) => Ok(decided(order_id, outcome)),
        None => Ok(accepted(order_id)),
    }
}

impl Api {
    /// Saves the order of a request and returns its id. Fails with the problem that the client
    /// receives; unless it is a 504, nothing was saved.
    async fn place(
        &self,
        headers: &HeaderMap,
        body: Body,
        connection: &Connection,
    ) -> Result<OrderId, Problem> {
        body::check_content_type(headers)?;
        if headers.contains_key("idempotency-key") {
            let detail = "Idempotency-Key is not supported yet; nothing was saved";
            return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, detail));
        }
        let body = body::read(body, connection).await?;
        let request = OrderRequest::parse(&body.bytes)?;
        let nothing_saved =
            |error: SaveError| Problem::unavailable(format!("{error}; nothing was saved"));
        self.committer.check_store().map_err(nothing_saved)?;
        self.refuse_unknown_products(&request).await?;
        if self.metrics.outbox_pending.get().unsigned_abs() > self.outbox_max {
            return Err(Problem::unavailable("the broker lags behind; nothing was saved"));
        }
        let order = NewOrder {
            order_id: OrderId::generate(),
            reference: request.reference,
            customer_id: request.customer_id,
            hold_seconds: None,
            lines: request.lines,
            accepted_at: Utc::now().trunc_subsecs(3),
        };
        let order_id = order.order_id;
        self.committer.save(order).await.map_err(|error| not_saved(order_id, &error))?;
        Ok(order_id)
    }

    /// Fails with a 422 that names the lines whose product does not exist.
    async fn refuse_unknown_products(&self, request: &OrderRequest) -> Result<(), Problem> {
        let lines = request.lines.as_slice();
        let products: BTreeSet<_> = lines.iter().map(|line| line.product_id().clone()).collect();
        let unknown = self.catalog.find_unknown(&products).await;
        let errors: Vec<_> = lines
            .iter()
            .enumerate()
            .filter(|(_, line)| unknown.contains(line.product_id()))
            .map(|(index, line)| FieldError {
                pointer: format!("/lines/{index}/product_id"),
                detail: format!("unknown product {}", line.product_id()),
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(Problem::invalid(&errors)) }
    }
}

fn not_saved(order_id: OrderId, error: &SaveError) -> Problem {
    match error {
        SaveError::QueueFull | SaveError::StoreAway | SaveError::DeadlinePassed => {
            Problem::unavailable(error.to_string())
        }
        SaveError::CommitUnknown => Problem::new(StatusCode::GATEWAY_TIMEOUT, error.to_string())
            .with("order_id", order_id.to_string())
            .header(header::LOCATION, location(order_id).1),
        SaveError::RefusedByStore(_) => {
            let causes = error_text::with_causes(error);
            tracing::error!(%order_id, error = causes, "the order store refused a valid order");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        }
    }
}

fn answer(status: StatusCode, mut headers: Vec<(HeaderName, String)>, body: &Value) -> Response {
    headers.push((header::CONTENT_TYPE, "application/json".to_owned()));
    respond(status, &headers, body)
}

fn location(id: OrderId) -> (HeaderName, String) {
    (header::LOCATION, format!("/v1/orders/{id}"))
}

/// 202: the order is durable, its outcome is not known yet.
fn accepted(id: OrderId) -> Response {
    let body = json!({"order_id": id.to_string(), "status": OrderState::Pending.as_str()});
    answer(StatusCode::ACCEPTED, vec![location(id)], &body)
}

/// 201 for a completed order, 409 for every other outcome.
fn decided(id: OrderId, DecidedState { state, reason }: DecidedState) -> Response {
    let applied = (HeaderName::from_static("preference-applied"), "wait".to_owned());
    match state {
        OrderState::Completed => {
            let body = json!({"order_id": id.to_string(), "status": state.as_str()});
            return answer(StatusCode::CREATED, vec![location(id), applied], &body);
        }
        OrderState::Pending | OrderState::Reserved | OrderState::Failed | OrderState::Cancelled => {
        }
    }
    let reason = reason.unwrap_or_else(|| state.as_str().to_owned());
    Problem::new(StatusCode::CONFLICT, format!("the order is {state}: {reason}"))
        .with("order_id", id.to_string())
        .with("order_status", state.as_str())
        .with("reason", reason)
        .header(header::LOCATION, location(id).1)
        .header(applied.0, applied.1)
        .into_response()
}

/// Responds 200. Fails with 404 if no order has the id, and with 503 if the order store is away.
async fn show_order(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "no such order");
    let id: OrderId = path.ok().and_then(|Path(id)| id.parse().ok()).ok_or_else(unknown)?;
    let found = api.orders.find(id).await.map_err(|error| {
        tracing::warn!(%error, "order not read");
        Problem::unavailable("the order store does not answer at present")
    })?;
    Ok(answer(StatusCode::OK, Vec::new(), &order_body(&found.ok_or_else(unknown)?)))
}

fn order_body(order: &StoredOrder) -> Value {
    let lines = order.lines.as_slice().iter();
    let lines = lines
        .map(|line| json!({"product_id": line.product_id().as_str(), "quantity": line.quantity()}));
    let mut body = json!({
        "order_id": order.order_id.to_string(),
        "status": order.status.as_str(),
        "lines": lines.collect::<Vec<_>>(),
        "created_at": time(order.created_at),
        "updated_at": time(order.updated_at),
    });
    let optional = [
        ("reason", &order.reason),
        ("reference", &order.reference),
        ("customer_id", &order.customer_id),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    body
}

/// RFC 3339, UTC, with milliseconds.
fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Responds 200. Fails with 404 if no product has the id, and with 503 if the stock store is away.
async fn show_product(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "no such product");
    let id = path.ok().and_then(|Path(id)| ProductId::parse(&id).ok()).ok_or_else(unknown)?;
    let found = api.stock.find_products(&[id]).await.map_err(|error| {
        tracing::warn!(%error, "product not read");
        Problem::unavailable("the stock store does not answer at present")
    })?;
    let product = found.first().ok_or_else(unknown)?;
    let body = json!({
        "product_id": product.id.as_str(),
        "name": product.name,
        "available": product.available,
    });
    Ok(answer(StatusCode::OK, Vec::new(), &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_of_the_api_has_every_order_state() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();

        let documented = &document["components"]["schemas"]["Status"]["enum"];

        assert_eq!(*documented, json!(OrderState::ALL.map(OrderState::as_str)));
    }
}
