use crate::domain::Invalid;

/// The most bytes of an unknown framing that an error shows.
const MAX_SHOWN_BYTES: usize = 10;

/// Why bytes are no message of ours. Each is the message's own fault, never an outage's.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the value is empty")]
    Empty,
    #[error(
        "the value is not in Avro's single-object encoding, nor in another that its topic has: it begins with {0:02x?}"
    )]
    UnknownFraming(Vec<u8>),
    #[error(
        "the value was written with an unknown schema, fingerprint {0:016x}: \
         write it with schemas/*.avsc, or name its schema in topics.writer_schemas"
    )]
    UnknownSchema(u64),
    #[error(
        "the value carries the id {0} of a schema registry, and none is used: \
         write it in single-object encoding, or name its schema in topics.writer_schemas as {0}=FILE"
    )]
    UnregisteredSchema(u32),
    #[error("the value does not decode: {0}")]
    Undecodable(#[source] Box<apache_avro::Error>),
    #[error("the value is no JSON object of this topic: {0}")]
    Json(#[source] serde_json::Error),
    #[error("{0} bytes follow the value")]
    TrailingBytes(usize),
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl WireError {
    /// A bounded label for metrics and dead-letter headers.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Empty
            | Self::UnknownFraming(_)
            | Self::Undecodable(_)
            | Self::Json(_)
            | Self::TrailingBytes(_) => "undecodable",
            Self::UnknownSchema(_) => "unknown_schema",
            Self::UnregisteredSchema(_) => "unregistered_schema",
            Self::Invalid(_) => "invalid",
        }
    }

    pub(super) fn unknown_framing(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Empty;
        }
        Self::UnknownFraming(bytes.iter().copied().take(MAX_SHOWN_BYTES).collect())
    }
}
