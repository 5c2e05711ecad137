use std::{collections::BTreeMap, ffi::OsString, fmt, path::Path};

use super::{KEYS, Key};

/// The layer that a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File,
    Environment,
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// All errors of a configuration: of each the key, its value and origin, and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// The values that are set, as text, each with its origin. Later layers win.
#[derive(Debug, Default)]
pub struct Layers {
    set: BTreeMap<&'static str, (String, Origin)>,
    errors: Vec<String>,
}

impl Layers {
    /// The variables of the environment. Replacement characters stand for bytes that are not UTF-8;
    /// [`super::Config::resolve`] reports them.
    pub(crate) fn variables() -> impl Iterator<Item = (String, String)> {
        let text = |text: OsString| text.to_string_lossy().into_owned();
        std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
    }

    /// Reads `file`, then the environment's variables, then `flags` of the form `section.key=value`.
    /// Never fails: [`super::Config::resolve`] reports the errors.
    pub fn read(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[String],
    ) -> Self {
        let mut layers = Self::default();
        if let Some(path) = file {
            layers.read_file(path);
        }
        for (name, value) in env {
            if let Some(key) = name.strip_prefix("STOCKLOCK__") {
                layers.set(
                    &key.replace("__", ".").to_lowercase(),
                    value,
                    Origin::Environment,
                    &name,
                );
            } else if let Some(meant) = Key::meant_by(&name) {
                layers.errors.push(format!(
                    "{name}: no such setting; did you mean {}?",
                    meant.environment_name()
                ));
            }
        }
        for flag in flags {
            match flag.split_once('=') {
                Some((key, value)) => layers.set(key, value.to_owned(), Origin::Flag, "--set"),
                None => layers.errors.push(format!("--set {flag}: expected SECTION.KEY=VALUE")),
            }
        }
        layers
    }

    /// These layers with more flags.
    #[must_use]
    pub(crate) fn with<'a>(&self, flags: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let mut layers = Self { set: self.set.clone(), errors: self.errors.clone() };
        for (key, value) in flags {
            layers.set(key, value, Origin::Flag, "--set");
        }
        layers
    }

    /// The values that are set, as variables for another process.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let keys = KEYS
            .iter()
            .filter_map(|key| Some((key.environment_name(), self.set.get(key.name)?.0.clone())));
        keys.collect()
    }

    /// The value of a key and its origin.
    pub(crate) fn value(&self, key: &Key) -> (&str, Origin) {
        match self.set.get(key.name) {
            Some((value, origin)) => (value, *origin),
            None => (key.default, Origin::Default),
        }
    }

    pub(super) fn errors(&self) -> &[String] {
        &self.errors
    }

    fn read_file(&mut self, path: &Path) {
        let shown = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                return self.errors.push(format!("{shown}: cannot read the file: {error}"));
            }
        };
        match text.parse::<toml::Table>() {
            Ok(table) => self.read_table("", table, &shown.to_string()),
            Err(error) => self.errors.push(format!("{shown}: expected TOML: {error}")),
        }
    }

    fn read_table(&mut self, prefix: &str, table: toml::Table, place: &str) {
        for (name, value) in table {
            let name = format!("{prefix}{name}");
            match value {
                toml::Value::Table(inner) => self.read_table(&format!("{name}."), inner, place),
                value => self.set(&name, as_text(&value), Origin::File, place),
            }
        }
    }

    fn set(&mut self, name: &str, value: String, origin: Origin, place: &str) {
        match Key::find(name) {
            Some(_) if value.contains(char::REPLACEMENT_CHARACTER) => {
                self.errors.push(format!("{place}: the value of {name} is not UTF-8"));
            }
            Some(key) => {
                self.set.insert(key.name, (value, origin));
            }
            None => {
                let nearest = Key::nearest(name);
                let variable = match origin {
                    Origin::Environment => {
                        format!(" Its variable is {}.", nearest.environment_name())
                    }
                    _ => String::new(),
                };
                self.errors.push(format!(
                    "{place}: unknown key {name}; did you mean {}?{variable}",
                    nearest.name
                ));
            }
        }
    }
}

/// Writes a TOML value as the text that a variable would have: a list as its items, comma
/// separated.
fn as_text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(as_text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
