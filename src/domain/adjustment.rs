//! Requests to adjust stock, and what they do to it: all adjustments of a request or none.

use std::collections::{BTreeMap, HashSet};

use super::{Invalid, MAX_AVAILABLE, ProductId};

/// The most adjustments of a request.
pub(crate) const MAX_ADJUSTMENTS: usize = 1_000;
/// The longest id of a request, in bytes.
pub(crate) const MAX_REQUEST_ID_BYTES: usize = 128;
/// The most characters of a reason.
pub(crate) const MAX_ADJUSTMENT_REASON_CHARS: usize = 255;
/// The most characters of a reference.
pub(crate) const MAX_ADJUSTMENT_REFERENCE_CHARS: usize = 128;

/// How a product's stock changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StockChange {
    /// Units to add; to remove, if negative. Not 0, and at most [`MAX_AVAILABLE`] either way.
    Delta(i64),
    /// The new number of available units: 0 to [`MAX_AVAILABLE`].
    Set(i64),
}

/// A valid change of one product's stock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Adjustment {
    pub(crate) product_id: ProductId,
    pub(crate) change: StockChange,
    /// The version that the product must have.
    pub(crate) if_version: Option<i64>,
    pub(crate) reason: String,
    pub(crate) reference: Option<String>,
}

/// A valid request: 1 to [`MAX_ADJUSTMENTS`] adjustments of distinct products.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdjustmentRequest {
    request_id: String,
    adjustments: Vec<Adjustment>,
}

/// The available units and the version of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) available: i64,
    pub(crate) version: i64,
}

/// What an adjustment did to a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The units that were added; negative: removed.
    pub(crate) units: i64,
    /// The product after it.
    pub(crate) level: Level,
}

/// Why the stock does not allow an adjustment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusalCause {
    UnknownProduct,
    OtherVersion,
    BelowZero,
    AboveMax,
}

/// An adjustment that the stock does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdjustmentRefusal {
    /// The position of the adjustment in its request.
    pub(crate) index: usize,
    pub(crate) product_id: ProductId,
    /// The product as it is. `None`: no such product.
    pub(crate) level: Option<Level>,
    pub(crate) cause: RefusalCause,
    /// What is wrong, and what is allowed.
    pub(crate) detail: String,
}

impl StockChange {
    /// Makes a change of what a request has. Fails unless exactly one of both is given, within its
    /// bounds.
    pub(crate) fn new(delta: Option<i64>, set: Option<i64>) -> Result<Self, Invalid> {
        match (delta, set) {
            (Some(delta), None) => Self::delta(delta),
            (None, Some(set)) => Self::set(set),
            (None, None) | (Some(_), Some(_)) => {
                Err(Invalid("must have either delta or set".to_owned()))
            }
        }
    }

    /// Fails if the number is 0, or if it is not within [`MAX_AVAILABLE`].
    pub(crate) fn delta(delta: i64) -> Result<Self, Invalid> {
        if delta != 0 && (-MAX_AVAILABLE..=MAX_AVAILABLE).contains(&delta) {
            return Ok(Self::Delta(delta));
        }
        Err(Invalid(format!(
            "must be a whole number from -{MAX_AVAILABLE} to {MAX_AVAILABLE} and not 0, not {delta}"
        )))
    }

    /// Fails if the number is not within 0 to [`MAX_AVAILABLE`].
    pub(crate) fn set(set: i64) -> Result<Self, Invalid> {
        if (0..=MAX_AVAILABLE).contains(&set) {
            return Ok(Self::Set(set));
        }
        Err(Invalid(format!("must be a whole number from 0 to {MAX_AVAILABLE}, not {set}")))
    }

    /// The available units after the change. Fails if they would be below 0 or above
    /// [`MAX_AVAILABLE`]. Released units may have raised the stock above it; then it may fall.
    fn applied_to(self, available: i64) -> Result<i64, RefusalCause> {
        match self {
            Self::Set(after) => Ok(after),
            Self::Delta(delta) => match available.checked_add(delta) {
                Some(after) if after < 0 => Err(RefusalCause::BelowZero),
                Some(after) if after <= MAX_AVAILABLE || delta < 0 => Ok(after),
                Some(_) | None => Err(RefusalCause::AboveMax),
            },
        }
    }
}

impl Adjustment {
    /// Fails with what is wrong in the text, and what is allowed.
    pub(crate) fn check_reason(reason: &str) -> Result<(), Invalid> {
        within("reason", reason, MAX_ADJUSTMENT_REASON_CHARS)
    }

