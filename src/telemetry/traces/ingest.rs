//! The spans of HTTP requests and of shared transactions.

use opentelemetry::trace::SpanKind;
use tokio::time::Instant;

use super::{Span, Traces, span::Parent};
use crate::domain::{OrderId, TraceContext, TraceParent};

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
        method: &str,
        route: &str,
        path: &str,
    ) -> Option<Span> {
        let name = || format!("{method} {route}");
        let mut span = self.entered(parent, SpanKind::Server, name)?;
        span.set("http.request.method", method.to_owned());
        span.set("http.route", route.to_owned());
        span.set("url.path", path.to_owned());
        span.set("url.scheme", "http");
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
            self.set("error.type", status.to_string());
            self.fail("");
        }
    }
}

/// The attributes of a transaction by the conventions of databases.
pub(super) fn about_transaction(span: &mut Span, name: &'static str, orders: usize) {
    span.set("db.system.name", "mysql");
    if let Some((store, transaction)) = name.split_once(' ') {
        span.set("db.namespace", store);
        span.set("db.operation.name", transaction);
    }
    span.set("db.operation.batch.size", i64::try_from(orders).unwrap_or(i64::MAX));
}
