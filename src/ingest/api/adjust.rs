//! `POST /v1/stock/adjustments`: adjusts stock.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Extension, State},
    http::{HeaderMap, HeaderName, StatusCode},
    response::Response,
};
use chrono::Utc;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use super::{
    super::{
        body,
        problem::{FieldError, Problem},
    },
    Api, answer,
};
use crate::{
    backoff::jittered,
    crash_point::crash_point,
    domain::adjustment::{AdjustmentRefusal, AdjustmentRequest, Level, RefusalCause, StockChange},
    error_text,
    http::Connection,
    store::{Adjusted, StockStore, StoreError},
};

/// The pause before a request is repeated whose commit was not answered.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// On which terms clients may adjust stock.
#[derive(Clone)]
pub(crate) struct AdjustTerms {
    is_allowed: bool,
    /// Requests that run at a time: they leave sessions to reads of products.
    slots: Arc<Semaphore>,
    /// How long a request waits for a slot. For so long it is also repeated if its commit was not
    /// answered.
    deadline: Duration,
}

impl AdjustTerms {
    /// Requests take up to half of `pool_max` sessions.
    pub(crate) fn new(is_allowed: bool, pool_max: u32, deadline: Duration) -> Self {
        let slots = Arc::new(Semaphore::new((pool_max / 2).max(1) as usize));
        Self { is_allowed, slots, deadline }
    }
}