    /// Fails with what is wrong in the text, and what is allowed.
    pub(crate) fn check_reference(reference: &str) -> Result<(), Invalid> {
        within("reference", reference, MAX_ADJUSTMENT_REFERENCE_CHARS)
    }

    fn applied_to(&self, level: Level) -> Result<Applied, RefusalCause> {
        if self.if_version.is_some_and(|version| version != level.version) {
            return Err(RefusalCause::OtherVersion);
        }
        let available = self.change.applied_to(level.available)?;
        let units = available - level.available;
        Ok(Applied { units, level: Level { available, version: level.version + 1 } })
    }

    fn refusal(
        &self,
        index: usize,
        level: Option<Level>,
        cause: RefusalCause,
    ) -> AdjustmentRefusal {
        let (product_id, available) = (&self.product_id, level.map_or(0, |level| level.available));
        let detail = match cause {
            RefusalCause::UnknownProduct => format!("no product {product_id}"),
            RefusalCause::OtherVersion => format!(
                "{product_id} has version {}, not {}",
                level.map_or(0, |level| level.version),
                self.if_version.unwrap_or_default()
            ),
            RefusalCause::BelowZero => {
                format!("{product_id} has {available} available, and cannot fall below 0")
            }
            RefusalCause::AboveMax => format!(
                "{product_id} has {available} available, and cannot rise above {MAX_AVAILABLE}"
            ),
        };
        AdjustmentRefusal { index, product_id: product_id.clone(), level, cause, detail }
    }
}

impl AdjustmentRequest {
    /// Fails if the id is malformed, if there are no adjustments or too many, or if a product is
    /// repeated.
    pub(crate) fn new(request_id: String, adjustments: Vec<Adjustment>) -> Result<Self, Invalid> {
        Self::check_id(&request_id)?;
        if !(1..=MAX_ADJUSTMENTS).contains(&adjustments.len()) {
            return Err(Invalid(format!(
                "a request has 1 to {MAX_ADJUSTMENTS} adjustments, not {}",
                adjustments.len()
            )));
        }
        let mut seen = HashSet::new();
        if let Some(repeated) = adjustments.iter().find(|each| !seen.insert(&each.product_id)) {
            return Err(Invalid(format!("product {} is adjusted twice", repeated.product_id)));
        }
        Ok(Self { request_id, adjustments })
    }

    /// Fails unless an id has 1 to [`MAX_REQUEST_ID_BYTES`] visible ASCII characters.
    pub(crate) fn check_id(id: &str) -> Result<(), Invalid> {
        if (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Ok(());
        }
        Err(Invalid(format!(
            "request_id must be a string of 1 to {MAX_REQUEST_ID_BYTES} visible ASCII characters"
        )))
    }

    pub(crate) fn request_id(&self) -> &str {
        &self.request_id
    }

    pub(crate) fn adjustments(&self) -> &[Adjustment] {
        &self.adjustments
    }

    /// Changes `stock`, which has every product of the request that exists. Returns what was done,
    /// in the order of the adjustments. Fails with all refusals, and then changes nothing.
    pub(crate) fn apply(
        &self,
        stock: &mut BTreeMap<ProductId, Level>,
    ) -> Result<Vec<Applied>, Vec<AdjustmentRefusal>> {
        let (mut done, mut refusals) = (Vec::new(), Vec::new());
        for (index, adjustment) in self.adjustments.iter().enumerate() {
            let level = stock.get(&adjustment.product_id).copied();
            let applied = level
                .ok_or(RefusalCause::UnknownProduct)
                .and_then(|level| adjustment.applied_to(level));
            match applied {
                Ok(applied) => done.push(applied),
                Err(cause) => refusals.push(adjustment.refusal(index, level, cause)),
            }
        }
        if !refusals.is_empty() {
            return Err(refusals);
        }
        for (adjustment, applied) in self.adjustments.iter().zip(&done) {
            stock.insert(adjustment.product_id.clone(), applied.level);
        }
        Ok(done)
    }
}

impl RefusalCause {
    /// The name of the cause in an answer.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::UnknownProduct => "UNKNOWN_PRODUCT",
            Self::OtherVersion => "OTHER_VERSION",
            Self::BelowZero => "BELOW_ZERO",
            Self::AboveMax => "ABOVE_MAX",
        }
    }

    /// The field of the adjustment that is to blame.
    pub(crate) fn field(self) -> &'static str {
        match self {
            Self::UnknownProduct => "product_id",
            Self::OtherVersion => "if_version",
            Self::BelowZero | Self::AboveMax => "delta",
        }
    }
}

