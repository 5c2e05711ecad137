//! Decides about each request before its handler sees it: who sends it, and whether it may.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, Method, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use hyper::body::{Frame, SizeHint};
use tokio::time::sleep;

use super::{
    Access,
    bucket::Bucket,
    grant::Grant,
    principals::Usage,
    refusal::Refusal,
    scope::{Need, Scopes},
};
use crate::{
    config::PrincipalLimits,
    http::{Connection, HeldShare, Holding},
    ingest::{prefer, problem::Problem},
};

/// How often a stream checks that the token of its request is still good.
pub(in crate::ingest) const RECHECK_EVERY: Duration = Duration::from_secs(5);
/// A stream leaves this part of a second's requests to single requests, which do not wait.
const RESERVED_PART: u32 = 4;

/// A request that lasts: ingest checks its token again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ingest) enum StreamedOperation {
    /// A stream of orders.
    Batch,
    /// The events of an order.
    Events,
}

impl StreamedOperation {
    fn of(route: &str) -> Option<Self> {
        [Self::Batch, Self::Events].into_iter().find(|operation| operation.route() == route)
    }

    fn route(self) -> &'static str {
        match self {
            Self::Batch => "/v1/orders:batch",
            Self::Events => "/v1/orders/{id}/events",
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Batch => Method::POST,
            Self::Events => Method::GET,
        }
    }
}

/// Who sends a request.
#[derive(Clone)]
pub(crate) struct Caller {
    /// Empty without authentication.
    name: Arc<str>,
    /// `None` without authentication.
    principal: Option<Admitted>,
    access: Arc<Access>,
}

/// A principal, what it may use, and the token that says so.
#[derive(Clone)]
struct Admitted {
    usage: Arc<Usage>,
    limits: PrincipalLimits,
    token: Arc<str>,
}

/// The caller has no place to wait left.
#[derive(Debug)]
pub(in crate::ingest) struct NoPlaceToWait;

impl Caller {
    /// The caller of idempotency keys.
    pub(in crate::ingest) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the principal may send the next line of a stream, which counts as a request.
    pub(in crate::ingest) async fn pace_principal(&self) {
        if let Some(Admitted { usage, limits, .. }) = &self.principal {
            take_in_time(&usage.requests, limits.requests_per_second).await;
        }
    }

    /// Waits until all principals together may send the next line of a stream.
    pub(in crate::ingest) async fn pace_all(&self) {
        take_in_time(&self.access.all, self.access.limits.requests_per_second).await;
    }

    /// Takes a place to wait for the outcome of a line. `None` without authentication.
    pub(in crate::ingest) fn place_to_wait(&self) -> Result<Option<HeldShare>, NoPlaceToWait> {
        let Some(Admitted { usage, limits, .. }) = &self.principal else { return Ok(None) };
        let place = usage.share.take(Holding::Waiters, 1, limits.waiters);
        place.map(Some).ok_or(NoPlaceToWait)
    }

    /// Checks the token of the request again: it may have been removed, or have expired. Uses the
    /// limits that it has now for requests, waiters and bodies.
    ///
    /// Fails with the answer to a new request with this token.
    pub(in crate::ingest) fn check_again(
        &mut self,
        operation: StreamedOperation,
        connection: &Connection,
    ) -> Result<(), Problem> {
        let Some(admitted) = &mut self.principal else { return Ok(()) };
        let access = &self.access;
        let checked = access.known_grant(&admitted.token).and_then(|grant| {
            access.need(operation.route(), &operation.method()).check(grant.scopes)?;
            Ok(grant)
        });
        let grant = checked.map_err(|refusal| {
            access.count(&refusal, operation.route());
            refusal.problem()
        })?;
        // The limits of another name belong to another principal.
        if grant.name == self.name {
            admitted.limits = grant.limits.applied_to(access.limits.principal);
            let PrincipalLimits { connections, body_bytes, .. } = admitted.limits;
            // The stream keeps its connection, even if the principal may open no more of them.
            let share = &admitted.usage.share;
            let _is_one_of_its = connection.belongs_to(share, connections, body_bytes);
        }
        Ok(())
    }
}

