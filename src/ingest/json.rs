//! Reads the JSON of an order request, and collects what is wrong with it.
//!
//! The JSON is parsed as a stream: a value that is wrong or unknown is skipped. So the result is
//! never larger than a valid order and 20 errors, however large the request is.

mod adjustments;
mod errors;
mod form;
mod hold;
mod values;

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::domain::{Line, MAX_LINES, MAX_QUANTITY, OrderId, ProductId};
pub(super) use adjustments::{AdjustmentsDraft, AdjustmentsSeed};
pub(super) use errors::FieldErrors;
pub(super) use form::OrderForm;
pub(super) use hold::HoldSeed;
use values::{Fields, NameSeed, Scalar, ScalarSeed, WrongName};

/// The most characters of a reference and of a customer id.
const MAX_TEXT_CHARS: usize = 128;
/// The longest idempotency key.
const MAX_KEY_BYTES: usize = 255;
const LINE_FIELDS: [&str; 2] = ["product_id", "quantity"];
const NOT_AN_ORDER: &str = "must be an object with lines";
const NOT_A_LINE: &str = "must be an object with product_id and quantity";

/// An order as far as it could be read. It is valid if there are no errors.
#[derive(Debug, Default)]
pub(super) struct OrderDraft {
    pub(super) reference: Option<String>,
    pub(super) customer_id: Option<String>,
    pub(super) hold_seconds: Option<u32>,
    /// The valid lines.
    pub(super) lines: Vec<Line>,
    pub(super) order_id: Option<OrderId>,
    pub(super) idempotency_key: Option<String>,
}

/// Reads an order and adds what is wrong with it to the errors. Fails if the JSON is broken, or
/// once there are [`MAX_FIELD_ERRORS`](super::problem::MAX_FIELD_ERRORS).
pub(super) struct OrderSeed<'a> {
    pub(super) errors: &'a FieldErrors,
    pub(super) form: OrderForm,
    pub(super) hold_max_seconds: u32,
}

/// The methods of a visitor that refuses every scalar. serde calls a method of its own for each
/// kind of value. A missing method would end the parser instead of adding an error.
macro_rules! refuse_scalars {
    () => {
        fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
            self.refuse()
        }
        fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
            self.refuse()
        }
        fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
            self.refuse()
        }
        fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
            self.refuse()
        }
        fn visit_str<E: de::Error>(self, _: &str) -> Result<Self::Value, E> {
            self.refuse()
        }
        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            self.refuse()
        }
    };
}

/// Makes a visitor its own seed.
macro_rules! seed {
    ($seed:ident, $value:ty) => {
        impl<'de> DeserializeSeed<'de> for $seed<'_> {
            type Value = $value;
            fn deserialize<D: Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<$value, D::Error> {
                deserializer.deserialize_any(self)
            }
        }
    };
}

use {refuse_scalars, seed};

seed!(OrderSeed, OrderDraft);
seed!(LinesSeed, Vec<Line>);
seed!(LineSeed, Option<Line>);

impl OrderSeed<'_> {
    fn refuse<E: de::Error>(self) -> Result<OrderDraft, E> {
        self.errors.add("", NOT_AN_ORDER)?;
        Ok(OrderDraft::default())
    }

    /// Reads the id that the caller made. It may be null.
    fn order_id<'de, A: MapAccess<'de>>(&self, map: &mut A) -> Result<Option<OrderId>, A::Error> {
        let given = map.next_value_seed(ScalarSeed)?;
        match &given {
            Scalar::Null => return Ok(None),
            Scalar::Text(text) => {
                if let Ok(id) = text.to_ascii_lowercase().parse() {
                    return Ok(Some(id));
                }
            }
            _ => {}
        }
        self.errors.add("/order_id", "must be a UUIDv7 as hyphenated text")?;
        Ok(None)
    }

    /// Reads an idempotency key. It may be null.
    fn key<'de, A: MapAccess<'de>>(&self, map: &mut A) -> Result<Option<String>, A::Error> {
        match map.next_value_seed(ScalarSeed)? {
            Scalar::Null => return Ok(None),
            Scalar::Text(key) if is_key(key.as_bytes()) => return Ok(Some(key)),
            _ => {}
        }
        let detail = format!("must be a string of 1 to {MAX_KEY_BYTES} visible ASCII characters");
        self.errors.add("/idempotency_key", detail)?;
        Ok(None)
    }

    /// Reads a text that may be null.
    fn text<'de, A: MapAccess<'de>>(
        &self,
        name: &str,
        map: &mut A,
    ) -> Result<Option<String>, A::Error> {
        match map.next_value_seed(ScalarSeed)? {
            Scalar::Null => return Ok(None),
            Scalar::Text(text) if (1..=MAX_TEXT_CHARS).contains(&text.chars().count()) => {
                return Ok(Some(text));
            }
            _ => {}
        }
        self.errors.add(
            format!("/{name}"),
            format!("must be a string of 1 to {MAX_TEXT_CHARS} characters"),
        )?;
        Ok(None)
    }
}

