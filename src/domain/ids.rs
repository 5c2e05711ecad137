use std::{fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

use super::Invalid;

/// A product's key: 1 to 64 bytes of ASCII 0x21 to 0x7E, case-sensitive, ordered by bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductId(Arc<str>);

impl ProductId {
    pub const MAX_BYTES: usize = 64;

    /// Fails where the text is empty, too long, or has a byte outside 0x21 to 0x7E.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let allowed = (1..=Self::MAX_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if allowed {
            return Ok(Self(text.into()));
        }
        let shown: String = text.chars().take(Self::MAX_BYTES).collect();
        Err(Invalid(format!("{shown:?} is not a product id: 1 to 64 printable ASCII characters without spaces")))
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

/// An order's key: a `UUIDv7`, whose leading 48 bits are the time of its making.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(Uuid);

impl OrderId {
    /// A new id of the present time.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// Fails where the bytes are not 16.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, Invalid> {
        Uuid::from_slice(bytes).map(Self).map_err(|e| Invalid(format!("not an order id: {e}")))
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    pub fn uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for OrderId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl FromStr for OrderId {
    type Err = Invalid;

    /// Takes the hyphenated form in either case, and no other.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let hyphenated = text.len() == 36;
        Uuid::try_parse(text)
            .ok()
            .filter(|_| hyphenated)
            .map(Self)
            .ok_or_else(|| Invalid(format!("{text:?} is not an order id: a hyphenated UUID")))
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
        let mut ids: Vec<_> = ["b", "a", "B", "a1"].iter().map(|s| ProductId::parse(s).unwrap()).collect();
        ids.sort();
        assert_eq!(ids.iter().map(ProductId::as_str).collect::<Vec<_>>(), ["B", "a", "a1", "b"]);
    }

    #[test]
    fn an_order_id_is_read_in_its_hyphenated_form_alone() {
        let id = OrderId::generate();
        assert_eq!(id.to_string().parse::<OrderId>(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse::<OrderId>(), Ok(id));
        assert!(id.uuid().simple().to_string().parse::<OrderId>().is_err());
        assert!("no-uuid".parse::<OrderId>().is_err());
    }
}
