use std::{collections::HashMap, sync::LazyLock};

use apache_avro::{
    Schema, from_value, reader::datum::GenericDatumReader, util::max_allocation_bytes,
};
use serde::de::DeserializeOwned;

use super::{
    WireError, WriterSchema,
    datum::DatumWriter,
    fingerprint::{Fingerprint, fingerprint},
    writer_schema::{ForeignReader, SchemaError},
};

/// The name of this crate's schemas in errors.
const OWN_NAME: &str = "this version";
const EARLIER_NAME: &str = "an earlier version";
const SINGLE_OBJECT_MARKER: [u8; 2] = [0xC3, 0x01];
const SINGLE_OBJECT_HEADER_BYTES: usize = 10;
/// The header that schema registries define: a zero, and the schema's id, big-endian.
pub(super) const REGISTRY_HEADER_BYTES: usize = 5;
/// The most memory for one string, or for one array or map without what its items point to.
/// apache-avro allocates it as soon as it has read the length, before the content.
const MAX_ALLOCATION_BYTES: usize = 2 << 20;

/// A schema of this crate.
pub(super) struct OwnSchema {
    /// The text of its file.
    pub(super) text: &'static str,
    pub(super) parsed: LazyLock<Schema>,
    /// The texts of earlier versions, whose values may still be on the topics.
    pub(super) earlier: &'static [&'static str],
}

/// A value without its header, and the schema that it was written with.
enum Unframed<'b> {
    Own { datum: &'b [u8] },
    Foreign { reader: &'b ForeignReader, datum: &'b [u8] },
}

/// Reads values of one schema of this crate, and of all known schemas that resolve to it. Begins
/// values of the own schema.
///
/// Every schema is resolved once, as `apache-avro` is slow at it. Values of the own schema are read
/// without an intermediate value.
pub(super) struct Codec {
    header: [u8; SINGLE_OBJECT_HEADER_BYTES],
    own: GenericDatumReader<'static>,
    by_fingerprint: HashMap<Fingerprint, ForeignReader>,
    by_registered_id: HashMap<u32, ForeignReader>,
}

impl Codec {
    /// Ignores a schema of `writers`, the schemas of other systems, whose values the own schema
    /// cannot read.
    ///
    /// Fails if a schema is no Avro schema or does not resolve. A test rules that out for the
    /// schemas of this crate.
    pub(super) fn new(
        own: &'static OwnSchema,
        writers: &[WriterSchema],
    ) -> Result<Self, SchemaError> {
        max_allocation_bytes(MAX_ALLOCATION_BYTES);
        let schema: &'static Schema = &own.parsed;
        let json = serde_json::from_str(own.text)
            .map_err(|source| SchemaError::NoJson { name: OWN_NAME.to_owned(), source })?;
        let own_reader = GenericDatumReader::builder(schema).build();
        let mut codec = Self {
            header: header(fingerprint(&json)),
            own: own_reader.map_err(|error| SchemaError::Unresolved {
                name: OWN_NAME.to_owned(),
                source: Box::new(error),
            })?,
            by_fingerprint: HashMap::new(),
            by_registered_id: HashMap::new(),
        };
        let earlier = own.earlier.iter().map(|text| WriterSchema::parse(EARLIER_NAME, None, text));
        let earlier = earlier.collect::<Result<Vec<_>, _>>()?;
        for writer in &earlier {
            codec.by_fingerprint.insert(writer.former_fingerprint(), writer.resolve(schema)?);
        }
        for writer in earlier.iter().chain(writers).filter(|writer| writer.is_read_by(schema)) {
            codec.by_fingerprint.insert(writer.fingerprint, writer.resolve(schema)?);
            if let Some(id) = writer.registered_id {
                codec.by_registered_id.insert(id, writer.resolve(schema)?);
            }
        }
        Ok(codec)
    }

    /// Begins a value of the own schema: its header, without any field yet.
    pub(super) fn begin(&self) -> DatumWriter {
        DatumWriter::after(&self.header)
    }

    /// Reads a value: all of the bytes must be one value in a known framing and of a known schema.
    ///
    /// Fails with every variant of [`WireError`] except `BrokenJson` and `Invalid`.
    pub(super) fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, WireError> {
        let (value, rest) = match self.unframe(bytes)? {
            Unframed::Own { mut datum } => {
                (self.own.read_deser(&mut datum).map_err(broken_datum)?, datum)
            }
            Unframed::Foreign { reader, mut datum } => {
                let value = reader.read_value(&mut datum).map_err(broken_datum)?;
                (from_value(&value).map_err(broken_datum)?, datum)
            }
        };
        if rest.is_empty() { Ok(value) } else { Err(WireError::TrailingBytes(rest.len())) }
    }

    /// Reads the header. Fails with `Empty`, `UnknownFraming`, `UnknownSchema` or
    /// `UnregisteredSchema`.
    fn unframe<'b>(&'b self, bytes: &'b [u8]) -> Result<Unframed<'b>, WireError> {
        if let Some((header, datum)) = bytes.split_first_chunk::<SINGLE_OBJECT_HEADER_BYTES>() {
            if *header == self.header {
                return Ok(Unframed::Own { datum });
            }
            if let [0xC3, 0x01, fingerprint @ ..] = header {
                let reader = self.by_fingerprint.get(fingerprint);
                return reader
                    .map(|reader| Unframed::Foreign { reader, datum })
                    .ok_or_else(|| WireError::UnknownSchema(u64::from_be_bytes(*fingerprint)));
            }
        }
        let Some(([0, id @ ..], datum)) = bytes.split_first_chunk::<REGISTRY_HEADER_BYTES>() else {
            return Err(WireError::unknown_framing(bytes));
        };
        let id = u32::from_be_bytes(*id);
        let reader = self.by_registered_id.get(&id);
        reader
            .map(|reader| Unframed::Foreign { reader, datum })
            .ok_or(WireError::UnregisteredSchema(id))
    }
}

fn broken_datum(error: apache_avro::Error) -> WireError {
    WireError::BrokenDatum(Box::new(error))
}

fn header(fingerprint: Fingerprint) -> [u8; SINGLE_OBJECT_HEADER_BYTES] {
    let mut header = [0; SINGLE_OBJECT_HEADER_BYTES];
    header[..2].copy_from_slice(&SINGLE_OBJECT_MARKER);
    header[2..].copy_from_slice(&fingerprint);
    header
}