async fn take_in_time(bucket: &Bucket, per_second: u32) {
    let reserve = per_second / RESERVED_PART;
    while let Err(delay) = bucket.take_leaving(reserve, per_second, Instant::now()) {
        sleep(delay).await;
    }
}

impl Need<'_> {
    fn check(self, scopes: Scopes) -> Result<(), Refusal> {
        match self {
            Self::AnyOf(wanted) if !scopes.has_any(wanted) => {
                Err(Refusal::NoScope(wanted.to_vec()))
            }
            Self::AnyOf(_) | Self::Principal | Self::Nothing => Ok(()),
        }
    }
}

/// Passes a request on, or answers it with the problem of its [`Refusal`].
pub(in crate::ingest) async fn guard(
    State(access): State<Arc<Access>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(route) = request.extensions().get::<MatchedPath>().cloned() else {
        return next.run(request).await;
    };
    let (mut head, body) = request.into_parts();
    let admitted = access.admit(route.as_str(), &head).await;
    let (caller, waiter) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            access.count(&refusal, route.as_str());
            return refusal.problem().into_response();
        }
    };
    head.extensions.insert(caller);
    let response = next.run(Request::from_parts(head, body)).await;
    match waiter {
        Some(waiter) => response.map(|body| Body::new(HeldBody { body, _waiter: waiter })),
        None => response,
    }
}

impl Access {
    fn need(&self, route: &str, method: &Method) -> Need<'_> {
        self.operations.need(route, method)
    }

    /// The caller of a request, and its place to wait if it waits.
    async fn admit(
        self: &Arc<Self>,
        route: &str,
        head: &Parts,
    ) -> Result<(Caller, Option<HeldShare>), Refusal> {
        let need = self.need(route, &head.method);
        let mut caller = Caller { name: Arc::from(""), principal: None, access: Arc::clone(self) };
        let mut waiter = None;
        if need != Need::Nothing && self.is_on() {
            let token = bearer(&head.headers)?;
            let grant = self.authenticate(token).await?;
            // A request without a right counts too.
            let admitted = self.admit_principal(&grant, token, head)?;
            need.check(grant.scopes)?;
            waiter = admitted.waiter(route, &head.headers)?;
            (caller.name, caller.principal) = (grant.name, Some(admitted));
        }
        if need != Need::Nothing {
            let taken = self.all.take(self.limits.requests_per_second, Instant::now());
            taken.map_err(Refusal::AllRequests)?;
        }
        Ok((caller, waiter))
    }

    fn admit_principal(
        &self,
        grant: &Grant,
        token: &str,
        head: &Parts,
    ) -> Result<Admitted, Refusal> {
        let now = Instant::now();
        let usage = self.principals.usage(&grant.name, now).ok_or(Refusal::TooManyPrincipals)?;
        let limits = grant.limits.applied_to(self.limits.principal);
        usage.requests.take(limits.requests_per_second, now).map_err(Refusal::PrincipalRequests)?;
        if let Some(connection) = head.extensions.get::<Connection>() {
            let PrincipalLimits { connections, body_bytes, .. } = limits;
            if !connection.belongs_to(&usage.share, connections, body_bytes) {
                return Err(Refusal::PrincipalConnections);
            }
        }
        Ok(Admitted { usage, limits, token: token.into() })
    }

    /// What a token grants.
    async fn authenticate(&self, token: &str) -> Result<Grant, Refusal> {
        match self.known_grant(token) {
            Err(Refusal::UnknownKey) => self.ask_for_key(token).await,
            known => known,
        }
    }
}

