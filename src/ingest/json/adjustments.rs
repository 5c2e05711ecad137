//! Reads the JSON of a request to adjust stock.

use std::{collections::HashSet, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    FieldErrors, refuse_scalars, seed,
    values::{Fields, NameSeed, Scalar, ScalarSeed, WrongName},
};
use crate::domain::{
    Invalid, ProductId,
    adjustment::{Adjustment, AdjustmentRequest, MAX_ADJUSTMENTS, StockChange},
};

const REQUEST_FIELDS: [&str; 2] = ["request_id", "adjustments"];
const ADJUSTMENT_FIELDS: [&str; 6] =
    ["product_id", "delta", "set", "if_version", "reason", "reference"];
const NOT_A_REQUEST: &str = "must be an object with request_id and adjustments";
const NOT_AN_ADJUSTMENT: &str = "must be an object with product_id, delta or set, and reason";
const NO_CHANGE: &str = "is missing; an adjustment has either delta or set";

/// A request as far as it could be read. It is valid if there are no errors.
#[derive(Debug, Default)]
pub(in crate::ingest) struct AdjustmentsDraft {
    pub(in crate::ingest) request_id: String,
    /// The valid adjustments.
    pub(in crate::ingest) adjustments: Vec<Adjustment>,
}

/// Reads a request and adds what is wrong with it to the errors. Fails if the JSON is broken, or
/// once there are enough errors.
pub(in crate::ingest) struct AdjustmentsSeed<'a> {
    pub(in crate::ingest) errors: &'a FieldErrors,
}

seed!(AdjustmentsSeed, AdjustmentsDraft);
seed!(ListSeed, Vec<Adjustment>);
seed!(ItemSeed, Option<Adjustment>);

impl AdjustmentsSeed<'_> {
    fn refuse<E: de::Error>(self) -> Result<AdjustmentsDraft, E> {
        self.errors.add("", NOT_A_REQUEST)?;
        Ok(AdjustmentsDraft::default())
    }
}

impl<'de> Visitor<'de> for AdjustmentsSeed<'_> {
    type Value = AdjustmentsDraft;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request to adjust stock")
    }

    refuse_scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<AdjustmentsDraft, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        self.refuse()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AdjustmentsDraft, A::Error> {
        let (mut draft, mut fields) = (AdjustmentsDraft::default(), Fields::new(&REQUEST_FIELDS));
        while let Some(name) = map.next_key_seed(NameSeed(fields.names))? {
            match fields.note(name) {
                Ok("request_id") => {
                    let given = map.next_value_seed(ScalarSeed)?;
                    let id = if let Scalar::Text(id) = given { id } else { String::new() };
                    if let Err(Invalid(detail)) = AdjustmentRequest::check_id(&id) {
                        self.errors.add("/request_id", detail)?;
                    }
                    draft.request_id = id;
                }
                Ok(_) => draft.adjustments = map.next_value_seed(ListSeed(self.errors))?,
                Err(WrongName { shown, fault }) => {
                    let detail = format!(
                        "{fault}; a request has {}, each once",
                        REQUEST_FIELDS.join(" and ")
                    );
                    self.errors.add(format!("/{shown}"), detail)?;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if !fields.has("request_id") {
            self.errors.add("/request_id", "is missing")?;
        }
        if !fields.has("adjustments") {
            let detail =
                format!("is missing; must be an array of 1 to {MAX_ADJUSTMENTS} adjustments");
            self.errors.add("/adjustments", detail)?;
        }
        Ok(draft)
    }
}

struct ListSeed<'a>(&'a FieldErrors);

impl ListSeed<'_> {
    fn refuse<E: de::Error>(self) -> Result<Vec<Adjustment>, E> {
        let detail = format!("must be an array of 1 to {MAX_ADJUSTMENTS} adjustments");
        self.0.add("/adjustments", detail)?;
        Ok(Vec::new())
    }
}

impl<'de> Visitor<'de> for ListSeed<'_> {
    type Value = Vec<Adjustment>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("adjustments")
    }

    refuse_scalars!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Adjustment>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        self.refuse()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Adjustment>, A::Error> {
        let (mut adjustments, mut seen, mut count) = (Vec::new(), HashSet::new(), 0);
        while count < MAX_ADJUSTMENTS {
            let item = ItemSeed { errors: self.0, index: count };
            let Some(item) = items.next_element_seed(item)? else { break };
            if let Some(adjustment) = item {
                if !seen.insert(adjustment.product_id.clone()) {
                    let pointer = format!("/adjustments/{count}/product_id");
                    self.0.add(pointer, "is repeated; the products must be distinct")?;
                }
                adjustments.push(adjustment);
            }
            count += 1;
        }
        if count == MAX_ADJUSTMENTS {
            while items.next_element::<IgnoredAny>()?.is_some() {
                count += 1;
            }
        }
        if !(1..=MAX_ADJUSTMENTS).contains(&count) {
            let detail =
                format!("must be an array of 1 to {MAX_ADJUSTMENTS} adjustments, not {count}");
            self.0.add("/adjustments", detail)?;
        }
        Ok(adjustments)
    }
}

