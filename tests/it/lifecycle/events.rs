//! Applies the events of the table to orders, as ingest and the compensator do.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, MySqlConnection};
use stocklock::{
    domain::{Horizon, OrderId, OrderStatus, Reason, ReportedStatus},
    store::{Change, OrderStore},
};

use super::document::Row;
use crate::harness::World;

pub(super) const LEASE: Duration = Duration::from_secs(60);
/// The holds of the tests, in seconds: of an order that is reserved at the beginning, of an order
/// that a worker's report reserves, and of an extension.
pub(super) const FIRST_HOLD: i64 = 1000;
pub(super) const WORKER_HOLD: i64 = 3600;
pub(super) const LATER_HOLD: i64 = 7200;

/// Where and when the events happen.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) world: &'a World,
    pub(super) store: &'a OrderStore,
    pub(super) horizon: Horizon,
    pub(super) now: DateTime<Utc>,
}

/// What happens to an order.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Message { name: String, source: String, reason: Option<String> },
    Request(Change),
    HoldDue,
}

pub(super) fn is_message(row: &Row) -> bool {
    !matches!(event(row), Event::Request(_) | Event::HoldDue)
}

/// The reason that the event of a row names.
pub(super) fn reason(row: &Row) -> Option<String> {
    ["FAILED", "CANCELLED"].contains(&row.event.as_str()).then(|| format!("said {}", row.source))
}

pub(super) fn event(row: &Row) -> Event {
    match row.event.as_str() {
        "cancel" => Event::Request(Change::Cancel),
        "confirm" => Event::Request(Change::Confirm),
        "extend" => {
            let hold_seconds = u32::try_from(LATER_HOLD).expect("seconds");
            Event::Request(Change::Extend { hold_seconds })
        }
        "hold due" => Event::HoldDue,
        name => {
            let source = if row.source == "others" { "payments" } else { &row.source };
            Event::Message { name: name.into(), source: source.into(), reason: reason(row) }
        }
    }
}

/// Applies events: the messages in one batch, the requests in one group, and the holds in one
/// sweep.
pub(super) async fn step(place: Place<'_>, events: &[(OrderId, Event)]) {
    let Place { store, horizon, now, .. } = place;
    let (mut messages, mut requests, mut due) = (Vec::new(), Vec::new(), Vec::new());
    for (order_id, event) in events {
        match event {
            Event::Request(change) => requests.push((*order_id, *change)),
            Event::HoldDue => due.push(*order_id),
            Event::Message { name, source, reason } => {
                messages.push(message(*order_id, name, source, reason.as_deref(), now));
            }
        }
    }
    store.apply(&messages, now, horizon, LEASE).await.expect("applied");
    store.change(&requests, now, horizon, LEASE).await.expect("changed");
    if !due.is_empty() {
        let ids: Vec<_> = due.iter().map(|id| format!("'{}'", id.uuid().simple())).collect();
        let sql = format!(
            "UPDATE holds SET expires_at = '2001-01-01' WHERE HEX(order_id) IN ({})",
            ids.join(",")
        );
        place.world.tamper_with_orders(&sql).await;
        let due = store.find_due_holds(now, None, 10_000).await.expect("the holds");
        store.end_holds(&due, now, horizon, LEASE).await.expect("ended");
    }
}

fn message(
    order_id: OrderId,
    name: &str,
    source: &str,
    reason: Option<&str>,
    now: DateTime<Utc>,
) -> OrderStatus {
    let reason = reason.map(Reason::parse);
    let status = match name {
        "COMPLETED" => ReportedStatus::Completed,
        "RESERVED" => ReportedStatus::Reserved,
        "FAILED" => ReportedStatus::Failed(reason.expect("a reason")),
        "CANCELLED" => ReportedStatus::Cancelled(reason),
        "CONFIRMED" => ReportedStatus::Confirmed,
        "RELEASED" => ReportedStatus::Released,
        other => panic!("{other} is no event"),
    };
    OrderStatus { order_id, status, source: source.into(), occurred_at: now, reference: None }
}

/// The number of a table's rows.
pub(super) async fn count(world: &World, table: &str) -> i64 {
    let url = world.config.order_store.url.expose();
    let mut conn = MySqlConnection::connect(url).await.expect("the order store");
    let sql = format!("SELECT COUNT(*) FROM {table}");
    sqlx::query_scalar(&sql).fetch_one(&mut conn).await.expect("a count")
}
