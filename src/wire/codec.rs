use std::{collections::HashMap, sync::LazyLock};

use apache_avro::{Schema, from_value, reader::datum::GenericDatumReader};
use serde::de::DeserializeOwned;

use super::{
    WireError, WriterSchema,
    datum::Datum,
    fingerprint::{Fingerprint, fingerprint},
    writer_schema::{SchemaError, WrittenWith},
};

const SINGLE_OBJECT_MARKER: [u8; 2] = [0xC3, 0x01];
const SINGLE_OBJECT_HEADER_BYTES: usize = 10;
/// A zero, and the schema's id in the registry, big-endian.
pub(super) const REGISTRY_HEADER_BYTES: usize = 5;

/// A schema of this crate: the text of the file, and what it means.
pub(super) struct OwnSchema {
    pub(crate) text: &'static str,
    pub(crate) parsed: LazyLock<Schema>,
    /// What earlier versions wrote: their values may still be on the topics.
    pub(crate) earlier: &'static [&'static str],
}

/// A value without its header, and the schema that it was written with.
enum Framed<'b> {
    Ours(&'b [u8]),
    Foreign(&'b WrittenWith, &'b [u8]),
}

/// Reads values of one schema, and of all known schemas that resolve to it. Begins values of its
/// own schema.
///
/// Every schema is resolved once. Values of this crate are read without an intermediate value.
pub(super) struct Codec {
    header: [u8; SINGLE_OBJECT_HEADER_BYTES],
    own: GenericDatumReader<'static>,
    by_fingerprint: HashMap<Fingerprint, WrittenWith>,
    by_registered_id: HashMap<u32, WrittenWith>,
}

impl Codec {
    /// `writers` are the schemas of other systems. Those that do not resolve to the own schema are
    /// ignored.
    ///
    /// Fails if the own schema does not resolve, which a test of the embedded schemas rules out.
    pub(super) fn new(
        own: &'static OwnSchema,
        writers: &[WriterSchema],
    ) -> Result<Self, SchemaError> {
        let schema: &'static Schema = &own.parsed;
        let json = serde_json::from_str(own.text)
            .map_err(|error| SchemaError::NoJson("our own".to_owned(), error))?;
        let reader = GenericDatumReader::builder(schema).build();
        let mut codec = Self {
            header: header(fingerprint(&json)),
            own: reader
                .map_err(|error| SchemaError::NoSchema("our own".to_owned(), Box::new(error)))?,
            by_fingerprint: HashMap::new(),
            by_registered_id: HashMap::new(),
        };
        let earlier =
            own.earlier.iter().map(|text| WriterSchema::parse("an earlier version", None, text));
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

    /// A value of the own schema that has nothing but its header yet.
    pub(super) fn begin(&self) -> Datum {
        Datum::after(&self.header)
    }

    /// Fails unless all of the bytes are one value in a known framing, of a known schema.
    pub(super) fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, WireError> {
        let (value, rest) = match self.unframe(bytes)? {
            Framed::Ours(mut datum) => {
                (self.own.read_deser(&mut datum).map_err(undecodable)?, datum)
            }
            Framed::Foreign(written_with, mut datum) => {
                let value = written_with.read_value(&mut datum).map_err(undecodable)?;
                (from_value(&value).map_err(undecodable)?, datum)
            }
        };
        if rest.is_empty() { Ok(value) } else { Err(WireError::TrailingBytes(rest.len())) }
    }

    fn unframe<'b>(&'b self, bytes: &'b [u8]) -> Result<Framed<'b>, WireError> {
        if let Some((header, datum)) = bytes.split_first_chunk::<SINGLE_OBJECT_HEADER_BYTES>() {
            if *header == self.header {
                return Ok(Framed::Ours(datum));
            }
            if let [0xC3, 0x01, fingerprint @ ..] = header {
                let written_with = self.by_fingerprint.get(fingerprint);
                return written_with
                    .map(|written_with| Framed::Foreign(written_with, datum))
                    .ok_or_else(|| WireError::UnknownSchema(u64::from_be_bytes(*fingerprint)));
            }
        }
        let Some(([0, id @ ..], datum)) = bytes.split_first_chunk::<REGISTRY_HEADER_BYTES>() else {
            return Err(WireError::unknown_framing(bytes));
        };
        let id = u32::from_be_bytes(*id);
        let written_with = self.by_registered_id.get(&id);
        written_with
            .map(|written_with| Framed::Foreign(written_with, datum))
            .ok_or(WireError::UnregisteredSchema(id))
    }
}

fn undecodable(error: apache_avro::Error) -> WireError {
    WireError::Undecodable(Box::new(error))
}

fn header(fingerprint: Fingerprint) -> [u8; SINGLE_OBJECT_HEADER_BYTES] {
    let mut header = [0; SINGLE_OBJECT_HEADER_BYTES];
    header[..2].copy_from_slice(&SINGLE_OBJECT_MARKER);
    header[2..].copy_from_slice(&fingerprint);
    header
}
