use crate::domain::Invalid;

/// The most bytes of an unknown framing that an error shows.
const MAX_SHOWN_BYTES: usize = 10;

/// Why bytes are no value of their topic. The message itself is at fault, never an outage, so its
/// repetition is useless. The exception is `PendingSchema`.
///
/// The text includes the cause: it becomes the text of a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the value is empty")]
    Empty,
    /// The first bytes of the value, [`MAX_SHOWN_BYTES`] at most.
    #[error(
        "expected a value in Avro's single-object encoding, or in another encoding of its topic; \
         found a value that begins with {0:02x?}"
    )]
    UnknownFraming(Vec<u8>),
    /// The fingerprint, as other languages print it.
    #[error(
        "the value was written with an unknown schema, fingerprint {0:016x}: \
         write it with schemas/*.avsc, or name its schema in topics.writer_schemas"
    )]
    UnknownSchema(u64),
    /// The schema's id in the registry, and why it is of no use.
    #[error("the value carries the id {id} of a schema registry: {why}")]
    UnregisteredSchema { id: u32, why: String },
    /// The registry was not asked yet for the schema of this id, or has not answered. The message
    /// waits: it is never dead-lettered for that.
    #[error("the value carries the id {0} of a schema that is being looked up in the registry")]
    PendingSchema(u32),
    /// The bytes are no datum of their schema.
    #[error("the value does not decode: {0}")]
    BrokenDatum(#[source] Box<apache_avro::Error>),
    #[error("the value is no JSON object of this topic: {0}")]
    BrokenJson(#[source] serde_json::Error),
    #[error("expected the value to end after its datum, found {0} more bytes")]
    TrailingBytes(usize),
    /// The value decodes, but a field is outside its bounds.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl WireError {
    /// The class of the dead letter: a bounded label for metrics and headers.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::Empty
            | Self::UnknownFraming(_)
            | Self::BrokenDatum(_)
            | Self::BrokenJson(_)
            | Self::TrailingBytes(_) => "undecodable",
            Self::UnknownSchema(_) => "unknown_schema",
            Self::UnregisteredSchema { .. } | Self::PendingSchema(_) => "unregistered_schema",
            Self::Invalid(_) => "invalid",
        }
    }

    /// Whether the value can be read as soon as its schema is looked up.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self, Self::PendingSchema(_))
    }

    /// `Empty` or `UnknownFraming`.
    pub(super) fn unknown_framing(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Empty;
        }
        Self::UnknownFraming(bytes.iter().copied().take(MAX_SHOWN_BYTES).collect())
    }
}
