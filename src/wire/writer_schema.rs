use std::io::Read;

use apache_avro::{
    Schema,
    error::{CompatibilityError, Details},
    rabin::Rabin,
    reader::datum::GenericDatumReader,
    schema_compatibility::SchemaCompatibility,
    types::Value,
};

use super::{
    bounded_schema::check_bounded,
    fingerprint::{Fingerprint, fingerprint},
};

/// Why a schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("the schema of {name} is no JSON")]
    NoJson {
        name: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("the schema of {name} is no Avro schema")]
    NoSchema {
        name: String,
        #[source]
        source: Box<apache_avro::Error>,
    },
    /// A named type in the schema is not defined there.
    #[error("the schema of {name} does not resolve")]
    Unresolved {
        name: String,
        #[source]
        source: Box<apache_avro::Error>,
    },
    #[error("the values of {name} cannot be read: {source}")]
    NotReadable {
        name: String,
        #[source]
        source: Box<CompatibilityError>,
    },
    /// A small value of the schema may cost any amount of memory.
    #[error("the schema of {name} {why}, so the memory for its values has no bound")]
    Unbounded { name: String, why: &'static str },
    /// No topic has a schema that can read the values of this one.
    #[error(
        "the values of {name} can be read neither as order_event ({event}) \
         nor as order_status ({status})"
    )]
    Unreadable {
        name: String,
        /// Why the schema of events cannot read them.
        event: Box<CompatibilityError>,
        /// Why the schema of statuses cannot read them.
        status: Box<CompatibilityError>,
    },
}

/// The schema that another system writes its values with. It may have a field that the schema of
/// this crate lacks.
pub struct WriterSchema {
    /// Where the schema comes from, for errors.
    name: String,
    /// The schema's id in a registry, if it is registered.
    pub(super) registered_id: Option<u32>,
    pub(super) fingerprint: Fingerprint,
    /// All readers of its values borrow the schema, so it lives as long as the process.
    schema: &'static Schema,
}

impl WriterSchema {
    /// Parses the text of an `.avsc` file. Keeps its memory until the process ends.
    ///
    /// Fails with `NoJson`, `NoSchema` or `Unbounded`.
    pub fn parse(name: &str, registered_id: Option<u32>, text: &str) -> Result<Self, SchemaError> {
        let json = serde_json::from_str(text)
            .map_err(|source| SchemaError::NoJson { name: name.to_owned(), source })?;
        let schema = Schema::parse(&json).map_err(|error| SchemaError::NoSchema {
            name: name.to_owned(),
            source: Box::new(error),
        })?;
        check_bounded(name, &schema)?;
        let fingerprint = fingerprint(&json);
        Ok(Self {
            name: name.to_owned(),
            registered_id,
            fingerprint,
            schema: Box::leak(Box::new(schema)),
        })
    }

    /// Fails with `Unreadable` unless one of two schemas can read the values: that of events, or
    /// that of statuses.
    pub(super) fn check(&self, event: &Schema, status: &Schema) -> Result<(), SchemaError> {
        let why = |reader: &Schema| SchemaCompatibility::can_read(self.schema, reader).err();
        match (why(event), why(status)) {
            (Some(event), Some(status)) => Err(SchemaError::Unreadable {
                name: self.name.clone(),
                event: Box::new(event),
                status: Box::new(status),
            }),
            _ => Ok(()),
        }
    }

    /// The fingerprint that earlier versions of this crate wrote, which is not the specification's.
    /// Their values may still be on the topics.
    pub(super) fn former_fingerprint(&self) -> Fingerprint {
        let mut fingerprint = Fingerprint::default();
        for (byte, former) in fingerprint.iter_mut().zip(self.schema.fingerprint::<Rabin>().bytes) {
            *byte = former;
        }
        fingerprint
    }

    /// Fails with `NotReadable` unless the schema `reader` can read the values.
    pub(super) fn check_read_by(&self, reader: &Self) -> Result<(), SchemaError> {
        let read = SchemaCompatibility::can_read(self.schema, reader.schema).map(drop);
        read.map_err(|source| SchemaError::NotReadable {
            name: self.name.clone(),
            source: Box::new(source),
        })
    }

    /// Whether `reader` can read the values.
    pub(super) fn is_read_by(&self, reader: &Schema) -> bool {
        SchemaCompatibility::can_read(self.schema, reader).is_ok()
    }

    /// A reader of the values that turns them into values of the schema `reader`.
    ///
    /// Fails with `Unresolved` if one of the schemas does not resolve.
    pub(super) fn resolve(&self, reader: &'static Schema) -> Result<ForeignReader, SchemaError> {
        let resolved = GenericDatumReader::builder(self.schema).reader_schema(reader).build();
        resolved.map(ForeignReader).map_err(|error| SchemaError::Unresolved {
            name: self.name.clone(),
            source: Box::new(error),
        })
    }
}

/// Reads values that were written with the schema of another system.
pub(super) struct ForeignReader(GenericDatumReader<'static>);

impl ForeignReader {
    /// Reads one value from the front of `datum`. Fails if the bytes are no value of the schema, or
    /// only the beginning of one.
    pub(super) fn read_value(&self, datum: &mut &[u8]) -> Result<Value, apache_avro::Error> {
        let mut source = Source { rest: datum, is_exhausted: false };
        let value = self.0.read_value(&mut source)?;
        *datum = source.rest;
        if source.is_exhausted {
            let cut = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(Details::ReadBytes(cut).into());
        }
        Ok(value)
    }
}

/// Bytes that note whether more of them were wanted. apache-avro reads null where a string, a
/// boolean or a union is cut off.
struct Source<'b> {
    rest: &'b [u8],
    is_exhausted: bool,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.rest.read(buffer)?;
        self.is_exhausted |= count < buffer.len();
        Ok(count)
    }
}
