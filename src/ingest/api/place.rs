//! `POST /v1/orders` and `PUT /v1/orders/{id}`: save an order, or find the one that an earlier
//! equal request has made. They wait for its outcome if the client prefers it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Extension, Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use chrono::{SubsecRound as _, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{
    super::{
        OrderRequest, SaveError,
        auth::Caller,
        body, idempotency, prefer,
        problem::{FieldError, Problem},
    },
    Api, answer, location,
    shown::{summary_body, unknown_order},
    time,
};
use crate::{
    domain::{Horizon, Lines, OrderId, OrderState, ProductId, TraceContext},
    error_text,
    http::Connection,
    store::{IdempotencyKey, Identity, KeyedRequest, NewOrder, OrderSummary, Placed, Placement},
    telemetry::order_log,
};

/// The caller of the intake's keys. No authenticated caller has this name: theirs have no colon.
const INTAKE: &str = "intake:";

/// `POST`: ingest makes the order's id. Responds as [`Api::respond`] does.
pub(super) async fn place_order(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    Extension(caller): Extension<Caller>,
    trace: Option<Extension<TraceContext>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let trace = trace.map(|Extension(context)| Box::new(context));
    let placed = async {
        body::check_content_type(&headers)?;
        let key = idempotency::key(&headers)?;
        let body = body::read(body, &connection).await?;
        let request = OrderRequest::parse(&body.bytes, api.hold_max_seconds)?;
        api.place(Source::of_key(key, &caller), request, trace).await
    };
    let placed = placed.await;
    api.respond(placed, &headers).await
}

/// `PUT`: the client made the order's id. Responds as [`Api::respond`] does.
pub(super) async fn put_order(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    trace: Option<Extension<TraceContext>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let trace = trace.map(|Extension(context)| Box::new(context));
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
        let request = OrderRequest::parse(&body.bytes, api.hold_max_seconds)?;
        api.place(Source::Client(id), request, trace).await
    };
    let placed = placed.await;
    api.respond(placed, &headers).await
}

/// Who makes the id of an order, and by what a repetition of its request is recognized.
pub(in crate::ingest) enum Source {
    /// Ingest makes the id. Each request makes an order of its own.
    Ingest,
    /// Ingest makes the id. The client's key is recognized.
    Key(IdempotencyKey),
    /// The client has made the id, which is recognized.
    Client(OrderId),
    /// Ingest makes the id. The key of a record is recognized, apart from the keys of HTTP.
    RecordKey {
        key: String,
        /// The key may be forgotten: no new order is placed with it.
        is_expired: bool,
    },
}

impl Source {
    /// `key`: that of the request, if it has one.
    pub(super) fn of_key(key: Option<String>, caller: &Caller) -> Self {
        let keyed = |key| Self::Key(IdempotencyKey { caller: caller.name().to_owned(), key });
        key.map_or(Self::Ingest, keyed)
    }

    /// Whether the key may be forgotten.
    pub(in crate::ingest) fn is_expired(&self) -> bool {
        matches!(self, Self::RecordKey { is_expired: true, .. })
    }

    /// The order that the request asks for, accepted now.
    pub(in crate::ingest) fn placement(self, request: OrderRequest) -> Placement {
        let order_id = match self {
            Self::Client(id) => id,
            Self::Ingest | Self::Key(_) | Self::RecordKey { .. } => OrderId::generate(),
        };
        let order = NewOrder {
            order_id,
            reference: request.reference,
            customer_id: request.customer_id,
            hold_seconds: request.hold_seconds,
            lines: request.lines,
            accepted_at: Utc::now().trunc_subsecs(3),
        };
        let identity = match self {
            Self::Ingest => None,
            Self::Client(_) => Some(Identity::OrderId),
            Self::Key(key) => Some(keyed(key, &order)),
            Self::RecordKey { key, .. } => {
                Some(keyed(IdempotencyKey { caller: INTAKE.to_owned(), key }, &order))
            }
        };
        Placement { order, identity, trace: None }
    }
}

/// What a request has made, or what an earlier equal request had made.
pub(in crate::ingest) struct Receipt {
    order_id: OrderId,
    /// The order of an earlier request in its present state.
    pub(in crate::ingest) replayed: Option<Box<OrderSummary>>,
}

/// The order of a request, as its answer shows it.
pub(super) struct AnsweredOrder {
    pub(super) order: OrderSummary,
    /// An earlier request has made the order.
    pub(super) is_replayed: bool,
}

impl Api {
    /// Responds as [`code_and_body`] does.
    async fn respond(
        &self,
        placed: Result<Receipt, Problem>,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        let max_wait = prefer::wait(headers);
        let AnsweredOrder { order, is_replayed } = self.answered(placed, max_wait).await?;
        let mut response = match code_and_body(&order) {
            Ok((status, body)) => answer(status, vec![location(order.order_id)], &body),
            Err(problem) => problem.into_response(),
        };
        let added = response.headers_mut();
        if max_wait.is_some() && order.state != OrderState::Pending {
            added.insert("preference-applied", HeaderValue::from_static("wait"));
        }
        if is_replayed {
            added.insert("idempotent-replayed", HeaderValue::from_static("true"));
        }
        Ok(response)
    }

    /// Counts a request, and waits up to `max_wait` for the outcome of its order.
    ///
    /// Fails with the problem of a request that has placed no order.
    pub(super) async fn answered(
        &self,
        placed: Result<Receipt, Problem>,
        max_wait: Option<Duration>,
    ) -> Result<AnsweredOrder, Problem> {
        self.count(&placed);
        let Receipt { order_id, replayed } = placed?;
        let is_replayed = replayed.is_some();
        let known = replayed.filter(|order| order.state != OrderState::Pending);
        let outcome = match (known, max_wait) {
            (None, Some(max_wait)) => self.outcomes.wait(order_id, max_wait).await,
            (known, _) => known.map(|order| *order),
        };
        let state = OrderState::Pending;
        let pending = OrderSummary { order_id, state, reason: None, expires_at: None };
        Ok(AnsweredOrder { order: outcome.unwrap_or(pending), is_replayed })
    }

