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
    Catalog, Committer, Desk, OrderRequest, Rejected, body, prefer,
    problem::{FieldError, Problem, respond},
};
use crate::{
    domain::{OrderId, OrderState, ProductId},
    http::{self, Connection},
    lifecycle::Shutdown,
    store::{NewOrder, OrderStore, StockStore, StoredOrder},
    telemetry::Metrics,
};

const OPENAPI: &str = include_str!("openapi.json");
/// The label of a request that no route takes.
const OTHER_ROUTE: &str = "other";
/// Answers to requests that reach no route.
const REFUSALS: [&str; 2] = ["414", "431"];

/// What the handlers work with.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) orders: OrderStore,
    pub(crate) stock: StockStore,
    pub(crate) catalog: Catalog,
    pub(crate) committer: Committer,
    pub(crate) desk: Desk,
    /// Unpublished orders beyond which no more are taken.
    pub(crate) outbox_max: u64,
    pub(crate) max_connections: usize,
    pub(crate) metrics: Metrics,
}

/// Serves the API until a stop is requested; requests in flight are answered.
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

/// A rate needs a first value: shows every answer that the API's document names.
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
    let Some(patience) = prefer::wait(&headers) else { return Ok(accepted(order_id)) };
    match api.desk.wait(order_id, patience).await {
        Some((state, reason)) => Ok(decided(order_id, state, reason)),
        None => Ok(accepted(order_id)),
    }
}

impl Api {
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
        let at_present =
            |rejected: Rejected| Problem::unavailable(format!("{rejected}; nothing was saved"));
        self.committer.check_store().map_err(at_present)?;
        self.refuse_unknown_products(&request).await?;
        if self.metrics.outbox_pending.get().unsigned_abs() > self.outbox_max {
            return Err(Problem::unavailable("the broker lags behind; nothing was saved"));
        }
        let order = NewOrder {
            order_id: OrderId::generate(),
            reference: request.reference,
            customer_id: request.customer_id,
            lines: request.lines,
            accepted_at: Utc::now().trunc_subsecs(3),
        };
        let order_id = order.order_id;
        self.committer.save(order).await.map_err(|rejected| not_saved(order_id, &rejected))?;
        Ok(order_id)
    }

    async fn refuse_unknown_products(&self, request: &OrderRequest) -> Result<(), Problem> {
        let lines = request.lines.as_slice();
        let products: BTreeSet<_> = lines.iter().map(|line| line.product_id().clone()).collect();
        let unknown = self.catalog.unknown(&products).await;
        let blamed =
            lines.iter().enumerate().filter(|(_, line)| unknown.contains(line.product_id()));
        let errors: Vec<_> = blamed
            .map(|(index, line)| FieldError {
                pointer: format!("/lines/{index}/product_id"),
                detail: format!("unknown product {}", line.product_id()),
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(Problem::invalid(&errors)) }
    }
}

fn not_saved(order_id: OrderId, rejected: &Rejected) -> Problem {
    match rejected {
        Rejected::Overloaded | Rejected::Unavailable | Rejected::TooLate => {
            Problem::unavailable(rejected.to_string())
        }
        Rejected::Unknown => Problem::new(StatusCode::GATEWAY_TIMEOUT, rejected.to_string())
            .with("order_id", order_id.to_string())
            .header(header::LOCATION, location(order_id).1),
        Rejected::Refused(_) => {
            tracing::error!(%order_id, error = %rejected, "a valid order was refused");
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the order store refuses this order; nothing was saved",
            )
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

fn accepted(id: OrderId) -> Response {
    let body = json!({"order_id": id.to_string(), "status": OrderState::Pending.as_str()});
    answer(StatusCode::ACCEPTED, vec![location(id)], &body)
}

fn decided(id: OrderId, state: OrderState, reason: Option<String>) -> Response {
    let applied = (HeaderName::from_static("preference-applied"), "wait".to_owned());
    if state == OrderState::Completed {
        let body = json!({"order_id": id.to_string(), "status": state.as_str()});
        return answer(StatusCode::CREATED, vec![location(id), applied], &body);
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

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

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
    let body = json!({"product_id": product.id.as_str(), "name": product.name, "available": product.available});
    Ok(answer(StatusCode::OK, Vec::new(), &body))
}