impl Admitted {
    /// A place to wait, if the request waits for an outcome or watches an order.
    fn waiter(&self, route: &str, headers: &HeaderMap) -> Result<Option<HeldShare>, Refusal> {
        let waits = match StreamedOperation::of(route) {
            Some(StreamedOperation::Events) => true,
            // Each of its lines takes a place.
            Some(StreamedOperation::Batch) => false,
            None => prefer::wait(headers).is_some(),
        };
        if !waits {
            return Ok(None);
        }
        let waiter = self.usage.share.take(Holding::Waiters, 1, self.limits.waiters);
        waiter.map(Some).ok_or(Refusal::PrincipalWaiters)
    }
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(Refusal::NoToken)?;
    if values.next().is_some() {
        return Err(Refusal::Malformed);
    }
    let (scheme, token) =
        value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(Refusal::Malformed)?;
    let token = token.trim_start_matches(' ');
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    let is_token = !token.is_empty() && token.bytes().all(is_allowed);
    if scheme.eq_ignore_ascii_case("bearer") && is_token {
        Ok(token)
    } else {
        Err(Refusal::Malformed)
    }
}

/// A body whose request holds a place to wait until its end.
struct HeldBody {
    body: Body,
    _waiter: HeldShare,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{AuthConfig, LimitsConfig},
        http::HeldMemory,
        telemetry::Metrics,
    };

    fn read(values: &[&[u8]]) -> Result<String, Refusal> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.to_vec().try_into().unwrap());
        }
        bearer(&headers).map(str::to_owned)
    }

    #[test]
    fn a_token_is_read_from_one_header_of_the_scheme_bearer() {
        for value in ["Bearer sl_a", "bearer sl_a", "BEARER  sl_a"] {
            assert_eq!(read(&[value.as_bytes()]), Ok("sl_a".to_owned()), "{value}");
        }
        assert_eq!(read(&[]), Err(Refusal::NoToken));
        for value in ["", "Bearer", "Bearer ", "Basic sl_a", "sl_a", "Bearer a b", "Bearer a,b"] {
            assert_eq!(read(&[value.as_bytes()]), Err(Refusal::Malformed), "{value}");
        }
        assert_eq!(read(&[b"Bearer \xff"]), Err(Refusal::Malformed));
        assert_eq!(read(&[b"Bearer a", b"Bearer a"]), Err(Refusal::Malformed));
    }

    #[tokio::test]
    async fn a_stream_takes_over_the_new_limits_of_its_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // The digest of "test".
        let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        std::fs::write(file.path(), format!("shop {digest} orders:write waiters=1")).unwrap();
        let auth = AuthConfig {
            anonymous_stock: false,
            tokens_file: Some(file.path().to_owned()),
            jwks: None,
        };
        let principal = PrincipalLimits { connections: 1, ..PrincipalLimits::default() };
        let limits = LimitsConfig { requests_per_second: 0, connections: 0, principal };
        let access = Arc::new(Access::open(&auth, &limits, &Metrics::new().unwrap()).unwrap());
        let connection = Connection::of_test().await;
        let operation = StreamedOperation::Batch;
        let request = Request::post(operation.route())
            .header(header::AUTHORIZATION, "Bearer test")
            .extension(connection.clone());
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let Ok((mut caller, None)) = access.admit(operation.route(), &parts).await else {
            panic!("refused")
        };
        let _place = caller.place_to_wait().unwrap();
        assert!(caller.place_to_wait().is_err());

        let line = format!("shop {digest} orders:write waiters=2 body_bytes=9");
        access.replace_tokens(line.as_bytes()).unwrap();
        caller.check_again(operation, &connection).unwrap();

        assert!(caller.place_to_wait().is_ok());
        let mut held = HeldMemory::default();
        assert!(connection.hold_body(&mut held, 9).is_ok());
        assert!(connection.hold_body(&mut held, 10).is_err());
        let line = format!("shop {digest} orders:read");
        access.replace_tokens(line.as_bytes()).unwrap();
        assert!(caller.check_again(operation, &connection).is_err());
    }
}
