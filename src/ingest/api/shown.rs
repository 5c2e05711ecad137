//! The state of an order as responses show it.

use axum::{
    extract::{Path, rejection::PathRejection},
    http::{StatusCode, header},
};
use serde_json::{Value, json};

use super::{super::problem::Problem, location, time};
use crate::{domain::OrderId, store::OrderSummary};

/// The state of an order without its lines: the short form. A member without a value is left out.
pub(super) fn summary_body(order: &OrderSummary, reference: Option<&str>) -> Value {
    let OrderSummary { order_id, state, reason, expires_at } = order;
    let mut body = json!({"order_id": order_id.to_string(), "status": state.as_str()});
    if let Some(reason) = reason {
        body["reason"] = json!(reason);
    }
    if let Some(expires_at) = expires_at {
        body["expires_at"] = json!(time(*expires_at));
    }
    if let Some(reference) = reference {
        body["reference"] = json!(reference);
    }
    body
}

impl Problem {
    /// Adds the members and the address of a 409 about an order. The reason of an order without one
    /// is its state.
    pub(super) fn of_order(self, order: &OrderSummary) -> Self {
        let OrderSummary { order_id, state, reason, .. } = order;
        self.with("order_id", order_id.to_string())
            .with("order_status", state.as_str())
            .with("reason", reason.as_deref().unwrap_or(state.as_str()))
            .header(header::LOCATION, location(*order_id).1)
    }
}

/// The id of an order in a path. Fails with a 404.
pub(super) fn order_id(path: Result<Path<String>, PathRejection>) -> Result<OrderId, Problem> {
    path.ok().and_then(|Path(id)| id.parse().ok()).ok_or_else(unknown_order)
}

/// 404.
pub(super) fn unknown_order() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such order")
}
