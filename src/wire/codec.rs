use std::sync::LazyLock;

use apache_avro::{Schema, rabin::Rabin, reader::datum::GenericDatumReader, writer::datum::GenericDatumWriter};
use serde::{Serialize, de::DeserializeOwned};

use crate::domain::Invalid;

const SINGLE_OBJECT_MARKER: [u8; 2] = [0xC3, 0x01];
const HEADER_BYTES: usize = 10;

/// Why bytes are no message of ours. Each is the message's own fault, never an outage's.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the value is empty")]
    Empty,
    #[error("the value has neither Avro's single-object header nor one that is known: it begins with {0:02x?}")]
    UnknownFraming(Vec<u8>),
    #[error("the value was written with an unknown schema, fingerprint {0:016x}")]
    UnknownSchema(u64),
    #[error("the value does not decode: {0}")]
    Undecodable(#[source] Box<apache_avro::Error>),
    #[error("{0} bytes follow the value")]
    TrailingBytes(usize),
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl WireError {
    /// A bounded label for metrics and dead-letter headers.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Empty | Self::UnknownFraming(_) | Self::Undecodable(_) | Self::TrailingBytes(_) => "undecodable",
            Self::UnknownSchema(_) => "unknown_schema",
            Self::Invalid(_) => "invalid",
        }
    }
}

/// Reads and writes the datums of one schema; the schema is resolved once.
pub struct Codec {
    header: [u8; HEADER_BYTES],
    reader: GenericDatumReader<'static>,
    writer: GenericDatumWriter<'static>,
}

impl Codec {
    /// Fails where the schema does not resolve, which a test of the embedded schemas rules out.
    pub fn new(schema: &'static LazyLock<Schema>) -> Result<Self, Box<apache_avro::Error>> {
        let mut header = [0; HEADER_BYTES];
        header[..2].copy_from_slice(&SINGLE_OBJECT_MARKER);
        header[2..].copy_from_slice(&schema.fingerprint::<Rabin>().bytes);
        Ok(Self {
            header,
            reader: GenericDatumReader::builder(schema).build().map_err(Box::new)?,
            writer: GenericDatumWriter::builder(schema).build().map_err(Box::new)?,
        })
    }

    pub fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, WireError> {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&self.header);
        self.writer.write_ser(&mut bytes, value).map_err(|e| WireError::Undecodable(Box::new(e)))?;
        Ok(bytes)
    }

    pub fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, WireError> {
        let mut datum = self.datum(bytes)?;
        let value = self.reader.read_deser(&mut datum).map_err(|e| WireError::Undecodable(Box::new(e)))?;
        if datum.is_empty() { Ok(value) } else { Err(WireError::TrailingBytes(datum.len())) }
    }

    /// The datum behind the header. Other framings and older schemas join here.
    fn datum<'b>(&self, bytes: &'b [u8]) -> Result<&'b [u8], WireError> {
        if bytes.is_empty() {
            return Err(WireError::Empty);
        }
        let Some((header, datum)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(WireError::UnknownFraming(bytes.to_vec()));
        };
        if *header == self.header {
            return Ok(datum);
        }
        match header {
            [0xC3, 0x01, fingerprint @ ..] => Err(WireError::UnknownSchema(u64::from_le_bytes(*fingerprint))),
            _ => Err(WireError::UnknownFraming(header.to_vec())),
        }
    }
}
