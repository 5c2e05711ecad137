//! The spans of HTTP requests and of shared transactions.

use opentelemetry::trace::SpanKind;
use tokio::time::Instant;

use super::{Span, Traces, span::Parent};
use crate::domain::{OrderId, TraceContext, TraceParent};

/// The methods that the name of a span may have. A client can send any other word.
const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
/// The most characters of a method that is none of [`METHODS`].
const MAX_METHOD_CHARS: usize = 64;

/// A request as its span describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TracedRequest<'r> {
    pub(crate) method: &'r str,
    /// `None` if no route takes the request.
    pub(crate) route: Option<&'r str>,
    pub(crate) path: &'r str,
    pub(crate) is_encrypted: bool,
}

/// A transaction that orders share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedTransaction {
    /// The store and the transaction, as in `order_store place`.
    pub(crate) name: &'static str,
    pub(crate) begun: Instant,
    pub(crate) orders: usize,
}

impl Traces {
    /// Begins the span of an HTTP request. `None` unless it is sampled.
    pub(crate) fn http_request(
        &self,
        parent: impl FnOnce() -> Option<TraceParent>,
        request: TracedRequest<'_>,
    ) -> Option<Span> {
        let TracedRequest { method, route, path, is_encrypted } = request;
        let known = METHODS.into_iter().find(|known| *known == method);
        let in_name = known.unwrap_or("HTTP");
        let name = || match route {
            Some(route) => format!("{in_name} {route}"),
            None => in_name.to_owned(),
        };
        let mut span = self.entered(parent, SpanKind::Server, name)?;
        span.set("http.request.method", known.unwrap_or("_OTHER"));
        if known.is_none() {
            let original: String = method.chars().take(MAX_METHOD_CHARS).collect();
            span.set("http.request.method_original", original);
        }
        if let Some(route) = route {
            span.set("http.route", route.to_owned());
        }
        span.set("url.path", path.to_owned());
        span.set("url.scheme", if is_encrypted { "https" } else { "http" });
        Some(span)
    }

    /// Makes the span of a transaction that has just ended, in the trace of one of its orders.
    pub(crate) fn transaction(
        &self,
        of: &TraceContext,
        order_id: OrderId,
        transaction: SharedTransaction,
        error: Option<&str>,
    ) {
        let SharedTransaction { name, begun, orders } = transaction;
        let parent = Parent::Local(of.clone());
        let Some(mut span) = self.below(parent, SpanKind::Client, name.to_owned(), begun) else {
            return;
        };
        about_transaction(&mut span, name, orders);
        span.set("stocklock.order.id", order_id.to_string());
        if let Some(error) = error {
            span.fail(error.to_owned());
        }
    }
}

impl Span {
    /// Notes the answer to an HTTP request.
    pub(crate) fn answered(&mut self, status: u16) {
        self.set("http.response.status_code", i64::from(status));
        if status >= 500 {
            self.fail_as(status.to_string(), "");
        }
    }
}

/// The attributes of a transaction by the conventions of databases.
pub(super) fn about_transaction(span: &mut Span, name: &'static str, orders: usize) {
    span.set("db.system.name", "mysql");
    if let Some((store, transaction)) = name.split_once(' ') {
        span.set("stocklock.store", store);
        span.set("db.operation.name", transaction);
    }
    span.set("stocklock.transaction.orders", i64::try_from(orders).unwrap_or(i64::MAX));
}
