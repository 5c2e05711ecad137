//! What a record of the intake says beside its value: by what it is recognized if it is delivered
//! again.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use chrono::{DateTime, TimeDelta, Utc};
use rdkafka::{
    Message as _,
    message::{Headers as _, OwnedMessage},
};
use sha2::{Digest as _, Sha256};

use super::{idempotency, problem::Problem};
use crate::domain::{Horizon, OrderId};

/// The form of the text that is digested. An id must not change with the version.
const FORM: &str = "stocklock order request record 1\n";
const KEY_HEADER: &str = "idempotency-key";

/// Where a record was produced, and when. A record that is produced again from a dead letter is
/// still the first one, which its headers name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordOrigin {
    topic: String,
    partition: i32,
    offset: i64,
    /// By the clock of the producer or of the broker. `None` if the record has no usable one.
    pub(crate) produced_at: Option<DateTime<Utc>>,
}

/// Whether a key of a record may be looked up and bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyAge {
    /// If the key was bound before, it is still known.
    Known,
    /// The key may be forgotten.
    Forgotten,
    /// The record is from the future, so its key may be forgotten before its age says so.
    FromTheFuture,
}

impl RecordOrigin {
    pub(crate) fn of(message: &OwnedMessage) -> Self {
        Self::of_first(message).unwrap_or_else(|| Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            produced_at: message.timestamp().to_millis().and_then(usable_time),
        })
    }

    /// The origin that the headers of a dead letter name. `None` if there is none, or if it is of
    /// another topic.
    fn of_first(message: &OwnedMessage) -> Option<Self> {
        let header = |name| {
            let mut headers = message.headers()?.iter();
            let found = headers.find(|header| header.key == name)?;
            std::str::from_utf8(found.value?).ok()
        };
        let topic = header("stocklock.original.topic").filter(|name| *name == message.topic())?;
        let millis = header("stocklock.original.timestamp")?.parse().ok();
        Some(Self {
            topic: topic.to_owned(),
            partition: header("stocklock.original.partition")?.parse().ok()?,
            offset: header("stocklock.original.offset")?.parse().ok()?,
            produced_at: millis.and_then(usable_time),
        })
    }

    /// The id of the order that the record makes, if nothing else names it: a `UUIDv7` of the
    /// record's time, whose other bits digest the origin. So each delivery makes the same id.
    ///
    /// `None` without a usable time.
    pub(super) fn order_id(&self) -> Option<OrderId> {
        let produced_at = self.produced_at?;
        let Self { topic, partition, offset, .. } = self;
        let millis = produced_at.timestamp_millis();
        let text = format!("{FORM}{topic}\n{partition}\n{offset}\n{millis}");
        let digest: [u8; 32] = Sha256::digest(text).into();
        let mut bits = [0; 10];
        bits.copy_from_slice(&digest[..10]);
        Some(OrderId::new(produced_at, &bits))
    }

    /// Whether the key of a record is known, if it was bound before. Keys are kept for `kept`, and
    /// clocks differ, so a tenth of it (a day at most) is a margin.
    ///
    /// `None` without a usable time.
    pub(super) fn key_age(&self, now: DateTime<Utc>, kept: Duration) -> Option<KeyAge> {
        let age = now - self.produced_at?;
        let max_age = Horizon::new(kept).longest_wait();
        let is_within = |age: TimeDelta, max| TimeDelta::from_std(max).is_ok_and(|max| age <= max);
        Some(if !is_within(age, max_age) {
            KeyAge::Forgotten
        } else if !is_within(-age, kept.saturating_sub(max_age)) {
            KeyAge::FromTheFuture
        } else {
            KeyAge::Known
        })
    }
}

/// `None` for a time before 1970, which says that there is none, or beyond what chrono represents.
fn usable_time(millis: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(millis).filter(|time| *time >= DateTime::UNIX_EPOCH)
}

