//! The state of an order as responses show it.

use axum::{
    extract::{Path, rejection::PathRejection},
    http::StatusCode,
};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{super::problem::Problem, time};
use crate::domain::{OrderId, OrderState};

/// The state of an order without its lines: the short form.
pub(super) struct ShownState {
    pub(super) order_id: OrderId,
    pub(super) state: OrderState,
    pub(super) reason: Option<String>,
    /// When its hold ends.
    pub(super) expires_at: Option<DateTime<Utc>>,
    pub(super) reference: Option<String>,
}

impl ShownState {
    /// A member without a value is left out.
    pub(super) fn body(&self) -> Value {
        let mut body =
            json!({"order_id": self.order_id.to_string(), "status": self.state.as_str()});
        if let Some(reason) = &self.reason {
            body["reason"] = json!(reason);
        }
        if let Some(expires_at) = self.expires_at {
            body["expires_at"] = json!(time(expires_at));
        }
        if let Some(reference) = &self.reference {
            body["reference"] = json!(reference);
        }
        body
    }
}

impl Problem {
    /// Adds the members of a 409 about an order. The reason of an order without one is its state.
    pub(super) fn of_order(self, id: OrderId, state: OrderState, reason: Option<String>) -> Self {
        self.with("order_id", id.to_string())
            .with("order_status", state.as_str())
            .with("reason", reason.unwrap_or_else(|| state.as_str().to_owned()))
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
