use chrono::Utc;
use serde_json::Value;

use super::letter::{Letter, LetterKind};
use crate::{
    domain::{OrderEvent, OrderStatus, adjustment::AdjustmentRequest},
    wire::{OrderEventCodec, OrderRequestCodec, OrderStatusCodec, StockAdjustmentCodec, WireError},
};

/// Decodes the values of letters as the roles would decode them now.
pub(crate) struct LetterCodecs {
    pub(crate) events: OrderEventCodec,
    pub(crate) statuses: OrderStatusCodec,
    pub(crate) requests: OrderRequestCodec,
    pub(crate) adjustments: StockAdjustmentCodec,
}

/// The value of a letter.
pub(crate) enum Content {
    Event(OrderEvent),
    Status(OrderStatus),
    /// A status without a value. It changes nothing.
    Tombstone,
    /// No repetition helps, unless a schema becomes known.
    Unreadable(WireError),
    /// A request of an order, valid or not: its headers count too.
    OrderRequest,
    Adjustment(AdjustmentRequest),
}

impl LetterCodecs {
    pub(crate) fn decode(&self, letter: &Letter) -> Content {
        match letter.kind {
            LetterKind::Event => {
                let decoded = self.events.decode(letter.payload.as_deref().unwrap_or_default());
                decoded.map_or_else(Content::Unreadable, Content::Event)
            }
            LetterKind::Status => {
                let Some(payload) = &letter.payload else { return Content::Tombstone };
                let decoded =
                    self.statuses.decode(payload, letter.written_at.unwrap_or_else(Utc::now));
                decoded.map_or_else(Content::Unreadable, Content::Status)
            }
            LetterKind::OrderRequest => Content::OrderRequest,
            LetterKind::Adjustment => {
                let decoded =
                    self.adjustments.decode(letter.payload.as_deref().unwrap_or_default());
                decoded.map_or_else(Content::Unreadable, Content::Adjustment)
            }
        }
    }

    /// The fields of the value, as far as they can be read: with a known schema, else as JSON.
    pub(crate) fn fields(&self, letter: &Letter) -> Option<Value> {
        let payload = letter.payload.as_deref()?;
        let decoded = match letter.kind {
            LetterKind::Event => self.events.fields(payload).ok(),
            LetterKind::Status => self.statuses.fields(payload).ok(),
            LetterKind::OrderRequest => {
                let json = self.requests.json(payload).ok();
                json.and_then(|json| serde_json::from_slice(&json).ok())
            }
            LetterKind::Adjustment => self.adjustments.fields(payload).ok(),
        };
        decoded.or_else(|| serde_json::from_slice(payload).ok())
    }

    /// The source that the value names.
    pub(crate) fn source(&self, letter: &Letter) -> Option<String> {
        Some(self.fields(letter)?.get("source")?.as_str()?.to_owned())
    }
}