/// The `Idempotency-Key` header of a record, whose name may have any case. Fails as
/// [`idempotency::key`] does.
pub(super) fn key(message: &OwnedMessage) -> Result<Option<String>, Problem> {
    let mut headers = HeaderMap::new();
    for header in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        if !header.key.eq_ignore_ascii_case(KEY_HEADER) {
            continue;
        }
        // Bytes that HTTP does not allow become an empty key, which is refused as they are.
        let value = HeaderValue::from_bytes(header.value.unwrap_or_default());
        headers.append(KEY_HEADER, value.unwrap_or(HeaderValue::from_static("")));
    }
    idempotency::key(&headers)
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        Timestamp,
        message::{Header, OwnedHeaders},
    };

    use super::*;

    const PRODUCED_AT_MS: i64 = 1_800_000_000_000;
    const DAY: Duration = Duration::from_secs(86_400);

    fn record(headers: &[(&str, &str)], offset: i64, timestamp: Timestamp) -> OwnedMessage {
        let headers = headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        OwnedMessage::new(None, None, "t".to_owned(), timestamp, 3, offset, Some(headers))
    }

    fn produced(headers: &[(&str, &str)], offset: i64) -> RecordOrigin {
        RecordOrigin::of(&record(headers, offset, Timestamp::CreateTime(PRODUCED_AT_MS)))
    }

    #[test]
    fn each_record_has_an_id_of_its_own_that_never_changes() {
        let id = produced(&[], 7).order_id().unwrap();

        assert_eq!(id.made_at().timestamp_millis(), PRODUCED_AT_MS);
        assert_eq!(id.to_string(), "01a3185c-5000-7057-9930-fab25733524b");
        assert_ne!(produced(&[], 8).order_id(), Some(id));
    }

    #[test]
    fn a_record_without_a_usable_time_has_no_id() {
        for timestamp in [Timestamp::NotAvailable, Timestamp::CreateTime(-5)] {
            let origin = RecordOrigin::of(&record(&[], 7, timestamp));

            assert_eq!((origin.order_id(), origin.key_age(Utc::now(), DAY)), (None, None));
        }
    }

    #[test]
    fn a_record_that_is_produced_again_from_a_letter_stays_the_first_one() {
        let time = PRODUCED_AT_MS.to_string();
        let headers = |topic| {
            [
                ("stocklock.original.topic", topic),
                ("stocklock.original.partition", "3"),
                ("stocklock.original.offset", "7"),
                ("stocklock.original.timestamp", time.as_str()),
            ]
        };

        assert_eq!(produced(&headers("t"), 99), produced(&[], 7));
        assert_eq!(produced(&headers("other"), 99), produced(&[], 99));
    }

    #[test]
    fn a_key_is_known_within_its_age_and_a_margin() {
        let origin = produced(&[], 7);
        let age_after = |hours: i64| {
            let now = origin.produced_at.unwrap() + TimeDelta::hours(hours);
            origin.key_age(now, 10 * DAY)
        };

        assert_eq!(age_after(9 * 24), Some(KeyAge::Known));
        assert_eq!(age_after(9 * 24 + 1), Some(KeyAge::Forgotten));
        assert_eq!(age_after(-24), Some(KeyAge::Known));
        assert_eq!(age_after(-25), Some(KeyAge::FromTheFuture));
    }

    #[test]
    fn a_key_is_read_as_the_header_of_a_request_is() {
        let read = |headers: &[(&str, &str)]| {
            key(&record(headers, 7, Timestamp::NotAvailable)).map_err(|problem| problem.text())
        };

        assert_eq!(read(&[("traceparent", "x")]), Ok(None));
        assert_eq!(read(&[("Idempotency-Key", "\"k\"")]), Ok(Some("k".to_owned())));
        assert!(read(&[("Idempotency-Key", "k"), ("idempotency-key", "k")]).is_err());
        assert!(read(&[("Idempotency-Key", "a\nb")]).is_err());
    }
}
