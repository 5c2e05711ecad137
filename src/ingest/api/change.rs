//! `POST /v1/orders/{id}/cancel`, `/confirm` and `/extend`: changes an order.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header},
    response::Response,
    routing::{MethodRouter, post},
};

use super::{
    super::{body, changes::ChangeError, problem::Problem, request::ExtendRequest},
    Api, answer, location,
    shown::{order_id, summary_body, unknown_order},
};
use crate::{
    domain::{Effect, OrderId, OrderState, TraceContext},
    error_text,
    http::Connection,
    store::{Change, ChangeResult, OrderSummary},
};

/// A route that changes an order and ignores the body. Responds 200, or 202 if the order is
/// pending still. Fails as [`Api::change`] does.
pub(super) fn without_body(change: Change) -> MethodRouter<Arc<Api>> {
    post(
        async move |State(api): State<Arc<Api>>,
                    Extension(connection): Extension<Connection>,
                    path: Result<Path<String>, PathRejection>,
                    trace: Option<Extension<TraceContext>>,
                    headers: HeaderMap,
                    body: Body| {
            let id = order_id(path)?;
            ignore(&headers, body, &connection)?;
            api.change(id, change, trace).await
        },
    )
}

/// Responds 200. Fails as [`Api::change`] and [`ExtendRequest::parse`] do.
pub(super) async fn extend_order(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    trace: Option<Extension<TraceContext>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = order_id(path)?;
    body::check_content_type(&headers)?;
    let body = body::read(body, &connection).await?;
    let ExtendRequest { hold_seconds } = ExtendRequest::parse(&body.bytes, api.hold_max_seconds)?;
    api.change(id, Change::Extend { hold_seconds }, trace).await
}

/// Leaves the body unread. Fails with a 415 if its type is given and is not JSON.
fn ignore(headers: &HeaderMap, body: Body, connection: &Connection) -> Result<(), Problem> {
    body::check_content_type(headers)?;
    drop(body);
    connection.request_read();
    Ok(())
}

impl Api {
    /// Changes an order, and responds with its state after that.
    ///
    /// Fails with
    /// - 404 if no order has the id,
    /// - 409 if the state or the age of the order does not allow the change,
    /// - 500 if the order's row is corrupt,
    /// - 503 if nothing was changed, 504 if the order may be changed.
    async fn change(
        &self,
        id: OrderId,
        change: Change,
        trace: Option<Extension<TraceContext>>,
    ) -> Result<Response, Problem> {
        let trace = trace.map(|Extension(context)| context);
        let away = |_| ChangeError::StoreAway;
        let result = match self.committer.check_store().map_err(away) {
            Ok(()) => self.changer.change(id, change, trace).await,
            Err(error) => Err(error),
        };
        let ChangeResult { effect, order, .. } = result.map_err(|error| not_changed(id, &error))?;
        let Some(order) = order else { return Err(unknown_order()) };
        match effect {
            Effect::UnknownOrder => Err(unknown_order()),
            Effect::Refused | Effect::TooOld => Err(refused(&order, change)),
            Effect::Nothing
            | Effect::Move { .. }
            | Effect::Expire
            | Effect::ConfirmHold
            | Effect::ExtendHold
            | Effect::OweRelease
            | Effect::EndRelease => Ok(changed(&order)),
        }
    }
}

fn changed(order: &OrderSummary) -> Response {
    let is_pending = order.state == OrderState::Pending;
    let status = if is_pending { StatusCode::ACCEPTED } else { StatusCode::OK };
    answer(status, vec![location(order.order_id)], &summary_body(order, None))
}

fn refused(order: &OrderSummary, change: Change) -> Problem {
    let state = order.state;
    let why = match (change, state) {
        (Change::Cancel, OrderState::Completed) => "it is too old for its stock to be released",
        (Change::Extend { .. }, OrderState::Reserved) => {
            "the hold would last until the order is too old for its stock to be released"
        }
        (Change::Cancel, _) => "only an order that has not failed can be cancelled",
        (Change::Confirm, _) => "only a pending, reserved or completed order can be confirmed",
        (Change::Extend { .. }, _) => "only the hold of a reserved order can be extended",
    };
    Problem::new(StatusCode::CONFLICT, format!("the order is {state}: {why}")).of_order(order)
}

fn not_changed(id: OrderId, error: &ChangeError) -> Problem {
    match error {
        ChangeError::QueueFull | ChangeError::StoreAway | ChangeError::DeadlinePassed => {
            Problem::unavailable(error.to_string())
        }
        ChangeError::CommitUnknown => Problem::new(StatusCode::GATEWAY_TIMEOUT, error.to_string())
            .with("order_id", id.to_string())
            .header(header::LOCATION, location(id).1),
        ChangeError::Refused(_) => {
            let causes = error_text::with_causes(error);
            tracing::error!(order_id = %id, error = causes, "the order store refused a change");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        }
    }
}