struct ItemSeed<'a> {
    errors: &'a FieldErrors,
    index: usize,
}

/// The fields of an adjustment as they were read.
#[derive(Default)]
struct ItemDraft {
    product_id: Option<ProductId>,
    delta: Option<StockChange>,
    set: Option<StockChange>,
    if_version: Option<i64>,
    reason: Option<String>,
    reference: Option<String>,
    is_wrong: bool,
}

impl ItemSeed<'_> {
    fn refuse<E: de::Error>(self) -> Result<Option<Adjustment>, E> {
        self.errors.add(format!("/adjustments/{}", self.index), NOT_AN_ADJUSTMENT)?;
        Ok(None)
    }

    /// Returns the value. Adds an error about the field, and returns `None`, if it is invalid.
    fn take<T, E: de::Error>(
        &self,
        draft: &mut ItemDraft,
        name: &str,
        parsed: Result<T, Invalid>,
    ) -> Result<Option<T>, E> {
        match parsed {
            Ok(value) => Ok(Some(value)),
            Err(Invalid(detail)) => {
                draft.is_wrong = true;
                self.errors.add(format!("/adjustments/{}/{name}", self.index), detail)?;
                Ok(None)
            }
        }
    }

    /// Reads a field into the draft. A field that is null counts as missing.
    fn read<'de, A: MapAccess<'de>>(
        &self,
        draft: &mut ItemDraft,
        name: &'static str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        let given = map.next_value_seed(ScalarSeed)?;
        if matches!(given, Scalar::Null) {
            return Ok(());
        }
        match name {
            "product_id" => {
                let parsed = text(&given).and_then(|text| ProductId::parse(&text));
                draft.product_id = self.take(draft, name, parsed)?;
            }
            "delta" => {
                let parsed = whole(&given).and_then(StockChange::delta);
                draft.delta = self.take(draft, name, parsed)?;
            }
            "set" => {
                let parsed = whole(&given).and_then(StockChange::set);
                draft.set = self.take(draft, name, parsed)?;
            }
            "if_version" => draft.if_version = self.take(draft, name, whole(&given))?,
            "reason" => {
                let checked = |text: String| Adjustment::check_reason(&text).map(|()| text);
                draft.reason = self.take(draft, name, text(&given).and_then(checked))?;
            }
            _ => {
                let checked = |text: String| Adjustment::check_reference(&text).map(|()| text);
                draft.reference = self.take(draft, name, text(&given).and_then(checked))?;
            }
        }
        Ok(())
    }

    /// Adds errors about the fields that a whole adjustment needs.
    fn finish<E: de::Error>(&self, mut draft: ItemDraft) -> Result<Option<Adjustment>, E> {
        let missing = |detail: &str| Err::<(), _>(Invalid(detail.to_owned()));
        // A wrong field was read, and is not missing.
        let is_right = !draft.is_wrong;
        if is_right && draft.product_id.is_none() {
            self.take(&mut draft, "product_id", missing("is missing"))?;
        }
        if is_right && draft.reason.is_none() {
            self.take(&mut draft, "reason", missing("is missing"))?;
        }
        let change = match (draft.delta, draft.set) {
            (Some(_), Some(_)) => {
                let detail = "must be missing; an adjustment has either delta or set";
                self.take(&mut draft, "set", missing(detail))?;
                None
            }
            (None, None) if is_right => {
                self.take(&mut draft, "delta", missing(NO_CHANGE))?;
                None
            }
            (delta, set) => delta.or(set),
        };
        let ItemDraft { product_id, if_version, reason, reference, is_wrong, .. } = draft;
        let (Some(product_id), Some(change), Some(reason), false) =
            (product_id, change, reason, is_wrong)
        else {
            return Ok(None);
        };
        Ok(Some(Adjustment { product_id, change, if_version, reason, reference }))
    }
}

impl<'de> Visitor<'de> for ItemSeed<'_> {
    type Value = Option<Adjustment>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an adjustment")
    }

    refuse_scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Option<Adjustment>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        self.refuse()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Adjustment>, A::Error> {
        let (mut draft, mut fields) = (ItemDraft::default(), Fields::new(&ADJUSTMENT_FIELDS));
        while let Some(name) = map.next_key_seed(NameSeed(fields.names))? {
            match fields.note(name) {
                Ok(name) => self.read(&mut draft, name, &mut map)?,
                Err(WrongName { shown, fault }) => {
                    let detail = format!(
                        "{fault}; an adjustment has {}, each once",
                        ADJUSTMENT_FIELDS.join(", ")
                    );
                    self.take(&mut draft, &shown, Err::<(), _>(Invalid(detail)))?;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        self.finish(draft)
    }
}

fn text(given: &Scalar) -> Result<String, Invalid> {
    match given {
        Scalar::Text(text) => Ok(text.clone()),
        other => Err(Invalid(format!("must be a string, not {}", other.shown()))),
    }
}

fn whole(given: &Scalar) -> Result<i64, Invalid> {
    match given {
        Scalar::Whole(number) => Ok(*number),
        other => Err(Invalid(format!("must be a whole number, not {}", other.shown()))),
    }
}
