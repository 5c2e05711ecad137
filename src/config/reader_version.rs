use std::fmt;

/// A version of stocklock without its last number, such as `0.1`. All releases of one such version
/// read and write the same values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReaderVersion {
    major: u16,
    minor: u16,
}

impl ReaderVersion {
    /// The oldest version whose values and readers are known.
    pub(crate) const OLDEST: Self = Self::new(0, 1);

    pub(crate) const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// The version of this binary. `None` only if the version of the crate has another form, which
    /// a test rules out.
    fn own() -> Option<Self> {
        Self::numbers(env!("CARGO_PKG_VERSION").rsplit_once('.')?.0)
    }

    /// Fails unless the text is `MAJOR.MINOR`, from [`Self::OLDEST`] to the version of this binary.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (oldest, own) = (Self::OLDEST, Self::own().unwrap_or(Self::OLDEST));
        let found = Self::numbers(text).filter(|version| (oldest..=own).contains(version));
        found.ok_or_else(|| {
            if oldest == own {
                format!("expected {own}, the only version that this one knows")
            } else {
                format!("expected a version from {oldest} to {own}")
            }
        })
    }

    fn numbers(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        // The parser of the library takes a sign too.
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let number = |text: &str| text.parse().ok().filter(|_| is_number(text));
        Some(Self { major: number(major)?, minor: number(minor)? })
    }
}

impl fmt::Display for ReaderVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_version_is_known_to_this_binary() {
        let own = ReaderVersion::own().unwrap();

        assert_eq!(ReaderVersion::parse("0.1"), Ok(ReaderVersion::OLDEST));
        assert_eq!(ReaderVersion::parse(&own.to_string()), Ok(own));
        for unknown in ["0.0", "999.0", "0.1.0", "1", "", "v0.1", "-1.0", "+0.+1", "0.+1"] {
            assert!(ReaderVersion::parse(unknown).is_err(), "{unknown}");
        }
        assert!(ReaderVersion::new(0, 9) < ReaderVersion::new(0, 10));
    }
}
