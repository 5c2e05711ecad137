//! The compensator: applies the messages of `order-status` to the order store, ends holds that are
//! due, and publishes the releases of orders that fail or are cancelled.

mod holds;
mod received;

use std::{collections::HashSet, sync::Arc};

use chrono::{DateTime, Utc};
use rdkafka::{Message as _, message::OwnedMessage};
use tokio::time::Instant;

use crate::{
    crash_point::crash_point,
    domain::{
        Cause, Effect, Horizon, OrderFacts, OrderId, OrderState, OrderStatus, ReportedStatus,
        TracedOrders,
    },
    kafka::{Blame, DeadLetterReason, Done, Fate, Handler, trace_parent},
    relay::{Announcer, COMMITTER_LEASE, Relay, publish_changes},
    store::{Applied, Changed, OrderStore, StoreError},
    telemetry::{ConsumerTraces, Metrics, order_log},
    wire::{OrderStatusCodec, WireError},
};

pub use holds::HoldSweep;
pub use received::ReceivedStatus;

/// Applies batches of statuses. A batch may be applied again without harm.
#[derive(Clone)]
pub struct Compensator {
    pub store: OrderStore,
    pub relay: Relay,
    pub announcer: Announcer,
    pub statuses: Arc<OrderStatusCodec>,
    pub horizon: Horizon,
    pub metrics: Metrics,
    pub traces: ConsumerTraces,
}

/// The orders of a batch whose statuses are dead-lettered.
#[derive(Debug, Default)]
pub struct Compensated {
    /// The order store does not have them.
    unknown: HashSet<OrderId>,
    /// They are completed, and too old for a release.
    too_old: HashSet<OrderId>,
}

/// An order that a late failure meets too late.
const TOO_OLD: OrderFacts =
    OrderFacts { state: OrderState::Completed, wants_hold: false, is_releasable: false };

impl Handler for Compensator {
    type Decoded = ReceivedStatus;
    type Handled = Compensated;
    type Error = StoreError;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded {
        let trace =
            self.traces.received(message.partition(), message.offset(), || trace_parent(message));
        ReceivedStatus { status: self.decode_status(message), trace, at: Instant::now() }
    }

    fn is_pending(&self, message: &Self::Decoded) -> bool {
        message.status.as_ref().is_err_and(WireError::is_pending)
    }

    /// Changes the orders in one transaction. Fails as [`OrderStore::apply`] does.
    async fn handle(&self, messages: &[Self::Decoded]) -> Result<Done<Compensated>, StoreError> {
        let statuses: Vec<_> = messages.iter().filter_map(ReceivedStatus::readable).collect();
        if statuses.is_empty() {
            return Ok(Done::default());
        }
        let traced = messages.iter().filter_map(|message| message.trace.as_deref());
        let mut span = self.traces.batch(statuses.len(), traced);
        let (now, begun) = (Utc::now(), Instant::now());
        let applied = self.store.apply(&statuses, now, self.horizon, COMMITTER_LEASE).await;
        span.transaction("order_store apply", begun, statuses.len(), &applied);
        let Applied { changed, released } = applied.inspect_err(|error| span.fail(error))?;
        crash_point("compensate.committed");
        log_first(&statuses, &changed);
        self.metrics.compensations.with_label_values(&["release_done"]).inc_by(released as u64);
        let refused = changed.results.iter().filter(|result| result.effect == Effect::Refused);
        self.metrics.confirmations_too_late.inc_by(refused.count() as u64);
        let handled = Compensated {
            unknown: changed.orders_with(Effect::UnknownOrder),
            too_old: changed.orders_with(Effect::TooOld),
        };
        self.publish_changes(changed, now, received::applied(messages, &span));
        self.store.database().observe_pool();
        Ok(Done { handled, deferred: Vec::new() })
    }

    /// Dead-letters poison, statuses of unknown orders, and failures that come too late.
    fn dead_letter_reason(
        &self,
        message: &Self::Decoded,
        compensated: &Compensated,
    ) -> Option<DeadLetterReason> {
        let has = |status: &OrderStatus, facts, effect, orders: &HashSet<OrderId>| {
            orders.contains(&status.order_id) && Cause::Reported(status).effect_on(facts) == effect
        };
        match &message.status {
            Err(error) => Some(DeadLetterReason { class: error.class(), text: error.to_string() }),
            Ok(Some(status)) if has(status, None, Effect::UnknownOrder, &compensated.unknown) => {
                Some(DeadLetterReason {
                    class: "unknown_order",
                    text: format!("no order has the id {}", status.order_id),
                })
            }
            Ok(Some(status))
                if has(status, Some(TOO_OLD), Effect::TooOld, &compensated.too_old) =>
            {
                let text = format!(
                    "order {} is completed, and too old for its stock to be released",
                    status.order_id
                );
                Some(DeadLetterReason { class: "expired", text })
            }
            Ok(_) => None,
        }
    }