/// Responds 200 with the new level of each product.
///
/// Fails with
/// - 400, 408, 413, 415 or 422 if the request cannot be read or is invalid,
/// - 403 if the API takes no adjustments without authentication,
/// - 409 if the stock does not allow the request,
/// - 500 if the store refuses it,
/// - 503 if the store is away or too many requests wait, and nothing was changed,
/// - 504 if the stock may be changed.
pub(super) async fn adjust_stock(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let AdjustTerms { is_allowed, slots, deadline } = api.adjusting.clone();
    if !is_allowed {
        let detail = "adjustments need authentication, or auth.anonymous_stock; \
                      nothing was changed";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    body::check_content_type(&headers)?;
    let read = body::read(body, &connection).await?;
    let request = Arc::new(AdjustmentRequest::parse(&read.bytes)?);
    drop(read);
    let slot = timeout(deadline, slots.acquire_owned()).await;
    let Ok(Ok(slot)) = slot else {
        let detail = "too many requests to adjust stock; nothing was changed";
        return Err(Problem::unavailable(detail));
    };
    let store = api.stock.clone();
    // A task, since a client that goes away must not cut off a commit.
    let adjusted = tokio::spawn({
        let request = Arc::clone(&request);
        async move {
            let adjusted = adjust(&store, &request, deadline).await;
            drop(slot);
            adjusted
        }
    });
    let adjusted = adjusted.await;
    let adjusted = adjusted.unwrap_or(Err(AdjustError::Unknown));
    match adjusted.map_err(|error| not_adjusted(&request, &error))? {
        Adjusted::Done { levels, is_repeated } => Ok(done(&request, &levels, is_repeated)),
        Adjusted::OtherContent => Err(other_content()),
        Adjusted::Refused(refusals) => Err(refused(&request, &refusals)),
    }
}

/// Why a request has no result.
#[derive(Debug)]
enum AdjustError {
    /// Nothing was changed.
    StoreAway,
    /// No COMMIT was answered: the request may be done.
    Unknown,
    Refused(StoreError),
}

/// Does a request. Repeats it until the deadline while its commits are not answered: it is done
/// once however often it is repeated.
async fn adjust(
    store: &StockStore,
    request: &AdjustmentRequest,
    deadline: Duration,
) -> Result<Adjusted, AdjustError> {
    let begun = Instant::now();
    let mut is_unknown = false;
    loop {
        let away = match store.adjust(&[request], Utc::now()).await {
            Ok(adjusted) => {
                crash_point("ingest.adjusted");
                let adjusted = adjusted.into_iter().next().ok_or(AdjustError::StoreAway)?;
                return Ok(if is_unknown { first_time(adjusted) } else { adjusted });
            }
            Err(StoreError::CommitUnknown(error)) => {
                is_unknown = true;
                error.to_string()
            }
            Err(
                error @ (StoreError::Refused(_)
                | StoreError::Corrupt(_)
                | StoreError::Unencodable(_)),
            ) => return Err(AdjustError::Refused(error)),
            Err(
                error @ (StoreError::Conflict(_)
                | StoreError::Duplicate(_)
                | StoreError::Unavailable(_)
                | StoreError::LocksLost
                | StoreError::Unsupported(_)
                | StoreError::Migration(_)),
            ) => error.to_string(),
        };
        tracing::warn!(error = away, is_unknown, "stock not adjusted");
        match (is_unknown, begun.elapsed() < deadline) {
            (false, _) => return Err(AdjustError::StoreAway),
            (true, false) => return Err(AdjustError::Unknown),
            (true, true) => sleep(jittered(RETRY_DELAY, 0.5..1.5)).await,
        }
    }
}

/// Our own second attempt after an unknown commit is no repetition of the client.
fn first_time(adjusted: Adjusted) -> Adjusted {
    match adjusted {
        Adjusted::Done { levels, .. } => Adjusted::Done { levels, is_repeated: false },
        other @ (Adjusted::OtherContent | Adjusted::Refused(_)) => other,
    }
}

fn done(request: &AdjustmentRequest, levels: &[Level], is_repeated: bool) -> Response {
    let products = request.adjustments().iter().zip(levels).map(|(adjustment, level)| {
        json!({
            "product_id": adjustment.product_id.as_str(),
            "available": level.available,
            "version": level.version,
        })
    });
    let body = json!({"request_id": request.request_id(), "products": products.collect::<Value>()});
    let replayed = (HeaderName::from_static("idempotent-replayed"), "true".to_owned());
    answer(StatusCode::OK, if is_repeated { vec![replayed] } else { Vec::new() }, &body)
}

fn other_content() -> Problem {
    let detail = "another request with this id was done before".to_owned();
    Problem::invalid(&[FieldError { pointer: "/request_id".to_owned(), detail }])
}

/// A 422 if a product is unknown, else a 409 that names every product.
fn refused(request: &AdjustmentRequest, refusals: &[AdjustmentRefusal]) -> Problem {
    let error = |refusal: &AdjustmentRefusal| FieldError {
        pointer: format!("/adjustments/{}/{}", refusal.index, field(request, refusal)),
        detail: refusal.detail.clone(),
    };
    let unknown = refusals.iter().filter(|each| each.cause == RefusalCause::UnknownProduct);
    let unknown: Vec<_> = unknown.map(error).collect();
    if !unknown.is_empty() {
        return Problem::invalid(&unknown);
    }
    let errors: Vec<_> = refusals.iter().map(error).collect();
    let products = refusals.iter().map(|refusal| {
        let level = refusal.level.map(|level| (level.available, level.version));
        json!({
            "product_id": refusal.product_id.as_str(),
            "available": level.map(|(available, _)| available),
            "version": level.map(|(_, version)| version),
            "reason": refusal.cause.as_str(),
        })
    });
    Problem::new(StatusCode::CONFLICT, "the stock does not allow the request; nothing was changed")
        .with_errors(&errors)
        .with("request_id", request.request_id())
        .with("products", products.collect::<Value>())
}

/// The field of the adjustment that is to blame.
fn field(request: &AdjustmentRequest, refusal: &AdjustmentRefusal) -> &'static str {
    let adjustment = request.adjustments().get(refusal.index);
    match (refusal.cause.field(), adjustment.map(|adjustment| adjustment.change)) {
        ("delta", Some(StockChange::Set(_))) => "set",
        (field, _) => field,
    }
}

fn not_adjusted(request: &AdjustmentRequest, error: &AdjustError) -> Problem {
    let problem = match error {
        AdjustError::StoreAway => {
            Problem::unavailable("the stock store does not answer at present; nothing was changed")
        }
        AdjustError::Unknown => Problem::new(
            StatusCode::GATEWAY_TIMEOUT,
            "the stock may be changed or not; the same request may be sent again",
        ),
        AdjustError::Refused(error) => {
            let causes = error_text::with_causes(error);
            tracing::error!(error = causes, "the stock store refused an adjustment");
            let detail = "the stock store refuses the request; nothing was changed";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
        }
    };
    problem.with("request_id", request.request_id())
}
