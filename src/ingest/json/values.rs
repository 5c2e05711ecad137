//! The names and scalar values of a request's JSON.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::MAX_KEY_BYTES;

/// The most fields that an object may have.
const MAX_FIELDS: usize = 8;
/// How much of a value or a name an error shows.
const MAX_SHOWN_CHARS: usize = 64;
/// Up to here a float is exact: 2^53.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// The fields that an object may have, and those that were read.
pub(super) struct Fields {
    pub(super) names: &'static [&'static str],
    is_seen: [bool; MAX_FIELDS],
}

/// The name of a field that an object may not have, or not once more.
pub(super) struct WrongName {
    /// The name as an error's pointer shows it.
    pub(super) shown: String,
    /// What is wrong: unknown or repeated.
    pub(super) fault: &'static str,
}

impl Fields {
    /// `names` are [`MAX_FIELDS`] at most.
    pub(super) fn new(names: &'static [&'static str]) -> Self {
        Self { names, is_seen: [false; MAX_FIELDS] }
    }

    /// Notes that a field was read. Fails if the object may not have it, or has it already.
    pub(super) fn note(&mut self, name: FieldName) -> Result<&'static str, WrongName> {
        match name {
            FieldName::Unknown { shown } => Err(WrongName { shown, fault: "unknown field" }),
            FieldName::Known(name) => {
                let mut fields = self.names.iter().zip(&mut self.is_seen);
                let is_repeated = fields
                    .find(|(known, _)| **known == name)
                    .is_none_or(|(_, is_seen)| std::mem::replace(is_seen, true));
                if is_repeated {
                    Err(WrongName { shown: name.to_owned(), fault: "repeated field" })
                } else {
                    Ok(name)
                }
            }
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().zip(self.is_seen).any(|(known, is_seen)| is_seen && *known == name)
    }
}

/// The name of an object's field.
pub(super) enum FieldName {
    Known(&'static str),
    /// As an error's pointer shows it.
    Unknown {
        shown: String,
    },
}

/// Reads the name of a field. Holds the names that are known.
pub(super) struct NameSeed<'a>(pub(super) &'a [&'static str]);

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = FieldName;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<FieldName, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = FieldName;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<FieldName, E> {
        // The escapes of RFC 6901, section 3.
        let shown = || cut(name, MAX_SHOWN_CHARS).replace('~', "~0").replace('/', "~1");
        let known = self.0.iter().find(|known| **known == name);
        Ok(known
            .map_or_else(|| FieldName::Unknown { shown: shown() }, |name| FieldName::Known(name)))
    }
}

/// A value without fields. The fields of any other value are skipped.
pub(super) enum Scalar {
    Null,
    /// Cut after [`MAX_KEY_BYTES`] + 1 characters, so that a longer text shows as too long.
    Text(String),
    Whole(i64),
    /// Any other value, as an error shows it.
    Other(String),
}

impl Scalar {
    /// The value as an error shows it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Text(text) => format!("{:?}", cut(text, MAX_SHOWN_CHARS)),
            Self::Whole(n) => n.to_string(),
            Self::Other(shown) => shown.clone(),
        }
    }
}

/// Reads a value of any kind.
pub(super) struct ScalarSeed;

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

    /// A number without a fraction is an integer in JSON Schema, however it is written.
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Scalar, E> {
        if value.fract() != 0.0 || value.abs() > MAX_EXACT {
            return Ok(Scalar::Other(format!("{value:?}")));
        }
        #[expect(clippy::cast_possible_truncation, reason = "a whole number within MAX_EXACT")]
        Ok(Scalar::Whole(value as i64))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(value.chars().take(MAX_KEY_BYTES + 1).collect()))
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

/// The beginning of a text, with an ellipsis if the text is longer.
fn cut(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
