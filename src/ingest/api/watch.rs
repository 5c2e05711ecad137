//! `GET /v1/orders/{id}/events`: reports the changes of an order as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{Extension, Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse as _, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::stream;
use tokio::time::sleep;

use super::{
    super::{
        auth::{Caller, RECHECK_EVERY, StreamedOperation},
        problem::Problem,
        subscriptions::Subscription,
    },
    Api,
    shown::{order_id, summary_body, unknown_order},
};
use crate::{
    domain::OrderState,
    http::{Connection, Streaming},
    lifecycle::Shutdown,
    store::{OrderSummary, StoredOrder},
};

/// How often a comment shows the client that the connection is alive.
const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// Responds 200 with the present state of an order and each later one, up to the first at which a
/// client need not watch any longer. Leaves out the present state if the client has it already
/// (`Last-Event-ID`), and responds 204 if there will be no other.
///
/// Fails with 404 if no order has the id, and with 503 if the order store is away or too many
/// clients watch.
pub(super) async fn watch_order(
    State(api): State<Arc<Api>>,
    Extension(connection): Extension<Connection>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = order_id(path)?;
    // A change after this is news, also if it comes before the order is read.
    let too_many = || Problem::unavailable("too many clients watch orders");
    let news = api.outcomes.watch(id).ok_or_else(too_many)?;
    let order = api.find_order(id).await?.ok_or_else(unknown_order)?;
    let StoredOrder { summary: present, reference, .. } = order;
    let known = last_event_id(&headers).filter(|known| *known == present.state);
    if known.is_some_and(is_last) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let events = OrderEvents {
        reference,
        known: present.state,
        present: known.is_none().then_some(present),
        news,
        shutdown: api.shutdown.clone(),
        connection,
        caller,
        streaming: None,
        is_probed: false,
    };
    let events = stream::unfold(events, OrderEvents::next);
    let comments = KeepAlive::new().interval(COMMENT_EVERY);
    // nginx sends no event on before its buffer is full, unless the answer says so.
    let unbuffered = [("x-accel-buffering", "no")];
    Ok((unbuffered, Sse::new(events).keep_alive(comments)).into_response())
}

/// The state that a client has received last. `None` if it names none.
pub(super) fn last_event_id(headers: &HeaderMap) -> Option<OrderState> {
    OrderState::parse(headers.get("last-event-id")?.to_str().ok()?).ok()
}

/// Whether the events of an order end with this state.
fn is_last(state: OrderState) -> bool {
    match state {
        OrderState::Completed | OrderState::Failed | OrderState::Cancelled => true,
        OrderState::Pending | OrderState::Reserved => false,
    }
}

/// The events of an order for one client.
struct OrderEvents {
    reference: Option<String>,
    /// The state at the beginning, until it is sent. `None` if the client has it already.
    present: Option<OrderSummary>,
    /// The state that the client knows, or will know next.
    known: OrderState,
    news: Subscription,
    shutdown: Shutdown,
    connection: Connection,
    caller: Caller,
    streaming: Option<Streaming>,
    /// The client has finished sending, and a comment probes whether it still reads.
    is_probed: bool,
}

impl OrderEvents {
    /// Returns the next event. `None` after the last, once a stop is requested, once the client has
    /// gone, and once its token is no longer good.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        self.streaming.get_or_insert_with(|| self.connection.streaming());
        if let Some(present) = self.present.take() {
            return Some((Ok(self.event(&present)), self));
        }
        while !is_last(self.known) {
            let news = tokio::select! {
                biased;
                () = self.shutdown.requested() => return None,
                () = sleep(RECHECK_EVERY) => {
                    self.caller.check_again(StreamedOperation::Events, &self.connection).ok()?;
                    continue;
                }
                news = self.news.next() => news?,
                () = self.connection.sending_ended(), if !self.is_probed => {
                    self.is_probed = true;
                    return Some((Ok(Event::default().comment("")), self));
                }
                () = self.connection.reset(), if self.is_probed => return None,
            };
            if news.state != self.known {
                self.known = news.state;
                return Some((Ok(self.event(&news)), self));
            }
        }
        None
    }

    /// An event whose id is the name of the state.
    fn event(&self, order: &OrderSummary) -> Event {
        let body = summary_body(order, self.reference.as_deref());
        Event::default().event("status").id(order.state.as_str()).data(body.to_string())
    }
}
