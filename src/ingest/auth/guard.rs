//! Decides about each request before its handler sees it: who sends it, and whether it may.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use hyper::body::{Frame, SizeHint};
use tokio::time::sleep;

use super::{
    Access, bucket::Bucket, grant::Grant, principals::Usage, refusal::Refusal, scope::Need,
};
use crate::{
    config::PrincipalLimits,
    http::{Connection, HeldShare, Holding},
    ingest::prefer,
};

/// The route whose answers last until the order is decided.
const EVENTS_ROUTE: &str = "/v1/orders/{id}/events";

/// Who sends a request.
#[derive(Clone)]
pub(crate) struct Caller {
    /// Empty without authentication.
    name: Arc<str>,
    /// `None` without authentication.
    principal: Option<Admitted>,
    all: Arc<Bucket>,
    all_per_second: u32,
}

/// A principal, and what it may use.
#[derive(Clone)]
struct Admitted {
    usage: Arc<Usage>,
    limits: PrincipalLimits,
}

impl Caller {
    /// The caller of idempotency keys.
    pub(in crate::ingest) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the caller may send one more request. It holds up a stream of requests.
    pub(in crate::ingest) async fn pace(&self) {
        if let Some(Admitted { usage, limits }) = &self.principal {
            take_in_time(&usage.requests, limits.requests_per_second).await;
        }
        take_in_time(&self.all, self.all_per_second).await;
    }
}

async fn take_in_time(bucket: &Bucket, per_second: u32) {
    while let Err(delay) = bucket.take(per_second, Instant::now()) {
        sleep(delay).await;
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
    /// The caller of a request, and its place to wait if it waits.
    async fn admit(
        &self,
        route: &str,
        head: &Parts,
    ) -> Result<(Caller, Option<HeldShare>), Refusal> {
        let need = self.operations.need(route, &head.method);
        let grant = match need {
            Need::Nothing => None,
            _ if !self.is_on() => None,
            Need::Principal => Some(self.authenticate(&head.headers).await?),
            Need::AnyOf(scopes) => {
                let grant = self.authenticate(&head.headers).await?;
                if !grant.scopes.has_any(scopes) {
                    return Err(Refusal::NoScope(scopes.to_vec()));
                }
                Some(grant)
            }
        };
        let mut waiter = None;
        let mut principal = None;
        if let Some(grant) = &grant {
            let admitted = self.admit_principal(grant, head)?;
            waiter = admitted.waiter(route, &head.headers)?;
            principal = Some(admitted);
        }
        if need != Need::Nothing {
            let taken = self.all.take(self.limits.requests_per_second, Instant::now());
            taken.map_err(Refusal::AllRequests)?;
        }
        let caller = Caller {
            name: grant.map_or_else(|| Arc::from(""), |grant| grant.name),
            principal,
            all: Arc::clone(&self.all),
            all_per_second: self.limits.requests_per_second,
        };
        Ok((caller, waiter))
    }

    fn admit_principal(&self, grant: &Grant, head: &Parts) -> Result<Admitted, Refusal> {
        let now = Instant::now();
        let usage = self.principals.usage(&grant.name, now).ok_or(Refusal::TooManyPrincipals)?;
        let limits = grant.limits.applied_to(self.limits.principal);
        let taken = usage.requests.take(limits.requests_per_second, now);
        taken.map_err(Refusal::PrincipalRequests)?;
        if let Some(connection) = head.extensions.get::<Connection>() {
            let PrincipalLimits { connections, body_bytes, .. } = limits;
            if !connection.belongs_to(&usage.share, connections, body_bytes) {
                return Err(Refusal::PrincipalConnections);
            }
        }
        Ok(Admitted { usage, limits })
    }

    /// What the token of a request grants.
    async fn authenticate(&self, headers: &HeaderMap) -> Result<Grant, Refusal> {
        let token = bearer(headers)?;
        if let Some(grant) = self.find_token(token) {
            return Ok(grant);
        }
        self.verify_jwt(token).await
    }
}

impl Admitted {
    /// A place to wait, if the request waits for an outcome or watches an order.
    fn waiter(&self, route: &str, headers: &HeaderMap) -> Result<Option<HeldShare>, Refusal> {
        let waits = route == EVENTS_ROUTE || prefer::wait(headers).is_some();
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
}
