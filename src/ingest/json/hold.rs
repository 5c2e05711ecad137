//! Reads the JSON of a request to extend a hold.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    FieldErrors, hold_seconds, refuse_scalars, seed,
    values::{Fields, NameSeed, ScalarSeed, WrongName},
};

const FIELDS: [&str; 1] = ["hold_seconds"];

/// Reads an object with `hold_seconds`, and adds what is wrong with it to the errors. Returns
/// `None` if it is wrong. Fails if the JSON is broken, or once there are enough errors.
pub(in crate::ingest) struct HoldSeed<'a> {
    pub(in crate::ingest) errors: &'a FieldErrors,
    pub(in crate::ingest) hold_max_seconds: u32,
}

seed!(HoldSeed, Option<u32>);

impl HoldSeed<'_> {
    fn refuse<E: de::Error>(self) -> Result<Option<u32>, E> {
        self.errors.add("", "must be an object with hold_seconds")?;
        Ok(None)
    }
}

impl<'de> Visitor<'de> for HoldSeed<'_> {
    type Value = Option<u32>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a hold")
    }

    refuse_scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Option<u32>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        self.refuse()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<u32>, A::Error> {
        let (mut seconds, mut fields) = (None, Fields::new(&FIELDS));
        while let Some(name) = map.next_key_seed(NameSeed(fields.names))? {
            match fields.note(name) {
                Ok(_) => {
                    let given = map.next_value_seed(ScalarSeed)?;
                    seconds = hold_seconds(&given, self.errors, self.hold_max_seconds)?;
                }
                Err(WrongName { shown, fault }) => {
                    let detail = format!("{fault}; the request has hold_seconds, once");
                    self.errors.add(format!("/{shown}"), detail)?;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if !fields.has("hold_seconds") {
            let max = self.hold_max_seconds;
            let detail = format!("is missing; must be a whole number from 1 to {max}");
            self.errors.add("/hold_seconds", detail)?;
        }
        Ok(seconds)
    }
}