impl<'de> Visitor<'de> for OrderSeed<'_> {
    type Value = OrderDraft;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an order")
    }

    refuse_scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OrderDraft, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        self.refuse()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OrderDraft, A::Error> {
        let names = self.form.fields();
        let (mut draft, mut fields) = (OrderDraft::default(), Fields::new(names));
        while let Some(name) = map.next_key_seed(NameSeed(fields.names))? {
            match fields.note(name) {
                Ok("reference") => draft.reference = self.text("reference", &mut map)?,
                Ok("customer_id") => draft.customer_id = self.text("customer_id", &mut map)?,
                Ok("hold_seconds") => {
                    let given = map.next_value_seed(ScalarSeed)?;
                    if !matches!(given, Scalar::Null) {
                        draft.hold_seconds =
                            hold_seconds(&given, self.errors, self.hold_max_seconds)?;
                    }
                }
                Ok("order_id") => draft.order_id = self.order_id(&mut map)?,
                Ok("idempotency_key") => draft.idempotency_key = self.key(&mut map)?,
                Ok(_) => draft.lines = map.next_value_seed(LinesSeed(self.errors))?,
                Err(WrongName { shown, fault }) => {
                    let detail = format!("{fault}; an order has {}, each once", names.join(", "));
                    self.errors.add(format!("/{shown}"), detail)?;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if draft.order_id.is_some() && draft.idempotency_key.is_some() {
            let detail = "must be missing: the order id is the key of an order that has one";
            self.errors.add("/idempotency_key", detail)?;
        }
        if !fields.has("lines") {
            self.errors
                .add("/lines", format!("is missing; must be an array of 1 to {MAX_LINES} lines"))?;
        }
        Ok(draft)
    }
}

/// Whether the bytes are an idempotency key: 1 to 255 visible ASCII characters.
pub(super) fn is_key(bytes: &[u8]) -> bool {
    (1..=MAX_KEY_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

/// Reads the length of a hold. Adds an error, and returns `None`, unless it is a whole number from
/// 1 to `max`.
fn hold_seconds<E: de::Error>(
    given: &Scalar,
    errors: &FieldErrors,
    max: u32,
) -> Result<Option<u32>, E> {
    if let Scalar::Whole(seconds) = given
        && let Some(seconds) = u32::try_from(*seconds).ok().filter(|n| (1..=max).contains(n))
    {
        return Ok(Some(seconds));
    }
    let detail = format!("must be a whole number from 1 to {max}, not {}", given.shown());
    errors.add("/hold_seconds", detail)?;
    Ok(None)
}

struct LinesSeed<'a>(&'a FieldErrors);

impl LinesSeed<'_> {
    fn refuse<E: de::Error>(self) -> Result<Vec<Line>, E> {
        self.0.add("/lines", format!("must be an array of 1 to {MAX_LINES} lines"))?;
        Ok(Vec::new())
    }
}

impl<'de> Visitor<'de> for LinesSeed<'_> {
    type Value = Vec<Line>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lines")
    }

    refuse_scalars!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Line>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        self.refuse()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Line>, A::Error> {
        let (mut lines, mut count) = (Vec::new(), 0);
        while count < MAX_LINES {
            let Some(line) = items.next_element_seed(LineSeed { errors: self.0, index: count })?
            else {
                break;
            };
            lines.extend(line);
            count += 1;
        }
        if count == MAX_LINES {
            while items.next_element::<IgnoredAny>()?.is_some() {
                count += 1;
            }
        }
        if !(1..=MAX_LINES).contains(&count) {
            self.0.add(
                "/lines",
                format!("must be an array of 1 to {MAX_LINES} lines, not {count}"),
            )?;
        }
        Ok(lines)
    }
}

struct LineSeed<'a> {
    errors: &'a FieldErrors,
    index: usize,
}

impl LineSeed<'_> {
    fn refuse<E: de::Error>(self) -> Result<Option<Line>, E> {
        self.errors.add(format!("/lines/{}", self.index), NOT_A_LINE)?;
        Ok(None)
    }

    /// Adds an error about a field of the line.
    fn blame<E: de::Error>(&self, name: &str, detail: impl Into<String>) -> Result<(), E> {
        self.errors.add(format!("/lines/{}/{name}", self.index), detail)
    }

    fn product_id<E: de::Error>(&self, value: &Scalar) -> Result<Option<ProductId>, E> {
        let parsed = match value {
            Scalar::Text(text) => ProductId::parse(text).map_err(|e| e.to_string()),
            _ => Err("must be a string".to_owned()),
        };
        parsed
            .map_or_else(|wrong| self.blame("product_id", wrong).map(|()| None), |id| Ok(Some(id)))
    }

    fn quantity<E: de::Error>(&self, value: &Scalar) -> Result<Option<i64>, E> {
        match value {
            Scalar::Whole(n) if (1..=MAX_QUANTITY).contains(n) => Ok(Some(*n)),
            other => {
                let detail = format!(
                    "must be a whole number from 1 to {MAX_QUANTITY}, not {}",
                    other.shown()
                );
                self.blame("quantity", detail)?;
                Ok(None)
            }
        }
    }
}

impl<'de> Visitor<'de> for LineSeed<'_> {
    type Value = Option<Line>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line")
    }

    refuse_scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Option<Line>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        self.refuse()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Line>, A::Error> {
        let (mut product_id, mut quantity) = (None, None);
        let (mut fields, mut is_valid) = (Fields::new(&LINE_FIELDS), true);
        while let Some(name) = map.next_key_seed(NameSeed(fields.names))? {
            match fields.note(name) {
                Ok("product_id") => {
                    product_id = self.product_id(&map.next_value_seed(ScalarSeed)?)?;
                }
                Ok(_) => quantity = self.quantity(&map.next_value_seed(ScalarSeed)?)?,
                Err(WrongName { shown, fault }) => {
                    is_valid = false;
                    self.blame(
                        &shown,
                        format!("{fault}; a line has product_id and quantity, each once"),
                    )?;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if !fields.has("product_id") {
            self.blame("product_id", "is missing")?;
        }
        if !fields.has("quantity") {
            self.blame(
                "quantity",
                format!("is missing; must be a whole number from 1 to {MAX_QUANTITY}"),
            )?;
        }
        let line = product_id.zip(quantity).filter(|_| is_valid);
        Ok(line.and_then(|(product_id, quantity)| Line::new(product_id, quantity).ok()))
    }
}
