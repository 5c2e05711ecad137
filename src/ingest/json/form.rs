/// The fields of an order. [`OrderForm::fields`] says who has the last two.
const ORDER_FIELDS: [&str; 6] =
    ["reference", "customer_id", "hold_seconds", "lines", "order_id", "idempotency_key"];

/// Where an order comes from. It decides how the order may name its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ingest) enum OrderForm {
    /// The path or a header of the request has its identity.
    Single,
    OfBatch,
    /// A header of the record may have its key.
    OfIntake,
}

impl OrderForm {
    pub(super) fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Single => &ORDER_FIELDS[..4],
            Self::OfIntake => &ORDER_FIELDS[..5],
            Self::OfBatch => &ORDER_FIELDS,
        }
    }
}
