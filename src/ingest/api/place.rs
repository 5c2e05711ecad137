//! `POST /v1/orders`: saves an order, and waits for its outcome if the client prefers it.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    body::Body,
    extract::{Extension, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use chrono::{SubsecRound as _, Utc};
use serde_json::json;

use super::{
    super::{
        OrderRequest, SaveError, body, prefer,
        problem::{FieldError, Problem},
        subscriptions::DecidedState,
    },
    Api, answer, location, time,
};
use crate::{
    domain::{OrderId, OrderState},
    error_text,
    http::Connection,
    store::NewOrder,
};

/// Responds 202, or 201 or 409 if the client waited for the outcome. Fails as [`Api::place`] does.
pub(super) async fn place_order(
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
        let request = OrderRequest::parse(&body.bytes, self.hold_max_seconds)?;
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
            hold_seconds: request.hold_seconds,
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

/// 202: the order is durable, its outcome is not known yet.
fn accepted(id: OrderId) -> Response {
    let body = json!({"order_id": id.to_string(), "status": OrderState::Pending.as_str()});
    answer(StatusCode::ACCEPTED, vec![location(id)], &body)
}

/// 201 for a completed or reserved order, 409 for every other outcome.
fn decided(id: OrderId, outcome: DecidedState) -> Response {
    let DecidedState { state, reason, expires_at } = outcome;
    let applied = (HeaderName::from_static("preference-applied"), "wait".to_owned());
    match state {
        OrderState::Completed | OrderState::Reserved => {
            let mut body = json!({"order_id": id.to_string(), "status": state.as_str()});
            if let Some(expires_at) = expires_at {
                body["expires_at"] = json!(time(expires_at));
            }
            return answer(StatusCode::CREATED, vec![location(id), applied], &body);
        }
        OrderState::Pending | OrderState::Failed | OrderState::Cancelled => {}
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