fn within(name: &str, text: &str, max_chars: usize) -> Result<(), Invalid> {
    if (1..=max_chars).contains(&text.chars().count()) {
        return Ok(());
    }
    Err(Invalid(format!("{name} must be a string of 1 to {max_chars} characters")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjustment(id: &str, change: StockChange, if_version: Option<i64>) -> Adjustment {
        let product_id = ProductId::parse(id).unwrap();
        Adjustment { product_id, change, if_version, reason: "count".to_owned(), reference: None }
    }

    fn request(adjustments: Vec<Adjustment>) -> AdjustmentRequest {
        AdjustmentRequest::new("r-1".to_owned(), adjustments).unwrap()
    }

    fn stock(levels: &[(&str, i64, i64)]) -> BTreeMap<ProductId, Level> {
        let level = |(id, available, version): &(&str, i64, i64)| {
            let level = Level { available: *available, version: *version };
            (ProductId::parse(id).unwrap(), level)
        };
        levels.iter().map(level).collect()
    }

    #[test]
    fn all_adjustments_of_a_request_are_done_or_none() {
        let mut levels = stock(&[("a", 5, 1), ("b", 2, 7)]);
        let before = levels.clone();
        let refused = request(vec![
            adjustment("a", StockChange::Delta(3), None),
            adjustment("b", StockChange::Delta(-3), None),
            adjustment("c", StockChange::Set(1), None),
        ]);
        let done = request(vec![
            adjustment("b", StockChange::Set(9), Some(7)),
            adjustment("a", StockChange::Delta(-5), None),
        ]);

        let refusals = refused.apply(&mut levels).unwrap_err();
        let unchanged = levels.clone();
        let after = done.apply(&mut levels).unwrap();

        let causes: Vec<_> = refusals.iter().map(|each| (each.index, each.cause)).collect();
        assert_eq!(causes, [(1, RefusalCause::BelowZero), (2, RefusalCause::UnknownProduct)]);
        assert_eq!(unchanged, before);
        let applied =
            |units, available, version| Applied { units, level: Level { available, version } };
        assert_eq!(after, [applied(7, 9, 8), applied(-5, 0, 2)]);
        assert_eq!(levels, stock(&[("a", 0, 2), ("b", 9, 8)]));
    }

    #[test]
    fn an_adjustment_needs_the_version_that_it_names() {
        let mut levels = stock(&[("a", 5, 3)]);
        let old = request(vec![adjustment("a", StockChange::Set(1), Some(2))]);

        let refusals = old.apply(&mut levels).unwrap_err();

        assert_eq!(refusals[0].cause, RefusalCause::OtherVersion);
        assert_eq!(refusals[0].detail, "a has version 3, not 2");
        assert_eq!(levels, stock(&[("a", 5, 3)]));
    }

    #[test]
    fn stock_stays_within_its_bounds() {
        let change = |available, change: StockChange| change.applied_to(available);

        assert_eq!(change(0, StockChange::Delta(-1)), Err(RefusalCause::BelowZero));
        assert_eq!(change(MAX_AVAILABLE, StockChange::Delta(1)), Err(RefusalCause::AboveMax));
        assert_eq!(change(i64::MAX, StockChange::Delta(1)), Err(RefusalCause::AboveMax));
        let above = MAX_AVAILABLE + 5;
        assert_eq!(change(above, StockChange::Delta(-1)), Ok(above - 1));
        assert!(StockChange::new(Some(1), Some(1)).is_err());
        assert!(StockChange::new(None, None).is_err());
        assert!(StockChange::new(Some(0), None).is_err());
        assert!(StockChange::new(None, Some(-1)).is_err());
        assert!(StockChange::new(None, Some(MAX_AVAILABLE + 1)).is_err());
    }

    #[test]
    fn a_request_has_an_id_and_distinct_products() {
        let one = || adjustment("a", StockChange::Delta(1), None);
        let new = |id: &str, adjustments| AdjustmentRequest::new(id.to_owned(), adjustments);

        assert!(new("r", vec![one()]).is_ok());
        for id in ["", "a b", "é", &"r".repeat(129)] {
            assert!(new(id, vec![one()]).is_err(), "{id}");
        }
        assert!(new("r", vec![one(), one()]).is_err());
        assert!(new("r", Vec::new()).is_err());
        let many = |count| {
            let ids = (0..count).map(|n| format!("p{n}"));
            ids.map(|id| adjustment(&id, StockChange::Delta(1), None)).collect::<Vec<_>>()
        };
        assert!(new("r", many(MAX_ADJUSTMENTS)).is_ok());
        assert!(new("r", many(MAX_ADJUSTMENTS + 1)).is_err());
    }
}
