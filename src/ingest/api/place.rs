//! `POST /v1/orders` and `PUT /v1/orders/{id}`: save an order, or find the one that an earlier
//! equal request has made. They wait for its outcome if the client prefers it.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    body::Body,
    extract::{Extension, Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use chrono::{SubsecRound as _, Utc};
use uuid::Uuid;

use super::{
    super::{
        OrderRequest, SaveError, body, idempotency, prefer,
        problem::{FieldError, Problem},
    },
    Api, answer, location,
    shown::{summary_body, unknown_order},
    time,
};
use crate::{
    domain::{Lines, OrderId, OrderState},
    error_text,
    http::Connection,
    store::{IdempotencyKey, Identity, KeyedRequest, NewOrder, OrderSummary, Placed, Placement},
};

/// The caller of requests without authentication. Its keys stay valid with authentication.
const ANONYMOUS: &str = "";

/// `POST`: ingest makes the order's id. Responds as [`Api::respond`] does.
pub(super) async fn place_order(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let placed = async {
        body::check_content_type(&headers)?;
        let key = idempotency::key(&headers)?;
        let body = body::read(body, &connection).await?;
        api.place(key.map_or(Source::Ingest, Source::Key), &body.bytes).await
    };
    let placed = placed.await;
    api.respond(placed, &headers).await
}

/// `PUT`: the client made the order's id. Responds as [`Api::respond`] does.
pub(super) async fn put_order(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let placed = async {
        let id =
            path.ok().and_then(|Path(id)| Uuid::try_parse(&id).ok().filter(|_| id.len() == 36));
        let id = id.ok_or_else(unknown_order)?;
        body::check_content_type(&headers)?;
        if headers.contains_key("idempotency-key") {
            let detail = "the order id is the key of a PUT: send no Idempotency-Key with it; \
                          nothing was saved";
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        }
        let id = OrderId::from_slice(id.as_bytes()).map_err(|_| {
            let detail = "the order id must be a UUIDv7; nothing was saved";
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
        })?;
        let body = body::read(body, &connection).await?;
        api.place(Source::Client(id), &body.bytes).await
    };
    let placed = placed.await;
    api.respond(placed, &headers).await
}

/// Who makes the id of an order, and by what a repetition of its request is recognized.
enum Source {
    /// Ingest makes the id. Each request makes an order of its own.
    Ingest,
    /// Ingest makes the id. The client's key is recognized.
    Key(String),
    /// The client has made the id, which is recognized.
    Client(OrderId),
}

/// What a request has made, or what an earlier equal request had made.
struct Receipt {
    order_id: OrderId,
    /// The order of an earlier request in its present state.
    replayed: Option<Box<OrderSummary>>,
}

impl Api {
    /// Responds 202, or 201 or 409 if the outcome is known. For a new order that is only if the
    /// client waits for it.
    async fn respond(
        &self,
        placed: Result<Receipt, Problem>,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        let result = match &placed {
            Ok(Receipt { replayed: None, .. }) => "accepted",
            Ok(Receipt { replayed: Some(_), .. }) => "replayed",
            Err(problem) if problem.status() == StatusCode::UNPROCESSABLE_ENTITY => "invalid",
            Err(_) => "rejected",
        };
        self.metrics.orders_ingested.with_label_values(&[result]).inc();
        let Receipt { order_id, replayed } = placed?;
        let (is_replayed, max_wait) = (replayed.is_some(), prefer::wait(headers));
        let known = replayed.filter(|order| order.state != OrderState::Pending);
        let outcome = match (known, max_wait) {
            (None, Some(max_wait)) => self.outcomes.wait(order_id, max_wait).await,
            (known, _) => known.map(|order| *order),
        };
        let mut response = match outcome {
            Some(order) => decided(&order, max_wait.is_some()),
            None => accepted(order_id),
        };
        if is_replayed {
            let yes = HeaderValue::from_static("true");
            response.headers_mut().insert("idempotent-replayed", yes);
        }
        Ok(response)
    }

    /// Saves the order of a request, unless an earlier request has made it. Fails with the problem
    /// that the client receives; unless it is a 504, nothing was saved.
    async fn place(&self, source: Source, body: &[u8]) -> Result<Receipt, Problem> {
        let request = OrderRequest::parse(body, self.hold_max_seconds)?;
        let order_id = match source {
            Source::Client(id) => id,
            Source::Ingest | Source::Key(_) => OrderId::generate(),
        };
        let order = NewOrder {
            order_id,
            reference: request.reference,
            customer_id: request.customer_id,
            hold_seconds: request.hold_seconds,
            lines: request.lines,
            accepted_at: Utc::now().trunc_subsecs(3),
        };
        let identity = match source {
            Source::Ingest => None,
            Source::Client(_) => Some(Identity::OrderId),
            Source::Key(key) => {
                let key = IdempotencyKey { caller: ANONYMOUS.to_owned(), key };
                let sha256 = idempotency::digest(&order);
                Some(Identity::Key(Box::new(KeyedRequest { key, sha256 })))
            }
        };
        let is_id = identity == Some(Identity::OrderId);
        let placement = Placement { order, identity };
        self.committer.check_store().map_err(|error| nothing_saved(&error))?;
        let placed = match self.check(&placement).await {
            Ok(()) => self.committer.save(placement).await.map_err(|e| not_saved(order_id, &e))?,
            Err(refusal) => self.find_placed(&placement).await?.ok_or(refusal)?,
        };
        receipt(order_id, is_id, placed)
    }

    /// What an earlier request with the same key or id has made. Fails with a 503 if the order
    /// store does not answer.
    async fn find_placed(&self, placement: &Placement) -> Result<Option<Placed>, Problem> {
        if placement.identity.is_none() {
            return Ok(None);
        }
        self.orders.find_placed(placement).await.map_err(|error| {
            tracing::warn!(%error, "earlier requests not looked up");
            Problem::unavailable("the order store does not answer at present; nothing was saved")
        })
    }

    /// Whether a new order may be saved. Fails with a 422 if it is invalid, and with a 503 if the
    /// outbox is full.
    async fn check(&self, placement: &Placement) -> Result<(), Problem> {
        let Placement { order, identity } = placement;
        if *identity == Some(Identity::OrderId) {
            self.check_age(order)?;
        }
        self.refuse_unknown_products(&order.lines).await?;
        if self.metrics.outbox_pending.get().unsigned_abs() > self.outbox_max {
            return Err(Problem::unavailable("the broker lags behind; nothing was saved"));
        }
        Ok(())
    }

    /// Fails with a 422 if the id of the order says that it is too old or from the future.
    fn check_age(&self, order: &NewOrder) -> Result<(), Problem> {
        let now = order.accepted_at;
        let allowed = self.horizon.releasable_from(now)..self.horizon.decidable(now).end;
        if allowed.contains(&order.order_id) {
            return Ok(());
        }
        let made_at = time(order.order_id.made_at());
        let from = time(allowed.start.made_at());
        let detail = format!(
            "the order id was made at {made_at}: a new order's id must be younger than {from}, and \
             at most a day ahead; nothing was saved"
        );
        Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
    }

    /// Fails with a 422 that names the lines whose product does not exist.
    async fn refuse_unknown_products(&self, lines: &Lines) -> Result<(), Problem> {
        let lines = lines.as_slice();
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

fn nothing_saved(error: &SaveError) -> Problem {
    Problem::unavailable(format!("{error}; nothing was saved"))
}

/// Fails with a 422 if the key or the id stands for another request.
fn receipt(order_id: OrderId, is_id: bool, placed: Placed) -> Result<Receipt, Problem> {
    match placed {
        Placed::New => Ok(Receipt { order_id, replayed: None }),
        Placed::Replayed(order) => Ok(Receipt { order_id: order.order_id, replayed: Some(order) }),
        Placed::OtherRequest => {
            let what = if is_id { "order id" } else { "Idempotency-Key" };
            let detail = format!("this {what} stands for another request; nothing was saved");
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
        }
    }
}

fn not_saved(order_id: OrderId, error: &SaveError) -> Problem {
    match error {
        SaveError::QueueFull | SaveError::StoreAway | SaveError::DeadlinePassed => {
            Problem::unavailable(error.to_string())
        }
        SaveError::CommitUnknown(id) => {
            Problem::new(StatusCode::GATEWAY_TIMEOUT, error.to_string())
                .with("order_id", id.to_string())
                .header(header::LOCATION, location(*id).1)
        }
        SaveError::RefusedByStore(_) => {
            let causes = error_text::with_causes(error);
            tracing::error!(%order_id, error = causes, "the order store refused a valid order");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        }
    }
}

/// 202: the order is durable, its outcome is not known yet.
fn accepted(order_id: OrderId) -> Response {
    let state = OrderState::Pending;
    let order = OrderSummary { order_id, state, reason: None, expires_at: None };
    answer(StatusCode::ACCEPTED, vec![location(order_id)], &summary_body(&order, None))
}

/// 201 for a completed or reserved order, 409 for every other outcome. `is_preferred`: the client
/// asked to wait.
fn decided(order: &OrderSummary, is_preferred: bool) -> Response {
    let mut response = match order.state {
        OrderState::Completed | OrderState::Reserved => {
            let body = summary_body(order, None);
            answer(StatusCode::CREATED, vec![location(order.order_id)], &body)
        }
        state @ (OrderState::Pending | OrderState::Failed | OrderState::Cancelled) => {
            let reason = order.reason.as_deref().unwrap_or(state.as_str());
            let detail = format!("the order is {state}: {reason}");
            Problem::new(StatusCode::CONFLICT, detail).of_order(order).into_response()
        }
    };
    if is_preferred {
        let wait = HeaderValue::from_static("wait");
        response.headers_mut().insert("preference-applied", wait);
    }
    response
}
