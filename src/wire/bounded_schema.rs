//! Refuses schemas with which a small value costs much memory. Systems outside write the schemas.

use std::collections::HashMap;

use apache_avro::{
    Schema,
    schema::{InnerDecimalSchema, Name, UuidSchema},
};

use super::SchemaError;

/// The most types within types. The reader of a value uses some of its stack for each.
const MAX_DEPTH: usize = 64;
/// The most values of a record, without the items of its arrays and maps.
const MAX_VALUES: usize = 1_000;
/// The largest `fixed`. Its memory is allocated before its bytes are read.
const MAX_FIXED_BYTES: usize = 1 << 16;

/// Fails with `Unbounded` unless the memory for a value is in proportion to its bytes. Each of
/// these would break that:
/// - a type that contains itself: each byte of a value may be one more level on the stack;
/// - items of an array that take no bytes: their count is the only bound;
/// - a record of very many values, or a very large `fixed`.
pub(super) fn check_bounded(name: &str, schema: &Schema) -> Result<(), SchemaError> {
    let shape = Shapes::default().of(schema, MAX_DEPTH);
    shape.map(drop).map_err(|why| SchemaError::Unbounded { name: name.to_owned(), why })
}

/// What is known about each value of a type.
#[derive(Clone, Copy)]
struct Shape {
    takes_bytes: bool,
    /// The value and the values in it.
    values: usize,
    /// The types within the type, and itself.
    depth: usize,
}

impl Shape {
    const fn of_bytes(takes_bytes: bool) -> Self {
        Self { takes_bytes, values: 1, depth: 1 }
    }
}

/// The shapes of the named types. `None`: the walk is still within the type.
#[derive(Default)]
struct Shapes<'s>(HashMap<&'s Name, Option<Shape>>);

impl<'s> Shapes<'s> {
    /// Fails with what is wrong with the type. `room`: the depth that it may have.
    fn of(&mut self, schema: &'s Schema, room: usize) -> Result<Shape, &'static str> {
        let Some(inner_room) = room.checked_sub(1) else { return Err("nests its types too deep") };
        let shape = match schema {
            Schema::Null => Shape::of_bytes(false),
            Schema::Ref { name } => match self.0.get(name) {
                Some(None) => return Err("has a type that contains itself"),
                Some(Some(shape)) => *shape,
                // `WriterSchema::resolve` reports it.
                None => Shape::of_bytes(true),
            },
            Schema::Array(array) => self.of_collection(&array.items, false, inner_room)?,
            Schema::Map(map) => self.of_collection(&map.types, true, inner_room)?,
            Schema::Union(union) => {
                let together = self.together(union.variants().iter(), inner_room)?;
                Shape { takes_bytes: true, ..together }
            }
            Schema::Record(record) => {
                self.0.insert(&record.name, None);
                let fields = record.fields.iter().map(|field| &field.schema);
                let shape = self.together(fields, inner_room)?;
                self.0.insert(&record.name, Some(shape));
                shape
            }
            Schema::Enum(inner) => self.named(&inner.name, true),
            Schema::Fixed(fixed) | Schema::Uuid(UuidSchema::Fixed(fixed)) => {
                if fixed.size > MAX_FIXED_BYTES {
                    return Err("has too large a fixed");
                }
                self.named(&fixed.name, fixed.size > 0)
            }
            Schema::Decimal(decimal) => match &decimal.inner {
                InnerDecimalSchema::Fixed(fixed) if fixed.size > MAX_FIXED_BYTES => {
                    return Err("has too large a fixed");
                }
                InnerDecimalSchema::Fixed(fixed) => self.named(&fixed.name, fixed.size > 0),
                InnerDecimalSchema::Bytes => Shape::of_bytes(true),
            },
            _ => Shape::of_bytes(true),
        };
        if shape.depth > room {
            return Err("nests its types too deep");
        }
        Ok(shape)
    }

    fn named(&mut self, name: &'s Name, takes_bytes: bool) -> Shape {
        let shape = Shape::of_bytes(takes_bytes);
        self.0.insert(name, Some(shape));
        shape
    }

    /// The shape of an array or a map. Its count takes a byte.
    fn of_collection(
        &mut self,
        items: &'s Schema,
        has_keys: bool,
        room: usize,
    ) -> Result<Shape, &'static str> {
        let items = self.of(items, room)?;
        if !items.takes_bytes && !has_keys {
            return Err("has an array whose items take no bytes");
        }
        Ok(Shape { takes_bytes: true, values: 1, depth: items.depth + 1 })
    }

    /// The shape of a value that has all of these in it.
    fn together(
        &mut self,
        inner: impl Iterator<Item = &'s Schema>,
        room: usize,
    ) -> Result<Shape, &'static str> {
        let mut whole = Shape::of_bytes(false);
        for schema in inner {
            let shape = self.of(schema, room)?;
            whole.takes_bytes |= shape.takes_bytes;
            whole.values += shape.values;
            whole.depth = whole.depth.max(shape.depth + 1);
            if whole.values > MAX_VALUES {
                return Err("has a record of too many values");
            }
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(field: &str) -> Result<(), String> {
        let text =
            format!(r#"{{"type":"record","name":"r","fields":[{{"name":"f","type":{field}}}]}}"#);
        let schema = Schema::parse_str(&text).unwrap();
        check_bounded("a test", &schema).map_err(|error| error.to_string())
    }

    fn nested(levels: usize) -> String {
        (0..levels)
            .fold("\"int\"".to_owned(), |inner, _| format!(r#"{{"type":"array","items":{inner}}}"#))
    }

    /// Record types, of which each has two of the one before: 2^levels values without a byte.
    fn doubled(levels: usize) -> String {
        (0..levels).fold("\"null\"".to_owned(), |inner, level| {
            let again = if level == 0 { inner.clone() } else { format!(r#""l{}""#, level - 1) };
            format!(
                r#"{{"type":"record","name":"l{level}","fields":[{{"name":"a","type":{inner}}},
                {{"name":"b","type":{again}}}]}}"#
            )
        })
    }

    #[test]
    fn a_schema_whose_values_may_cost_any_amount_of_memory_is_refused() {
        let (deep, doubled) = (nested(MAX_DEPTH), doubled(20));
        for (field, why) in [
            (r#"["null","r"]"#, "contains itself"),
            (r#"{"type":"array","items":"r"}"#, "contains itself"),
            (r#"{"type":"array","items":"null"}"#, "take no bytes"),
            (r#"{"type":"array","items":{"type":"fixed","name":"z","size":0}}"#, "take no bytes"),
            (
                r#"{"type":"array","items":{"type":"record","name":"e","fields":[]}}"#,
                "take no bytes",
            ),
            (r#"{"type":"fixed","name":"z","size":1152921504606846976}"#, "too large a fixed"),
            (deep.as_str(), "too deep"),
            (doubled.as_str(), "too many values"),
        ] {
            let error = check(field).unwrap_err();

            assert!(error.contains(why), "{field}: {error}");
        }
    }

    #[test]
    fn the_usual_types_are_bounded() {
        for field in [
            r#"{"type":"map","values":"null"}"#,
            r#"{"type":"array","items":["null","string"]}"#,
            r#"{"type":"fixed","name":"z","size":65536}"#,
            r#"{"type":"bytes","logicalType":"decimal","precision":4,"scale":2}"#,
            &nested(MAX_DEPTH - 2),
            &doubled(4),
        ] {
            assert_eq!(check(field), Ok(()), "{field}");
        }
    }
}
