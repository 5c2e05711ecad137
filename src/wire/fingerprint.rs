use serde_json::{Map, Value};

/// Identifies a schema in the header of a value, in the order of the header's bytes.
pub(super) type Fingerprint = [u8; 8];

/// The initial value of CRC-64-AVRO, which is also its polynomial.
const CRC64_EMPTY: u64 = 0xC15D_213A_A4D7_A795;

const PRIMITIVES: [&str; 8] =
    ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];

/// The fingerprint of a valid schema (Avro 1.12 specification, "Schema Fingerprints"): CRC-64-AVRO,
/// little-endian, over the schema's Parsing Canonical Form. That form has no docs, so a change of
/// docs keeps the fingerprint.
///
/// The library `apache-avro` computes another fingerprint for some schemas. It does not reduce
/// `{"type":"string","logicalType":"uuid"}` to `"string"`, although the rules STRIP and PRIMITIVES
/// together require it.
pub(super) fn fingerprint(schema: &Value) -> Fingerprint {
    let mut canonical = String::new();
    write_schema(schema, "", &mut canonical);
    crc64(canonical.as_bytes()).to_le_bytes()
}

fn crc64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(CRC64_EMPTY, |crc, byte| {
        let mut entry = (crc ^ u64::from(*byte)) & 0xFF;
        for _ in 0..8 {
            entry = (entry >> 1) ^ (CRC64_EMPTY & (entry & 1).wrapping_neg());
        }
        (crc >> 8) ^ entry
    })
}

/// Writes the Parsing Canonical Form of a schema within `namespace`.
fn write_schema(schema: &Value, namespace: &str, out: &mut String) {
    match schema {
        Value::String(name) => write_text(&full_name(name, namespace), out),
        Value::Array(variants) => {
            write_list(variants, out, |variant, out| write_schema(variant, namespace, out));
        }
        Value::Object(schema) => match schema.get("type") {
            Some(Value::String(kind)) => write_complex(schema, kind, namespace, out),
            Some(nested) => write_schema(nested, namespace, out),
            None => {}
        },
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn write_complex(schema: &Map<String, Value>, kind: &str, namespace: &str, out: &mut String) {
    let inner = |key: &str| schema.get(key).unwrap_or(&Value::Null);
    match kind {
        "array" | "map" => {
            let of = if kind == "array" { "items" } else { "values" };
            out.extend([r#"{"type":""#, kind, r#"",""#, of, r#"":"#]);
            write_schema(inner(of), namespace, out);
        }
        "record" | "error" | "enum" | "fixed" => {
            let name = inner("name").as_str().unwrap_or_default();
            let name = full_name(
                name,
                schema.get("namespace").and_then(Value::as_str).unwrap_or(namespace),
            );
            out.push_str(r#"{"name":"#);
            write_text(&name, out);
            out.extend([r#","type":""#, kind, r#"""#]);
            write_attribute(
                schema,
                kind,
                name.rsplit_once('.').map_or("", |(namespace, _)| namespace),
                out,
            );
        }
        name => return write_text(&full_name(name, namespace), out),
    }
    out.push('}');
}

/// Writes the one attribute that a named type has besides its name and its type.
fn write_attribute(schema: &Map<String, Value>, kind: &str, namespace: &str, out: &mut String) {
    let list = |key: &str| {
        schema.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    };
    match kind {
        "enum" => {
            out.push_str(r#","symbols":"#);
            write_list(list("symbols"), out, |symbol, out| {
                write_text(symbol.as_str().unwrap_or_default(), out);
            });
        }
        "fixed" => {
            let size = schema
                .get("size")
                .map(|size| size.as_str().map_or_else(|| size.to_string(), str::to_owned));
            out.extend([r#","size":"#, &size.unwrap_or_default()]);
        }
        _ => {
            out.push_str(r#","fields":"#);
            write_list(list("fields"), out, |field, out| {
                out.push_str(r#"{"name":"#);
                write_text(field["name"].as_str().unwrap_or_default(), out);
                out.push_str(r#","type":"#);
                write_schema(&field["type"], namespace, out);
                out.push('}');
            });
        }
    }
}

fn write_list(items: &[Value], out: &mut String, write: impl Fn(&Value, &mut String)) {
    out.push('[');
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            out.push(',');
        }
        write(item, out);
    }
    out.push(']');
}

fn write_text(text: &str, out: &mut String) {
    out.push_str(&Value::from(text).to_string());
}

fn full_name(name: &str, namespace: &str) -> String {
    if namespace.is_empty() || name.contains('.') || PRIMITIVES.contains(&name) {
        name.to_owned()
    } else {
        format!("{namespace}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(schema: &str) -> String {
        let mut out = String::new();
        write_schema(&serde_json::from_str(schema).unwrap(), "", &mut out);
        out
    }

    /// The expected form and fingerprint are those of Java's `SchemaNormalization` and of fastavro.
    #[test]
    fn every_kind_of_schema_has_the_canonical_form_of_other_languages() {
        let schema = r#"{"type":"record","name":"r","namespace":"a.b","doc":"d","aliases":["q"],
            "fields":[
            {"type":{"type":"string","logicalType":"uuid"},"name":"id","default":"x",
                "order":"ignore"},
            {"name":"e","type":["null",
                {"type":"enum","name":"e","symbols":["X","Y"],"default":"X"}],"default":null},
            {"name":"f","type":{"size":16,"type":"fixed","name":"c.f"}},
            {"name":"m","type":{"type":"map","values":{"type":"array","items":"c.f"}}},
            {"name":"again","type":["null","e","r"]},
            {"name":"inner","type":{"type":"record","name":"i","namespace":"",
                "fields":[{"name":"j","type":"long"}]}}]}"#;
        let expected = concat!(
            r#"{"name":"a.b.r","type":"record","fields":[{"name":"id","type":"string"},"#,
            r#"{"name":"e","type":["null",{"name":"a.b.e","type":"enum","symbols":["X","Y"]}]},"#,
            r#"{"name":"f","type":{"name":"c.f","type":"fixed","size":16}},"#,
            r#"{"name":"m","type":{"type":"map","values":{"type":"array","items":"c.f"}}},"#,
            r#"{"name":"again","type":["null","a.b.e","a.b.r"]},"#,
            r#"{"name":"inner","type":{"name":"i","type":"record","#,
            r#""fields":[{"name":"j","type":"long"}]}}]}"#
        );

        assert_eq!(canonical(schema), expected);
        assert_eq!(
            fingerprint(&serde_json::from_str(schema).unwrap()),
            0x435d_309f_99ab_97d4_u64.to_be_bytes()
        );
    }

    #[test]
    fn a_primitive_type_is_reduced_to_its_name() {
        assert_eq!(canonical(r#"{"type":{"type":"int"}}"#), r#""int""#);
        assert_eq!(crc64(b"\"int\""), 0x7275_d51a_3f39_5c8f);
    }
}
