use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use apache_avro::{
    Schema, from_value, reader::datum::GenericDatumReader, util::max_allocation_bytes,
};
use serde::de::DeserializeOwned;

use super::{
    WireError, WriterSchema,
    datum::DatumWriter,
    fingerprint::{Fingerprint, fingerprint},
    registered::{Registered, RegisteredSchemas, Subject},
    writer_schema::{ForeignReader, SchemaError},
};

/// The name of this crate's schemas in errors.
const OWN_NAME: &str = "this version";
const NO_REGISTRY: &str = "none is used: write single-object encoding, set schema_registry.url, \
                           or name the schema as ID=FILE in topics.writer_schemas";
const UNREADABLE: &str = "the schema of this topic cannot read its values";
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
    parsed: OnceLock<Schema>,
    /// The texts of earlier versions, whose values may still be on the topics.
    pub(super) earlier: &'static [&'static str],
}

impl OwnSchema {
    pub(super) const fn new(text: &'static str, earlier: &'static [&'static str]) -> Self {
        Self { text, parsed: OnceLock::new(), earlier }
    }

    #[expect(clippy::expect_used, reason = "the texts are constants, and a test parses them")]
    pub(super) fn parsed(&self) -> &Schema {
        self.parsed.get_or_init(|| Schema::parse_str(self.text).expect("a schema of this crate"))
    }
}

/// A value without its header, and the schema that it was written with.
enum Unframed<'b> {
    Own { datum: &'b [u8] },
    Foreign { reader: &'b ForeignReader, datum: &'b [u8] },
    Registered { reader: Arc<ForeignReader>, datum: &'b [u8] },
}

/// The schemas of a registry, as a codec uses them.
struct FromRegistry {
    schemas: Arc<RegisteredSchemas>,
    subject: Arc<Subject>,
    /// The readers of schemas that the own schema can read. `None`: it cannot.
    readers: RwLock<HashMap<u32, Option<Arc<ForeignReader>>>>,
}

/// Reads values of one schema of this crate, and of all known schemas that resolve to it. Begins
/// values of the own schema.
///
/// Every schema is resolved once, as `apache-avro` is slow at it. Values of the own schema are read
/// without an intermediate value.
pub(super) struct Codec {
    header: [u8; SINGLE_OBJECT_HEADER_BYTES],
    own_schema: &'static Schema,
    own: GenericDatumReader<'static>,
    by_fingerprint: HashMap<Fingerprint, ForeignReader>,
    by_registered_id: HashMap<u32, ForeignReader>,
    registry: Option<FromRegistry>,
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
        let schema: &'static Schema = own.parsed();
        let json = serde_json::from_str(own.text)
            .map_err(|source| SchemaError::NoJson { name: OWN_NAME.to_owned(), source })?;
        let own_reader = GenericDatumReader::builder(schema).build();
        let mut codec = Self {
            header: header(fingerprint(&json)),
            own_schema: schema,
            own: own_reader.map_err(|error| SchemaError::Unresolved {
                name: OWN_NAME.to_owned(),
                source: Box::new(error),
            })?,
            by_fingerprint: HashMap::new(),
            by_registered_id: HashMap::new(),
            registry: None,
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

    /// Reads and writes the values of `topic` with the ids of a registry, too, if both are there.
    pub(super) fn with_registry(
        mut self,
        schemas: Option<&Arc<RegisteredSchemas>>,
        topic: Option<&str>,
    ) -> Self {
        self.registry = schemas.zip(topic).and_then(|(schemas, topic)| {
            let (subject, schemas) = (schemas.subject_of(topic)?, Arc::clone(schemas));
            Some(FromRegistry { schemas, subject, readers: RwLock::default() })
        });
        self
    }

    /// Begins a value of the own schema: its header, without any field yet. The header has the id
    /// of the schema in the registry, if there is a registry and the id is known.
    pub(super) fn begin(&self) -> DatumWriter {
        match self.own_id() {
            Some(id) => DatumWriter::after(&registry_header(id)),
            None => DatumWriter::after(&self.header),
        }
    }

    /// Whether the id of the own schema is known, if there is a registry.
    pub(super) fn can_write(&self) -> bool {
        self.registry.is_none() || self.own_id().is_some()
    }

    fn own_id(&self) -> Option<u32> {
        self.registry.as_ref().and_then(|registry| registry.subject.id())
    }

    /// Reads a value: all of the bytes must be one value in a known framing and of a known schema.
    ///
    /// Fails with every variant of [`WireError`] except `BrokenJson` and `Invalid`. After
    /// `PendingSchema`, the same value can be read as soon as the schema is looked up.
    pub(super) fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, WireError> {
        let (value, rest) = match self.unframe(bytes)? {
            Unframed::Own { mut datum } => {
                (self.own.read_deser(&mut datum).map_err(broken_datum)?, datum)
            }
            Unframed::Foreign { reader, mut datum } => {
                let value = reader.read_value(&mut datum).map_err(broken_datum)?;
                (from_value(&value).map_err(broken_datum)?, datum)
            }
            Unframed::Registered { reader, mut datum } => {
                let value = reader.read_value(&mut datum).map_err(broken_datum)?;
                (from_value(&value).map_err(broken_datum)?, datum)
            }
        };
        if rest.is_empty() { Ok(value) } else { Err(WireError::TrailingBytes(rest.len())) }
    }

    /// Reads the header. Fails with `Empty`, `UnknownFraming`, `UnknownSchema`, `PendingSchema` or
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
        if self.own_id() == Some(id) {
            return Ok(Unframed::Own { datum });
        }
        if let Some(reader) = self.by_registered_id.get(&id) {
            return Ok(Unframed::Foreign { reader, datum });
        }
        let Some(registry) = &self.registry else {
            return Err(WireError::UnregisteredSchema { id, why: NO_REGISTRY.to_owned() });
        };
        let reader = registry.reader(id, self.own_schema)?;
        Ok(Unframed::Registered { reader, datum })
    }
}

impl FromRegistry {
    /// The reader of the values of a registered schema.
    ///
    /// Fails with `PendingSchema` if the registry has not answered yet, and with
    /// `UnregisteredSchema` if it has no such schema, or if the own schema cannot read the values.
    fn reader(&self, id: u32, own: &'static Schema) -> Result<Arc<ForeignReader>, WireError> {
        let known = self.readers.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let reader = if let Some(known) = known { known } else { self.resolve(id, own)? };
        reader.ok_or_else(|| WireError::UnregisteredSchema { id, why: UNREADABLE.to_owned() })
    }

    /// Makes a reader from what is known of the id, and keeps it. `None` if the own schema cannot
    /// read the values.
    fn resolve(
        &self,
        id: u32,
        own: &'static Schema,
    ) -> Result<Option<Arc<ForeignReader>>, WireError> {
        let reader = match self.schemas.find(id) {
            Registered::Schema(writer) if writer.is_read_by(own) => writer.resolve(own).ok(),
            Registered::Schema(_) => None,
            Registered::Absent(why) => return Err(WireError::UnregisteredSchema { id, why }),
            Registered::Pending => return Err(WireError::PendingSchema(id)),
        };
        let reader = reader.map(Arc::new);
        let mut readers = self.readers.write().unwrap_or_else(PoisonError::into_inner);
        readers.insert(id, reader.clone());
        Ok(reader)
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

fn registry_header(id: u32) -> [u8; REGISTRY_HEADER_BYTES] {
    let [a, b, c, d] = id.to_be_bytes();
    [0, a, b, c, d]
}