    fn source<'m>(&self, message: &'m Self::Decoded) -> Option<&'m str> {
        Some(message.readable()?.source.as_str())
    }

    /// A worker that reports an unknown order may be right: a failover may have lost the order.
    fn blame<'m>(&self, message: &'m Self::Decoded, refusal: &DeadLetterReason) -> Blame<'m> {
        match (&message.status, refusal.class) {
            (Err(_), "undecodable" | "invalid") => Blame::Writer,
            (Err(_) | Ok(None), _) => Blame::Partition,
            (Ok(Some(status)), "unknown_order") if !status.is_from_worker() => Blame::Writer,
            (Ok(Some(status)), _) => Blame::Source(&status.source),
        }
    }

    /// Nothing is left to publish: `handle` publishes releases and announcements in the background.
    async fn publish(&self, _: &Compensated) -> Result<(), StoreError> {
        Ok(())
    }

    fn fate(error: &StoreError) -> Fate {
        match error {
            StoreError::Refused(_) | StoreError::Unencodable(_) => Fate::Reject("refused"),
            StoreError::Corrupt(_) => Fate::Reject("damaged"),
            StoreError::Conflict(_)
            | StoreError::Duplicate(_)
            | StoreError::Unavailable(_)
            | StoreError::CommitUnknown(_)
            | StoreError::LocksLost
            | StoreError::Unsupported(_)
            | StoreError::Migration(_) => Fate::Retry("order_store"),
        }
    }
}

/// Writes a log line for each status that was applied without a read before, if these lines are on.
fn log_first(statuses: &[&OrderStatus], changed: &Changed) {
    if !order_log::is_on() {
        return;
    }
    let read: HashSet<_> = changed.results.iter().map(|result| result.order_id).collect();
    for status in statuses.iter().filter(|status| !read.contains(&status.order_id)) {
        let (effect, state) = match status.status {
            ReportedStatus::Completed if status.is_from_worker() => {
                ("moved", Some(OrderState::Completed))
            }
            ReportedStatus::Failed(_) => ("moved", Some(OrderState::Failed)),
            ReportedStatus::Released => ("release done", None),
            // The store leaves out what has no effect on any order.
            ReportedStatus::Completed
            | ReportedStatus::Reserved
            | ReportedStatus::Cancelled(_)
            | ReportedStatus::Confirmed => ("nothing", None),
        };
        order_log::applied(status.order_id, effect, state);
    }
}

impl Compensator {
    /// Counts changes of orders, and publishes their releases and announcements.
    fn publish_changes(&self, changed: Changed, now: DateTime<Utc>, traced: TracedOrders) {
        self.count(&changed);
        changed.log();
        let decidable_from = self.horizon.decidable(now).start;
        publish_changes(&self.relay, &self.announcer, changed, decidable_from, traced);
    }

    fn decode_status(&self, message: &OwnedMessage) -> Result<Option<OrderStatus>, WireError> {
        let Some(payload) = message.payload() else {
            self.metrics.compensations.with_label_values(&["tombstone"]).inc();
            return Ok(None);
        };
        let written_at = message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis);
        let status = self.statuses.decode(payload, written_at.unwrap_or_else(Utc::now))?;
        order_log::received(message, status.order_id, status.status.as_str());
        Ok(Some(status))
    }

    fn count(&self, changed: &Changed) {
        let count = |kind: &str, orders: usize| {
            self.metrics.compensations.with_label_values(&[kind]).inc_by(orders as u64);
        };
        for moved in &changed.moved {
            match moved.to {
                OrderState::Completed => count("completed", moved.count),
                OrderState::Reserved => count("reserved", moved.count),
                OrderState::Failed => count("failed", moved.count),
                OrderState::Cancelled => count("cancelled", moved.count),
                // No event moves an order to it.
                OrderState::Pending => {}
            }
        }
        count("released", changed.releases.len());
        changed.count_closed_holds(&self.metrics.holds_closed);
    }
}
