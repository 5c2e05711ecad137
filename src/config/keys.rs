//! The list of all settings. It is the one source of defaults and bounds.
//!
//! - [`Values`](super::values::Values) validates a value by [`Key::allowed`].
//! - `stocklock config` shows the list.
//! - A reference page is written from [`KEYS`]: [`Key::name`], [`Key::environment_name`],
//!   [`Key::default`], [`Key::allowed`] (its `Display` has the bounds and the unit), [`Key::rule`]
//!   and [`Key::help`].

use std::{fmt, time::Duration};

use super::{SecretUrl, formats::short_duration};

mod list;

pub use list::KEYS;

pub(super) const BOOLEANS: [&str; 2] = ["false", "true"];
pub(super) const SECURITY_PROTOCOLS: [&str; 4] = ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"];
/// The SASL mechanisms that librdkafka has without Cyrus SASL. GSSAPI needs that library.
pub(super) const SASL_MECHANISMS: [&str; 4] =
    ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"];

/// A key of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    /// The default, as a user would write it. Empty means that the key is not set, and that a user
    /// may leave it empty too.
    pub(crate) default: &'static str,
    /// The values that the key takes.
    pub(crate) allowed: Allowed,
    /// A relation to other keys that [`super::Config::resolve`] checks beyond `allowed`. Empty:
    /// none.
    pub(crate) rule: &'static str,
    pub help: &'static str,
}

/// The values that a key takes. Bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// A whole number.
    Number { min: i64, max: i64, unit: &'static str },
    /// A time with its unit, such as `250ms`, `10s` or `7d`.
    Time { min: Duration, max: Duration },
    /// One of these words.
    Word(&'static [&'static str]),
    /// A text of this form; [`super::formats`] checks it.
    Form(&'static str),
}

/// The bounds and the unit, in words: `1 to 64 lanes`, `6s to 5m`, `row or redlock`.
impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Number { min, max, unit } => write!(f, "{min} to {max} {unit}"),
            Self::Time { min, max } => {
                write!(f, "{} to {}", short_duration(min), short_duration(max))
            }
            Self::Word(words) => match words {
                [first @ .., last] if !first.is_empty() => {
                    write!(f, "{} or {last}", first.join(", "))
                }
                _ => f.write_str(&words.join("")),
            },
            Self::Form(form) => f.write_str(form),
        }
    }
}

impl Key {
    const fn with_rule(self, rule: &'static str) -> Self {
        Self { rule, ..self }
    }

    /// `STOCKLOCK__SECTION__KEY`
    pub(crate) fn environment_name(&self) -> String {
        format!("STOCKLOCK__{}", self.name.replace('.', "__").to_uppercase())
    }

    /// Whether the value is never shown. (A URL is shown without its password.)
    pub(crate) fn is_secret(&self) -> bool {
        // A text of certificates may have the private key behind them.
        ["password", "_secret", "_pem"].iter().any(|end| self.name.ends_with(end))
            || self.name == "client.token"
    }

    /// The value without its secret.
    pub(crate) fn shown(&self, value: &str) -> String {
        if self.is_secret() && !value.is_empty() {
            return "***".to_owned();
        }
        // The only list of URLs. In another URL, a comma may be part of a password.
        if self.name == "redis.urls" {
            let urls = value.split(',').map(|url| SecretUrl::new(url).to_string());
            return urls.collect::<Vec<_>>().join(",");
        }
        SecretUrl::new(value).to_string()
    }

    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The key whose name has the smallest Damerau–Levenshtein distance to `name`.
    pub(crate) fn nearest(name: &str) -> &'static Self {
        let nearest = KEYS.iter().min_by_key(|key| strsim::damerau_levenshtein(key.name, name));
        nearest.unwrap_or(&KEYS[0])
    }

    /// The key that a misspelt variable was meant to set: its underscores differ from those of
    /// [`Self::environment_name`], or its letters are small. `None` for an unrelated variable.
    pub(crate) fn meant_by(variable: &str) -> Option<&'static Self> {
        let name = variable.to_lowercase().replace(['.', '-'], "_");
        let name = name.strip_prefix("stocklock_")?;
        let plain = |text: &str| {
            text.replace('.', "_")
                .split('_')
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
                .join("_")
        };
        let meant = KEYS.iter().find(|key| plain(key.name) == plain(name));
        // Only our own variables have two underscores after this prefix.
        meant.or_else(|| {
            name.contains("__")
                .then(|| Self::nearest(&name.trim_start_matches('_').replace("__", ".")))
        })
    }
}

#[cfg(test)]
mod tests;
