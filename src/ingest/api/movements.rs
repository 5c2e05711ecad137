//! `GET /v1/products/{id}/movements`: lists the changes of a product's stock that no order made.

use std::sync::Arc;

use axum::{
    extract::{Path, RawQuery, State, rejection::PathRejection},
    http::StatusCode,
    response::Response,
};
use serde_json::{Value, json};

use super::{super::problem::Problem, Api, answer, show::find_product, time};
use crate::store::StoredMovement;

/// The most movements of a response.
const PAGE_ROWS: u32 = 100;
/// The highest id of a movement that a client may name: JSON numbers are exact up to here.
const MAX_MOVEMENT_ID: i64 = (1 << 53) - 1;

/// Responds 200 with the movements after `after`, oldest first. `next` is there if there are more.
///
/// Fails with 400 if `after` is malformed, with 404 if no product has the id, and with 503 if the
/// stock store is away.
pub(super) async fn list_movements(
    State(api): State<Arc<Api>>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let after = after(query.as_deref().unwrap_or_default())?;
    let product = find_product(&api, path).await?.product;
    let found = api.stock.list_movements(&product.id, after, PAGE_ROWS + 1).await;
    let mut movements = found.map_err(|error| {
        tracing::warn!(%error, "movements not read");
        Problem::unavailable("the stock store does not answer at present")
    })?;
    let has_more = movements.len() > PAGE_ROWS as usize;
    movements.truncate(PAGE_ROWS as usize);
    let mut body = json!({
        "product_id": product.id.as_str(),
        "movements": movements.iter().map(movement_body).collect::<Value>(),
    });
    if let Some(last) = movements.last().filter(|_| has_more) {
        body["next"] = json!(last.id);
    }
    Ok(answer(StatusCode::OK, Vec::new(), &body))
}

/// The movement after which the page begins; 0 if the query names none.
fn after(query: &str) -> Result<i64, Problem> {
    let Some(given) = query.split('&').find_map(|pair| pair.strip_prefix("after=")) else {
        return Ok(0);
    };
    given.parse().ok().filter(|id| (0..=MAX_MOVEMENT_ID).contains(id)).ok_or_else(|| {
        let detail = "after must be 0, or a number that `next` or `movement_id` had";
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })
}

/// A member without a value is left out.
fn movement_body(movement: &StoredMovement) -> Value {
    let mut body = json!({
        "movement_id": movement.id,
        "kind": movement.kind,
        "quantity": movement.quantity,
        "created_at": time(movement.created_at),
    });
    for (name, value) in [
        ("reason", &movement.reason),
        ("reference", &movement.reference),
        ("request_id", &movement.request_id),
    ] {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    body
}