    /// Counts a request by its result.
    pub(in crate::ingest) fn count(&self, placed: &Result<Receipt, Problem>) {
        let result = match placed {
            Ok(Receipt { replayed: None, .. }) => "accepted",
            Ok(Receipt { replayed: Some(_), .. }) => "replayed",
            Err(problem) if problem.status() == StatusCode::UNPROCESSABLE_ENTITY => "invalid",
            Err(_) => "rejected",
        };
        self.metrics.orders_ingested.with_label_values(&[result]).inc();
    }

    /// Saves the order of a request, unless an earlier request has made it. Fails with the problem
    /// that the client receives; unless it is a 504, nothing was saved.
    pub(in crate::ingest) async fn place(
        &self,
        source: Source,
        request: OrderRequest,
        trace: Option<Box<TraceContext>>,
    ) -> Result<Receipt, Problem> {
        let is_expired = source.is_expired();
        let placement = Placement { trace, ..source.placement(request) };
        let order_id = placement.order.order_id;
        let is_id = placement.identity == Some(Identity::OrderId);
        let not_saved = |error| not_saved(order_id, &error);
        self.committer.check_store().map_err(not_saved)?;
        let checked = if is_expired { Err(expired_key()) } else { self.check(&placement).await };
        let placed = match checked {
            Ok(()) => {
                let NewOrder { lines, hold_seconds, .. } = &placement.order;
                order_log::accepted(order_id, lines.as_slice().len(), *hold_seconds);
                self.committer.save(placement).await.map_err(not_saved)?
            }
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
        let Placement { order, identity, .. } = placement;
        if *identity == Some(Identity::OrderId) {
            check_age(order, self.horizon)?;
        }
        self.refuse_unknown_products(&order.lines).await?;
        if self.is_outbox_full() {
            return Err(Problem::unavailable("the broker lags behind; nothing was saved"));
        }
        Ok(())
    }

    /// Whether more events wait for the broker than `outbox_max`.
    pub(in crate::ingest) fn is_outbox_full(&self) -> bool {
        self.metrics.outbox_pending.get().unsigned_abs() > self.outbox_max
    }

    /// Fails with a 422 that names the lines whose product does not exist.
    async fn refuse_unknown_products(&self, lines: &Lines) -> Result<(), Problem> {
        let unknown = self.catalog.find_unknown(&products(lines)).await;
        refuse_products(lines, &unknown)
    }
}

/// The products of the lines.
pub(in crate::ingest) fn products(lines: &Lines) -> BTreeSet<ProductId> {
    lines.as_slice().iter().map(|line| line.product_id().clone()).collect()
}

/// Fails with a 422 that names the lines whose product is among `unknown`.
pub(in crate::ingest) fn refuse_products(
    lines: &Lines,
    unknown: &BTreeSet<ProductId>,
) -> Result<(), Problem> {
    let errors = lines.as_slice().iter().enumerate();
    let errors: Vec<_> = errors
        .filter(|(_, line)| unknown.contains(line.product_id()))
        .map(|(index, line)| FieldError {
            pointer: format!("/lines/{index}/product_id"),
            detail: format!("unknown product {}", line.product_id()),
        })
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(Problem::invalid(&errors)) }
}

/// Fails with a 422 if the id of the order says that it is too old or from the future.
pub(in crate::ingest) fn check_age(order: &NewOrder, horizon: Horizon) -> Result<(), Problem> {
    let now = order.accepted_at;
    let allowed = horizon.releasable_from(now)..horizon.decidable(now).end;
    if allowed.contains(&order.order_id) {
        return Ok(());
    }
    let made_at = time(order.order_id.made_at());
    let from = time(allowed.start.made_at());
    let detail = format!(
        "the order id was made at {made_at}: a new order's id must be younger than {from}, and \
         at most a day ahead; nothing was saved"
    );
    let is_old = order.order_id < allowed.start;
    Err(if is_old {
        Problem::expired(detail)
    } else {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
    })
}

fn keyed(key: IdempotencyKey, order: &NewOrder) -> Identity {
    Identity::Key(Box::new(KeyedRequest { key, sha256: idempotency::digest(order) }))
}

pub(in crate::ingest) fn expired_key() -> Problem {
    Problem::expired(
        "the record is older than keys are kept for certain, and its key is not known; nothing \
         was saved",
    )
}

/// Fails with a 422 if the key or the id stands for another request.
pub(in crate::ingest) fn receipt(
    order_id: OrderId,
    is_id: bool,
    placed: Placed,
) -> Result<Receipt, Problem> {
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

/// 202 for a pending order: it is durable, its outcome is not known yet. 201 for a completed or
/// reserved order. Fails with a 409 for every other outcome.
pub(super) fn code_and_body(order: &OrderSummary) -> Result<(StatusCode, Value), Problem> {
    match order.state {
        OrderState::Pending => Ok((StatusCode::ACCEPTED, summary_body(order, None))),
        OrderState::Completed | OrderState::Reserved => {
            Ok((StatusCode::CREATED, summary_body(order, None)))
        }
        state @ (OrderState::Failed | OrderState::Cancelled) => {
            let reason = order.reason.as_deref().unwrap_or(state.as_str());
            let detail = format!("the order is {state}: {reason}");
            Err(Problem::new(StatusCode::CONFLICT, detail).of_order(order))
        }
    }
}
