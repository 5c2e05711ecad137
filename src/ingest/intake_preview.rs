//! What the record of an order request would do now. Nothing is written.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use rdkafka::{Message as _, message::OwnedMessage};

use super::{
    api::{check_age, expired_key, products, receipt, refuse_products},
    intake::{Parsed, reason_of},
    intake_record::RecordOrigin,
    problem::Problem,
    request::OrderRequest,
};
use crate::{
    domain::{Horizon, Lines, OrderId, ProductId},
    kafka::DeadLetterReason,
    store::{Identity, OrderStore, OrderSummary, Placement, StockStore, StoreError},
    wire::OrderRequestCodec,
};

/// Previews records of the intake.
pub(crate) struct IntakePreview<'s> {
    pub(crate) orders: &'s OrderStore,
    pub(crate) stock: &'s StockStore,
    pub(crate) codec: &'s OrderRequestCodec,
    pub(crate) horizon: Horizon,
    /// The longest hold that a record may ask for.
    pub(crate) hold_max_seconds: u32,
    /// How long the keys of requests are kept.
    pub(crate) keys_kept: Duration,
}

/// What a record would do.
#[derive(Debug)]
pub(crate) enum Previewed {
    /// A new order is placed. Its id, if the record determines it.
    Places(Option<OrderId>),
    /// An earlier delivery or an equal request has placed this order.
    Placed(Box<OrderSummary>),
    /// The record is dead-lettered.
    Refused(DeadLetterReason),
}

impl IntakePreview<'_> {
    /// Previews the record as if it were delivered now.
    ///
    /// Fails if a store cannot be read.
    pub(crate) async fn of(
        &self,
        message: &OwnedMessage,
        now: DateTime<Utc>,
    ) -> Result<Previewed, StoreError> {
        let text = self.codec.json(message.payload().unwrap_or_default());
        let parsed = Parsed::read(text, message, self.hold_max_seconds);
        let source = parsed.and_then(|parsed| {
            Ok((parsed.source(&RecordOrigin::of(message), now, self.keys_kept)?, parsed.request))
        });
        let (source, request): (_, OrderRequest) = match source {
            Ok(read) => read,
            Err(reason) => return Ok(Previewed::Refused(reason)),
        };
        let is_expired = source.is_expired();
        let placement = source.placement(request);
        let order_id = placement.order.order_id;
        let is_id = placement.identity == Some(Identity::OrderId);
        if let Some(placed) = self.orders.find_placed(&placement).await? {
            return Ok(match receipt(order_id, is_id, placed).map(|receipt| receipt.replayed) {
                Ok(Some(order)) => Previewed::Placed(order),
                Ok(None) => Previewed::Places(Some(order_id)),
                Err(problem) => Previewed::Refused(reason_of(&problem)),
            });
        }
        let checked = if is_expired { Err(expired_key()) } else { self.check(&placement).await? };
        Ok(match checked {
            Ok(()) => Previewed::Places(is_id.then_some(order_id)),
            Err(problem) => Previewed::Refused(reason_of(&problem)),
        })
    }

    /// Whether a new order may be saved.
    async fn check(&self, placement: &Placement) -> Result<Result<(), Problem>, StoreError> {
        let order = &placement.order;
        if placement.identity == Some(Identity::OrderId)
            && let Err(problem) = check_age(order, self.horizon)
        {
            return Ok(Err(problem));
        }
        Ok(refuse_products(&order.lines, &self.find_unknown(&order.lines).await?))
    }

    async fn find_unknown(&self, lines: &Lines) -> Result<BTreeSet<ProductId>, StoreError> {
        let mut unknown = products(lines);
        let wanted: Vec<_> = unknown.iter().cloned().collect();
        for product in self.stock.find_products(&wanted).await? {
            unknown.remove(&product.id);
        }
        Ok(unknown)
    }
}
