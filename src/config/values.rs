//! Reads the values of keys, and gathers all errors.

use std::time::Duration;

use super::{Allowed, ConfigError, Key, Layers, formats};

/// A value that is one of a key's words.
pub(super) trait FromText: Sized {
    /// `None` if the text is none of the words.
    fn from_text(text: &str) -> Option<Self>;
}

/// Reads keys one by one. A wrong value is noted as an error, and the key's default is read in its
/// place, so that one run reports every wrong key.
pub(super) struct Values<'a> {
    layers: &'a Layers,
    errors: Vec<String>,
}

impl<'a> Values<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self { layers, errors: layers.errors().to_vec() }
    }

    /// Fails with all errors that were noted.
    pub(super) fn finish(self) -> Result<(), ConfigError> {
        if self.errors.is_empty() { Ok(()) } else { Err(ConfigError(self.errors)) }
    }

    /// Reads one of a key's words. A capital letter counts.
    pub(super) fn choice<T: FromText>(&mut self, name: &str) -> T {
        let allowed = key(name).allowed;
        self.read(name, |text| T::from_text(text).ok_or_else(|| format!("expected {allowed}")))
    }

    /// Reads one of a key's words, however it is capitalised. Returns it as the list of keys writes
    /// it. An empty text is read where the key's default is empty.
    pub(super) fn word(&mut self, name: &str) -> &'static str {
        let key = key(name);
        let Allowed::Word(words) = key.allowed else { wrong_kind(key) };
        self.read(name, |text| match text {
            "" if key.default.is_empty() => Ok(""),
            text => formats::one_of(text, words),
        })
    }

    /// Reads `true` or `false`.
    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.word(name) == "true"
    }

    /// Reads a text that is not empty.
    pub(super) fn text(&mut self, name: &str) -> String {
        self.read(
            name,
            |text| {
                if text.is_empty() { Err(expected(name)) } else { Ok(text.to_owned()) }
            },
        )
    }

    /// Reads a text, or `None` if it is empty.
    pub(super) fn optional(&mut self, name: &str) -> Option<String> {
        self.read(name, |text| Ok((!text.is_empty()).then(|| text.to_owned())))
    }

    /// Reads a whole number within the key's bounds.
    pub(super) fn number<T: TryFrom<i64>>(&mut self, name: &str) -> T {
        let key = key(name);
        let Allowed::Number { min, max, .. } = key.allowed else { wrong_kind(key) };
        self.read(name, |text| {
            let number = text.parse().ok().filter(|number| (min..=max).contains(number));
            number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| expected(name))
        })
    }

    /// Reads a duration within the key's bounds.
    pub(super) fn duration(&mut self, name: &str) -> Duration {
        self.duration_within(name, Duration::ZERO, Duration::MAX)
    }

    /// The same, with bounds that depend on other keys as well.
    pub(super) fn duration_within(&mut self, name: &str, min: Duration, max: Duration) -> Duration {
        let key = key(name);
        let Allowed::Time { min: key_min, max: key_max } = key.allowed else { wrong_kind(key) };
        let (min, max) = (min.max(key_min), max.min(key_max));
        self.read(name, |text| {
            let value = humantime::parse_duration(text).map_err(|error| {
                format!("expected a duration such as 250ms, 10s or 7d: {error}")
            })?;
            if (min..=max).contains(&value) {
                return Ok(value);
            }
            let allowed = Allowed::Time { min, max };
            Err(format!("expected a duration from {allowed}"))
        })
    }

    /// Notes an error of a key whose value conflicts with another key's value.
    pub(super) fn refuse(&mut self, name: &str, error: &str) {
        self.note(key(name), error);
    }

    /// Notes an error if one of two keys is set without the other.
    pub(super) fn go_together(&mut self, first: &str, second: &str) {
        for (name, other) in [(first, second), (second, first)] {
            if self.optional(name).is_none() && self.optional(other).is_some() {
                self.refuse(name, &format!("expected a value, because {other} is set"));
            }
        }
    }

    /// Reads a value by `parse`, whose error says what was expected.
    #[expect(clippy::panic, reason = "a default that does not parse is a bug that a test finds")]
    pub(super) fn read<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let key = key(name);
        let (text, _) = self.layers.value(key);
        let error = match parse(text) {
            Ok(value) => return value,
            Err(error) => error,
        };
        self.note(key, &error);
        match parse(key.default) {
            Ok(value) => value,
            Err(error) => panic!("{name}: default: {error}"),
        }
    }

    fn note(&mut self, key: &Key, error: &str) {
        let (text, origin) = self.layers.value(key);
        let shown = key.shown(text);
        self.errors.push(format!("{} = {shown:?} ({origin}): {error}", key.name));
    }
}

fn expected(name: &str) -> String {
    format!("expected {}", key(name).allowed)
}

#[expect(clippy::panic, reason = "a name that the list lacks is a bug that a test finds")]
fn key(name: &str) -> &'static Key {
    Key::find(name).unwrap_or_else(|| panic!("no key {name}"))
}

#[expect(clippy::panic, reason = "a key that is read as another kind is a bug that a test finds")]
fn wrong_kind(key: &Key) -> ! {
    panic!("{} takes {}", key.name, key.allowed)
}
