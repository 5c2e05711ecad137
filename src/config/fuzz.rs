//! Fuzzes the readers of settings.

use std::io::Write as _;

use super::{Config, ConfigError, Layers};
use crate::reader_fuzz::fuzz;

/// Reads a file, or the variables `NAME=VALUE` behind a zero byte.
fn layers(bytes: &[u8]) -> Layers {
    if let Some((0, variables)) = bytes.split_first() {
        let text = String::from_utf8_lossy(variables);
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let variables = lines.map(|(name, value)| (name.to_owned(), value.to_owned()));
        return Layers::read(None, variables, &[]);
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Layers::read(Some(file.path()), std::iter::empty(), &[])
}

#[test]
fn settings_are_read_or_refused() {
    fuzz("settings", |bytes| match Config::resolve(&layers(bytes)) {
        Ok(_) => "read".to_owned(),
        Err(ConfigError(errors)) => errors.iter().map(|error| places_left_out(error)).collect(),
    });
}

/// An error without the name of the temporary file.
fn places_left_out(error: &str) -> &str {
    error.split_once(": ").map_or(error, |(_, rest)| rest)
}
