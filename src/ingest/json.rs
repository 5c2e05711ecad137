//! A request's JSON, read as it comes: what is refused is never held, only what is wrong with it.

use std::{cell::RefCell, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::problem::{FieldError, MAX_ERRORS};
use crate::domain::{Line, MAX_LINES, MAX_QUANTITY, ProductId};

pub(super) const MAX_TEXT_CHARS: usize = 128;
/// How much of a value or a name an error shows.
const MAX_SHOWN_CHARS: usize = 64;
const ORDER_FIELDS: [&str; 3] = ["reference", "customer_id", "lines"];
const LINE_FIELDS: [&str; 2] = ["product_id", "quantity"];
const ORDER: &str = "must be an object with lines";
const LINE: &str = "must be an object with product_id and quantity";

/// What is wrong with a request, [`MAX_ERRORS`] at most.
#[derive(Debug, Default)]
pub(super) struct Errors(RefCell<Vec<FieldError>>);

impl Errors {
    /// Ends the reading where these are enough.
    fn add<E: de::Error>(
        &self,
        pointer: impl Into<String>,
        detail: impl Into<String>,
    ) -> Result<(), E> {
        self.0.borrow_mut().push(FieldError { pointer: pointer.into(), detail: detail.into() });
        if self.are_enough() { Err(E::custom("too many errors")) } else { Ok(()) }
    }

    pub(super) fn are_enough(&self) -> bool {
        self.0.borrow().len() >= MAX_ERRORS
    }

    pub(super) fn into_inner(self) -> Vec<FieldError> {
        self.0.into_inner()
    }
}

/// An order as far as it could be read.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(crate) reference: Option<String>,
    pub(crate) customer_id: Option<String>,
    /// Those that are valid.
    pub(crate) lines: Vec<Line>,
}

/// Reads an order. Fails where the JSON ends or breaks, or where the errors are enough.
pub(super) struct OrderSeed<'a>(pub &'a Errors);

/// Answers what else a value may be than what its visitor takes.
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

/// A seed that is its own visitor.
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

seed!(OrderSeed, Draft);
seed!(LinesSeed, Vec<Line>);
seed!(LineSeed, Option<Line>);
seed!(NameSeed, Name);

impl OrderSeed<'_> {
    fn refuse<E: de::Error>(self) -> Result<Draft, E> {
        self.0.add("", ORDER)?;
        Ok(Draft::default())
    }

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
        self.0.add(
            format!("/{name}"),
            format!("must be a string of 1 to {MAX_TEXT_CHARS} characters"),
        )?;
        Ok(None)
    }
}

impl<'de> Visitor<'de> for OrderSeed<'_> {
    type Value = Draft;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an order")
    }

    refuse_scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Draft, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        self.refuse()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Draft, A::Error> {
        let (mut draft, mut seen) = (Draft::default(), [false; ORDER_FIELDS.len()]);
        while let Some(name) = map.next_key_seed(NameSeed(&ORDER_FIELDS))? {
            match name.once(&mut seen) {
                Ok("reference") => draft.reference = self.text("reference", &mut map)?,
                Ok("customer_id") => draft.customer_id = self.text("customer_id", &mut map)?,
                Ok(_) => draft.lines = map.next_value_seed(LinesSeed(self.0))?,
                Err((name, wrong)) => {
                    let detail = format!(
                        "{wrong}; an order has reference, customer_id and lines, each once"
                    );
                    self.0.add(format!("/{name}"), detail)?;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if !seen[2] {
            self.0
                .add("/lines", format!("is missing; must be an array of 1 to {MAX_LINES} lines"))?;
        }
        Ok(draft)
    }
}

struct LinesSeed<'a>(&'a Errors);

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
    errors: &'a Errors,
    index: usize,
}

impl LineSeed<'_> {
    fn refuse<E: de::Error>(self) -> Result<Option<Line>, E> {
        self.errors.add(format!("/lines/{}", self.index), LINE)?;
        Ok(None)
    }

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
        let (mut product_id, mut quantity, mut seen) = (None, None, [false; LINE_FIELDS.len()]);
        let mut is_valid = true;
        while let Some(name) = map.next_key_seed(NameSeed(&LINE_FIELDS))? {
            match name.once(&mut seen) {
                Ok("product_id") => {
                    product_id = self.product_id(&map.next_value_seed(ScalarSeed)?)?;
                }
                Ok(_) => quantity = self.quantity(&map.next_value_seed(ScalarSeed)?)?,
                Err((name, wrong)) => {
                    is_valid = false;
                    self.blame(
                        &name,
                        format!("{wrong}; a line has product_id and quantity, each once"),
                    )?;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if !seen[0] {
            self.blame("product_id", "is missing")?;
        }
        if !seen[1] {
            self.blame(
                "quantity",
                format!("is missing; must be a whole number from 1 to {MAX_QUANTITY}"),
            )?;
        }
        let line = product_id.zip(quantity).filter(|_| is_valid);
        Ok(line.and_then(|(product_id, quantity)| Line::new(product_id, quantity).ok()))
    }
}

/// Reads a member's name. Takes the names that are known.
struct NameSeed<'a>(&'a [&'static str]);

enum Name {
    /// The number of the name among those that are known, and the name.
    Known(usize, &'static str),
    /// As an error's pointer shows it.
    Unknown(String),
}

impl Name {
    /// Fails with the name as a pointer shows it, and with what is wrong: unknown, or repeated.
    fn once(self, seen: &mut [bool]) -> Result<&'static str, (String, &'static str)> {
        match self {
            Self::Unknown(name) => Err((name, "unknown field")),
            Self::Known(number, name) => {
                let is_repeated =
                    seen.get_mut(number).is_none_or(|seen| std::mem::replace(seen, true));
                if is_repeated { Err((name.to_owned(), "repeated field")) } else { Ok(name) }
            }
        }
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Name, E> {
        let known = self.0.iter().enumerate().find(|(_, known)| **known == name);
        // RFC 6901, section 3.
        let shown = || cut(name, MAX_SHOWN_CHARS).replace('~', "~0").replace('/', "~1");
        Ok(known
            .map_or_else(|| Name::Unknown(shown()), |(number, known)| Name::Known(number, known)))
    }
}

/// Reads a value whose fields do not matter.
struct ScalarSeed;

enum Scalar {
    Null,
    /// One character more than any text may have, at most.
    Text(String),
    Whole(i64),
    /// As an error shows it.
    Other(String),
}

impl Scalar {
    fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Text(text) => format!("{:?}", cut(text, MAX_SHOWN_CHARS)),
            Self::Whole(n) => n.to_string(),
            Self::Other(shown) => shown.clone(),
        }
    }
}

impl<'de> DeserializeSeed<'de> for ScalarSeed {
    type Value = Scalar;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Scalar, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ScalarSeed {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar::Other(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Scalar, E> {
        Ok(Scalar::Whole(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Scalar, E> {
        Ok(i64::try_from(value).map_or_else(|_| Scalar::Other(value.to_string()), Scalar::Whole))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar::Other(format!("{value:?}")))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(value.chars().take(MAX_TEXT_CHARS + 1).collect()))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Scalar, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other("an array".to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other("an object".to_owned()))
    }
}

/// The beginning of a text, with an ellipsis where more follows.
fn cut(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
