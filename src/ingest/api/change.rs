//! `POST /v1/orders/{id}/cancel`, `/confirm` and `/extend`: changes an order.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};

use super::{
    super::{body, changes::ChangeError, problem::Problem, request::ExtendRequest},
    Api, answer, location,
    shown::{ShownState, order_id, unknown_order},
};
use crate::{
    domain::{Effect, OrderId, OrderState},
    error_text,
    http::Connection,
    store::{Change, ChangeResult, OrderAfter},
};

/// Responds 200. Fails as [`Api::change`] does. Ignores the body.
pub(super) async fn cancel_order(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = order_id(path)?;
    ignore(&headers, body, &connection)?;
    api.change(id, Change::Cancel).await
}

/// Responds 200, or 202 if the order is pending still. Fails as [`Api::change`] does. Ignores the
/// body.
pub(super) async fn confirm_order(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = order_id(path)?;
    ignore(&headers, body, &connection)?;
    api.change(id, Change::Confirm).await
}

/// Responds 200. Fails as [`Api::change`] and [`ExtendRequest::parse`] do.
pub(super) async fn extend_order(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = order_id(path)?;
    body::check_content_type(&headers)?;
    let body = body::read(body, &connection).await?;
    let ExtendRequest { hold_seconds } = ExtendRequest::parse(&body.bytes, api.hold_max_seconds)?;
    api.change(id, Change::Extend { hold_seconds }).await
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
    async fn change(&self, id: OrderId, change: Change) -> Result<Response, Problem> {
        let away = |_| ChangeError::StoreAway;
        let result = match self.committer.check_store().map_err(away) {
            Ok(()) => self.changer.change(id, change).await,
            Err(error) => Err(error),
        };
        let ChangeResult { order_id, effect, order } =
            result.map_err(|error| not_changed(id, &error))?;
        let Some(order) = order else { return Err(unknown_order()) };
        match effect {
            Effect::UnknownOrder => Err(unknown_order()),
            Effect::Refused | Effect::TooOld => Err(refused(order_id, change, order)),
            Effect::Nothing
            | Effect::Move { .. }
            | Effect::Expire
            | Effect::ConfirmHold
            | Effect::ExtendHold
            | Effect::OweRelease
            | Effect::EndRelease => Ok(changed(order_id, order)),
        }
    }
}

fn changed(id: OrderId, order: OrderAfter) -> Response {
    let OrderAfter { state, reason, expires_at } = order;
    let is_pending = state == OrderState::Pending;
    let status = if is_pending { StatusCode::ACCEPTED } else { StatusCode::OK };
    let shown = ShownState { order_id: id, state, reason, expires_at, reference: None };
    answer(status, vec![location(id)], &shown.body())
}

fn refused(id: OrderId, change: Change, order: OrderAfter) -> Problem {
    let OrderAfter { state, reason, .. } = order;
    let why = match (change, state) {
        (Change::Cancel, OrderState::Completed) => "it is too old for its stock to be released",
        (Change::Extend { .. }, OrderState::Reserved) => {
            "the hold would last until the order is too old for its stock to be released"
        }
        (Change::Cancel, _) => "only an order that has not failed can be cancelled",
        (Change::Confirm, _) => "only a pending, reserved or completed order can be confirmed",
        (Change::Extend { .. }, _) => "only the hold of a reserved order can be extended",
    };
    Problem::new(StatusCode::CONFLICT, format!("the order is {state}: {why}"))
        .of_order(id, state, reason)
        .header(header::LOCATION, location(id).1)
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
