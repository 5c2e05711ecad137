use apache_avro::{
    Schema, rabin::Rabin, reader::datum::GenericDatumReader,
    schema_compatibility::SchemaCompatibility, types::Value,
};

use super::fingerprint::{Fingerprint, fingerprint};

/// Why a schema of another system cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("the schema of {0} is no JSON: {1}")]
    NoJson(String, #[source] serde_json::Error),
    #[error("the schema of {0} is no Avro schema: {1}")]
    NoSchema(String, #[source] Box<apache_avro::Error>),
    #[error(
        "the values of {name} can be read neither as order_event ({event}) nor as order_status ({status})"
    )]
    Unreadable { name: String, event: String, status: String },
}

/// A schema that another system writes its values with, such as one with a field that ours lacks.
pub(crate) struct WriterSchema {
    /// Where it comes from, for errors.
    name: String,
    /// The id that a schema registry gave it, if it is registered.
    pub(super) registered_id: Option<u32>,
    pub(super) fingerprint: Fingerprint,
    /// It lives as long as the process: all readers of its values borrow it.
    schema: &'static Schema,
}

impl WriterSchema {
    /// Parses the text of an `.avsc` file. Keeps its memory until the process ends. Fails if it is
    /// no Avro schema.
    pub(crate) fn parse(
        name: &str,
        registered_id: Option<u32>,
        text: &str,
    ) -> Result<Self, SchemaError> {
        let json = serde_json::from_str(text)
            .map_err(|error| SchemaError::NoJson(name.to_owned(), error))?;
        let schema = Schema::parse(&json)
            .map_err(|error| SchemaError::NoSchema(name.to_owned(), Box::new(error)))?;
        let fingerprint = fingerprint(&json);
        Ok(Self {
            name: name.to_owned(),
            registered_id,
            fingerprint,
            schema: Box::leak(Box::new(schema)),
        })
    }

    /// Fails unless one of these can read its values: an event's or a status's schema.
    pub(super) fn check(&self, event: &Schema, status: &Schema) -> Result<(), SchemaError> {
        let why = |reader: &Schema| SchemaCompatibility::can_read(self.schema, reader).err();
        match (why(event), why(status)) {
            (Some(event), Some(status)) => {
                let (event, status) = (event.to_string(), status.to_string());
                Err(SchemaError::Unreadable { name: self.name.clone(), event, status })
            }
            _ => Ok(()),
        }
    }

    /// What versions before the specification's fingerprint wrote for it. Their values may still be
    /// on the topics.
    pub(super) fn former_fingerprint(&self) -> Fingerprint {
        let mut fingerprint = Fingerprint::default();
        for (byte, former) in fingerprint.iter_mut().zip(self.schema.fingerprint::<Rabin>().bytes) {
            *byte = former;
        }
        fingerprint
    }

    pub(super) fn is_read_by(&self, reader: &Schema) -> bool {
        SchemaCompatibility::can_read(self.schema, reader).is_ok()
    }

    /// A reader of its values as values of `reader`. Fails if one of the schemas does not resolve.
    pub(super) fn resolve(&self, reader: &'static Schema) -> Result<WrittenWith, SchemaError> {
        let resolved = GenericDatumReader::builder(self.schema).reader_schema(reader).build();
        resolved
            .map(WrittenWith)
            .map_err(|error| SchemaError::NoSchema(self.name.clone(), Box::new(error)))
    }
}

/// Reads what was written with another schema.
pub(super) struct WrittenWith(GenericDatumReader<'static>);

impl WrittenWith {
    pub(super) fn read_value(&self, datum: &mut &[u8]) -> Result<Value, apache_avro::Error> {
        self.0.read_value(datum)
    }
}
