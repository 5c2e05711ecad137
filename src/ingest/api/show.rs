//! `GET`: shows an order or a product.

use std::sync::Arc;

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::{Value, json};

use super::{
    super::problem::Problem,
    Api, answer,
    shown::{order_id, summary_body, unknown_order},
    time,
};
use crate::{
    domain::{OrderId, ProductId},
    store::{StoredOrder, VersionedProduct},
};

/// Responds 200. Fails with 404 if no order has the id, and with 503 if the order store is away.
pub(super) async fn show_order(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let id = order_id(path)?;
    let order = api.find_order(id).await?.ok_or_else(unknown_order)?;
    Ok(answer(StatusCode::OK, Vec::new(), &order_body(&order)))
}

impl Api {
    /// Fails with 503 if the order store is away.
    pub(super) async fn find_order(&self, id: OrderId) -> Result<Option<StoredOrder>, Problem> {
        self.orders.find(id).await.map_err(|error| {
            tracing::warn!(%error, "order not read");
            Problem::unavailable("the order store does not answer at present")
        })
    }
}

fn order_body(order: &StoredOrder) -> Value {
    let lines = order.lines.as_slice().iter();
    let lines = lines
        .map(|line| json!({"product_id": line.product_id().as_str(), "quantity": line.quantity()}));
    let mut body = summary_body(&order.summary, order.reference.as_deref());
    body["lines"] = lines.collect();
    body["created_at"] = json!(time(order.created_at));
    body["updated_at"] = json!(time(order.updated_at));
    if let Some(customer_id) = &order.customer_id {
        body["customer_id"] = json!(customer_id);
    }
    body
}

/// Responds 200, or 304 if the client has the present version (`If-None-Match`). Fails with 404 if
/// no product has the id, and with 503 if the stock store is away.
pub(super) async fn show_product(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let VersionedProduct { product, version } = find_product(&api, path).await?;
    let body = json!({
        "product_id": product.id.as_str(),
        "name": product.name,
        "available": product.available,
        "version": version,
    });
    let tag = format!("\"{version}\"");
    if has_version(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(answer(StatusCode::OK, vec![(header::ETAG, tag)], &body))
}

/// The product of a path. Fails with 404 if no product has the id, and with 503 if the stock store
/// is away.
pub(super) async fn find_product(
    api: &Api,
    path: Result<Path<String>, PathRejection>,
) -> Result<VersionedProduct, Problem> {
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "no such product");
    let id = path.ok().and_then(|Path(id)| ProductId::parse(&id).ok()).ok_or_else(unknown)?;
    let found = api.stock.find_product(&id).await.map_err(|error| {
        tracing::warn!(%error, "product not read");
        Problem::unavailable("the stock store does not answer at present")
    })?;
    found.ok_or_else(unknown)
}

/// Whether `If-None-Match` names the entity tag (RFC 9110, section 13.1.2).
pub(super) fn has_version(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|named| named == "*" || named.strip_prefix("W/").unwrap_or(named) == tag)
}
