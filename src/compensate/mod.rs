//! The compensator: brings outcomes back to the order store, and has the stock of orders released that failed after all.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use rdkafka::{Message as _, message::OwnedMessage};

use crate::{
    crash_point::crash_point,
    domain::{Horizon, OrderState, OrderStatus, ReportedStatus},
    kafka::{Blame, Done, Fate, Handler, Refusal},
    relay::{COMMITTER_LEASE, Relay},
    store::{Applied, OrderStore, StoreError},
    telemetry::Metrics,
    wire::{OrderStatusCodec, WireError},
};

/// Applies batches of statuses. Whatever it does may be repeated without harm.
#[derive(Clone)]
pub struct Compensator {
    pub store: OrderStore,
    pub relay: Relay,
    pub statuses: Arc<OrderStatusCodec>,
    pub horizon: Horizon,
    pub metrics: Metrics,
}

impl Handler for Compensator {
    /// `None` is a tombstone: a message without a value.
    type Decoded = Result<Option<OrderStatus>, WireError>;
    type Handled = Applied;
    type Error = StoreError;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded {
        let Some(payload) = message.payload() else {
            self.metrics.compensations.with_label_values(&["tombstone"]).inc();
            return Ok(None);
        };
        let written_at = message.timestamp().to_millis().and_then(DateTime::from_timestamp_millis);
        self.statuses.decode(payload, written_at.unwrap_or_else(Utc::now)).map(Some)
    }

    /// Moves the orders in one transaction.
    async fn handle(&self, messages: &[Self::Decoded]) -> Result<Done<Applied>, StoreError> {
        let statuses: Vec<_> = messages.iter().flatten().flatten().collect();
        if statuses.is_empty() {
            return Ok(Done::default());
        }
        let now = Utc::now();
        let mut applied = self.store.apply(&statuses, now, self.horizon.releasable_from(now), COMMITTER_LEASE).await?;
        crash_point("compensate.committed");
        for (state, count) in &applied.moved {
            let kind = if *state == OrderState::Completed { "completed" } else { "failed" };
            self.metrics.compensations.with_label_values(&[kind]).inc_by(*count as u64);
        }
        self.metrics.compensations.with_label_values(&["released"]).inc_by(applied.events.len() as u64);
        self.relay.publish_in_background(std::mem::take(&mut applied.events));
        self.store.database().observe_pool();
        Ok(Done { handled: applied, left_behind: Vec::new() })
    }

    /// Besides poison, statuses of unknown orders are set aside, and failures that come too late.
    fn refusal(&self, status: &Self::Decoded, applied: &Applied) -> Option<Refusal> {
        match status {
            Err(error) => Some(Refusal { class: error.class(), text: error.to_string() }),
            Ok(Some(OrderStatus { order_id, .. })) if applied.unknown.contains(order_id) => {
                Some(Refusal { class: "unknown_order", text: format!("no order has the id {order_id}") })
            }
            Ok(Some(OrderStatus { order_id, status: ReportedStatus::Failed(_), .. }))
                if applied.too_late.contains(order_id) =>
            {
                let text = format!("order {order_id} is completed, and too old for its stock to be given back");
                Some(Refusal { class: "expired", text })
            }
            Ok(_) => None,
        }
    }

    fn source<'m>(&self, status: &'m Self::Decoded) -> Option<&'m str> {
        Some(status.as_ref().ok()?.as_ref()?.source.as_str())
    }

    /// A worker that reports an unknown order may be right: a failover may have lost it.
    fn blame<'m>(&self, status: &'m Self::Decoded, refusal: &Refusal) -> Blame<'m> {
        match (status, refusal.class) {
            (Err(_), "undecodable" | "invalid") => Blame::Writer,
            (Err(_) | Ok(None), _) => Blame::Partition,
            (Ok(Some(status)), "unknown_order") if !status.is_from_worker() => Blame::Writer,
            (Ok(Some(status)), _) => Blame::Source(&status.source),
        }
    }

    /// Releases are on their way already, by the outbox.
    async fn publish(&self, _: &Applied) -> Result<(), StoreError> {
        Ok(())
    }

    fn fate(error: &StoreError) -> Fate {
        match error {
            StoreError::Refused(_) => Fate::Refused("refused"),
            StoreError::Damaged(_) => Fate::Refused("damaged"),
            _ => Fate::Unavailable("order_store"),
        }
    }
}
