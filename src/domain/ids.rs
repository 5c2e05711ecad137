use std::{fmt, str::FromStr, sync::Arc};

use chrono::{DateTime, Utc};
use uuid::{Builder, Uuid, Variant, Version};

use super::Invalid;

/// A product's id: 1 to 64 bytes of ASCII 0x21 to 0x7E, case-sensitive, ordered by bytes.
///
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductId(Arc<str>);

impl ProductId {
    pub(crate) const MAX_BYTES: usize = 64;

    /// Fails if the text is empty, too long, or has a byte outside 0x21 to 0x7E.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let allowed = (1..=Self::MAX_BYTES).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic());
        if allowed {
            return Ok(Self(text.into()));
        }
        let shown: String = text.chars().take(Self::MAX_BYTES).collect();
        Err(Invalid(format!(
            "{shown:?} is not a product id: 1 to 64 printable ASCII characters without spaces"
        )))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProductId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ProductId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An order's id: a `UUIDv7`. Its leading 48 bits are the time when it was made, so that ids are in
/// the order of their age.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(Uuid);

impl OrderId {
    /// The id of an order made at `made_at`, which is cut to whole milliseconds and to the years
    /// 1970 to 10889. 74 of the `random` bits are used.
    pub fn new(made_at: DateTime<Utc>, random: &[u8; 10]) -> Self {
        let millis =
            u64::try_from(made_at.timestamp_millis()).unwrap_or_default().min((1 << 48) - 1);
        Self(Builder::from_unix_timestamp_millis(millis, random).into_uuid())
    }

    /// The lowest id of a millisecond.
    pub fn first_of(time: DateTime<Utc>) -> Self {
        Self::new(time, &[0; 10])
    }

    /// The id of these bytes, with the version and the variant of a `UUIDv7`.
    pub(crate) fn with_bits(bytes: [u8; 16]) -> Self {
        let v7 = Builder::from_bytes(bytes).with_version(Version::SortRand);
        Self(v7.with_variant(Variant::RFC4122).into_uuid())
    }

    /// Fails if the bytes are not a `UUIDv7`.
    pub(crate) fn from_slice(bytes: &[u8]) -> Result<Self, Invalid> {
        let uuid = Uuid::from_slice(bytes).map_err(|e| Invalid(format!("not an order id: {e}")))?;
        Self::checked(uuid).ok_or_else(|| Invalid(format!("not an order id: {uuid} is no UUIDv7")))
    }

    fn checked(uuid: Uuid) -> Option<Self> {
        let is_v7 =
            uuid.get_version() == Some(Version::SortRand) && uuid.get_variant() == Variant::RFC4122;
        is_v7.then_some(Self(uuid))
    }

    /// When the id was made, by the clock of its maker, in milliseconds.
    pub fn made_at(self) -> DateTime<Utc> {
        let millis =
            self.0.as_bytes()[..6].iter().fold(0, |millis, byte| millis << 8 | i64::from(*byte));
        DateTime::from_timestamp_millis(millis).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    pub fn uuid(self) -> Uuid {
        self.0
    }
}

impl FromStr for OrderId {
    type Err = Invalid;

    /// Fails for any text but the hyphenated form of a `UUIDv7`, in either case.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hyphenated = text.len() == 36;
        Uuid::try_parse(text)
            .ok()
            .filter(|_| hyphenated)
            .and_then(Self::checked)
            .ok_or_else(|| Invalid(format!("{text:?} is not an order id: a hyphenated UUIDv7")))
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.hyphenated())
    }
}

impl fmt::Debug for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_id_is_printable_ascii_of_bounded_length() {
        assert!(ProductId::parse("sku-1").is_ok());
        assert!(ProductId::parse(&"x".repeat(64)).is_ok());
        for bad in ["", " ", "a b", "é", "tab\t", "\u{7f}", &"x".repeat(65)] {
            assert!(ProductId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn product_ids_are_ordered_by_bytes_and_differ_by_case() {
        let mut ids: Vec<_> =
            ["b", "a", "B", "a1"].iter().map(|s| ProductId::parse(s).unwrap()).collect();
        ids.sort();
        assert_eq!(ids.iter().map(ProductId::as_str).collect::<Vec<_>>(), ["B", "a", "a1", "b"]);
    }

    #[test]
    fn an_order_id_is_read_only_in_its_hyphenated_form() {
        let id = OrderId::new(DateTime::UNIX_EPOCH, &[0xAB; 10]);
        assert_eq!(id.to_string().parse::<OrderId>(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse::<OrderId>(), Ok(id));
        assert!(id.uuid().simple().to_string().parse::<OrderId>().is_err());
        assert!("no-uuid".parse::<OrderId>().is_err());
    }

    #[test]
    fn an_order_id_is_a_uuid_v7_and_no_other() {
        // A nil id, versions 1 and 4, and version 7 of another variant.
        for other in [
            "00000000-0000-0000-0000-000000000000",
            "c232ab00-9414-11ec-b3c8-9f6bdeced846",
            "919108f7-52d1-4320-9bac-f847db4148a8",
            "017f22e2-79b0-7cc3-c8c4-dc0c0c07398f",
        ] {
            assert!(other.parse::<OrderId>().is_err(), "{other}");
            assert!(
                OrderId::from_slice(other.parse::<Uuid>().unwrap().as_bytes()).is_err(),
                "{other}"
            );
        }
    }

    #[test]
    fn ids_have_the_time_when_they_were_made_and_its_order() {
        let time = DateTime::from_timestamp_millis(1_700_000_000_123).unwrap();
        let (first, last) = (OrderId::first_of(time), OrderId::new(time, &[0xFF; 10]));
        let next = OrderId::first_of(DateTime::from_timestamp_millis(1_700_000_000_124).unwrap());
        assert!(first < last && last < next);
        assert_eq!((first.made_at(), last.made_at()), (time, time));
        assert_eq!(first.to_string().parse(), Ok(first));
    }

    #[test]
    fn an_id_of_any_bits_is_a_uuid_v7() {
        for bits in [[0; 16], [0xFF; 16]] {
            let id = OrderId::with_bits(bits);
            assert_eq!(OrderId::from_slice(id.as_bytes()), Ok(id));
        }
        let id = OrderId::new(DateTime::UNIX_EPOCH, &[0xAB; 10]);
        assert_eq!(OrderId::with_bits(*id.as_bytes()), id);
    }
}
