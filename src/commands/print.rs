//! Prints results on standard output, and errors on standard error.
//!
//! A reader may close its end early, as `head` does. That changes neither what a command does nor
//! its exit status.

use std::{
    fmt,
    io::{self, ErrorKind, Write as _},
    process::exit,
};

use serde_json::json;

use super::Output;
use crate::error_text::with_causes;

const FAILED_STATUS: i32 = 2;

/// Prints a line of a result. In this room it replaces the standard library's macro, which panics
/// if the reader is gone.
macro_rules! println {
    ($($line:tt)+) => { $crate::commands::print::line(format_args!($($line)+)) };
}

/// Prints a line on standard error. In this room it replaces the standard library's macro, which
/// panics if the reader is gone.
macro_rules! eprintln {
    ($($line:tt)+) => { $crate::commands::print::error_line(format_args!($($line)+)) };
}

/// Writes a line to standard output. Drops it if the reader is gone. Ends the process with status 2
/// if writing fails for another cause.
pub(super) fn line(line: fmt::Arguments<'_>) {
    let _is_read = read_line(line);
}

/// The same. Returns whether the reader is still there, so that an endless command can end.
pub(super) fn read_line(line: fmt::Arguments<'_>) -> bool {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            error_line(format_args!("stocklock: cannot write to standard output: {error}"));
            exit(FAILED_STATUS);
        }
        written => written.is_ok(),
    }
}

/// Writes a line to standard error, or drops it.
pub(super) fn error_line(line: fmt::Arguments<'_>) {
    let _ignored = writeln!(io::stderr().lock(), "{line}");
}

/// Several errors at once.
#[derive(Debug, thiserror::Error)]
#[error("{what}:\n  {}", .errors.join("\n  "))]
pub(super) struct Faults {
    /// The place or the action that the errors are about.
    pub(crate) what: String,
    pub(crate) errors: Vec<String>,
}

/// Prints the error of a command, with its causes.
pub(super) fn failure(error: &anyhow::Error, output: Output) {
    match (output, error.downcast_ref::<Faults>()) {
        (Output::Text, _) => eprintln!("stocklock: {}", with_causes(error.as_ref())),
        (Output::Json, Some(Faults { what, errors })) => {
            eprintln!("{}", json!({"error": what, "errors": errors}));
        }
        (Output::Json, None) => eprintln!("{}", json!({"error": with_causes(error.as_ref())})),
    }
}

/// Prints why the answer is no.
pub(super) fn complaint(text: &str, output: Output) {
    match output {
        Output::Text => eprintln!("{text}"),
        Output::Json => eprintln!("{}", json!({"error": text})),
    }
}
