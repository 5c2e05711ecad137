use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, de};

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The text of a JSON object, without a byte order mark. `None` if the bytes do not begin as a JSON
/// object does.
pub(super) fn object(bytes: &[u8]) -> Option<&[u8]> {
    let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes).trim_ascii_start();
    text.starts_with(b"{").then_some(text)
}

/// A time in JSON, in milliseconds since 1970. Other systems write it as such a number or as
/// RFC 3339 text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JsonTime {
    pub(super) millis: i64,
}

impl<'de> Deserialize<'de> for JsonTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TimeVisitor)
    }
}

struct TimeVisitor;

impl de::Visitor<'_> for TimeVisitor {
    type Value = JsonTime;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a time: milliseconds since 1970, or text such as 2026-01-31T12:00:00Z")
    }

    fn visit_i64<E: de::Error>(self, millis: i64) -> Result<JsonTime, E> {
        Ok(JsonTime { millis })
    }

    fn visit_u64<E: de::Error>(self, millis: u64) -> Result<JsonTime, E> {
        let millis = i64::try_from(millis)
            .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(millis), &self))?;
        Ok(JsonTime { millis })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<JsonTime, E> {
        let time = DateTime::parse_from_rfc3339(text);
        let time = time.map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))?;
        Ok(JsonTime { millis: time.with_timezone(&Utc).timestamp_millis() })
    }
}
