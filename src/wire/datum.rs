/// The room that a value begins with. Most values need no more.
const USUAL_BYTES: usize = 160;

/// Writes the fields of a record in Avro's binary encoding (Avro 1.12 specification, "Binary
/// Encoding"). The caller adds them one by one, in the order of the schema. Adding a field cannot
/// fail.
pub(super) struct DatumWriter(Vec<u8>);

impl DatumWriter {
    /// A datum without fields, behind `header`.
    pub(super) fn after(header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    /// Adds a `long`, or an `int` if the value fits.
    #[expect(clippy::cast_possible_truncation, reason = "only the low seven bits are meant")]
    pub(super) fn long(mut self, value: i64) -> Self {
        let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
        while rest > 0x7F {
            self.0.push(rest as u8 & 0x7F | 0x80);
            rest >>= 7;
        }
        self.0.push(rest as u8);
        self
    }

    /// Adds a `string`.
    pub(super) fn string(self, text: &str) -> Self {
        let mut datum = self.length(text.len());
        datum.0.extend_from_slice(text.as_bytes());
        datum
    }

    /// Adds a `["null", "string"]`.
    pub(super) fn optional_string(self, text: Option<&str>) -> Self {
        match text {
            None => self.long(0),
            Some(text) => self.long(1).string(text),
        }
    }

    /// Adds a `["null", "long"]`, or a `["null", "int"]` if the value fits.
    pub(super) fn optional_long(self, value: Option<i64>) -> Self {
        match value {
            None => self.long(0),
            Some(value) => self.long(1).long(value),
        }
    }

    /// Adds an `array`, as one block.
    pub(super) fn array<T>(self, items: &[T], write: impl Fn(Self, &T) -> Self) -> Self {
        if items.is_empty() {
            return self.long(0);
        }
        items.iter().fold(self.length(items.len()), write).long(0)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Adds the length of a string or array.
    fn length(self, length: usize) -> Self {
        self.long(i64::try_from(length).unwrap_or(i64::MAX))
    }
}
