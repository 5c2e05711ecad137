//! What commands print: results on standard output, errors on standard error. A reader that is
//! gone, as `head` is, ends a command in silence.

use std::{
    fmt,
    io::{self, ErrorKind, Write as _},
    process::exit,
};

use serde_json::json;

use super::Output;

/// The status of a program that SIGPIPE ends.
const BROKEN_PIPE_STATUS: i32 = 141;
const FAILED_STATUS: i32 = 2;

/// Prints a line of a result. It hides the standard library's macro in this room, which panics
/// where the reader is gone.
macro_rules! println {
    ($($line:tt)+) => { $crate::commands::print::line(format_args!($($line)+)) };
}

/// Prints a line on standard error. It hides the standard library's macro in this room, which
/// panics where the reader is gone.
macro_rules! eprintln {
    ($($line:tt)+) => { $crate::commands::print::error_line(format_args!($($line)+)) };
}

/// Ends the process where nobody reads the line (status 141), or where it cannot be written (2).
pub(super) fn line(line: fmt::Arguments<'_>) {
    if let Err(error) = writeln!(io::stdout().lock(), "{line}") {
        if error.kind() == ErrorKind::BrokenPipe {
            exit(BROKEN_PIPE_STATUS);
        }
        error_line(format_args!("stocklock: standard output: {error}"));
        exit(FAILED_STATUS);
    }
}

pub(super) fn error_line(line: fmt::Arguments<'_>) {
    let _nobody_reads_it = writeln!(io::stderr().lock(), "{line}");
}

/// Several things that are wrong at once.
#[derive(Debug, thiserror::Error)]
#[error("{what}:\n  {}", .errors.join("\n  "))]
pub(super) struct Faults {
    pub what: String,
    pub errors: Vec<String>,
}

/// Why a command has no answer.
pub(super) fn failure(error: &anyhow::Error, output: Output) {
    match (output, error.downcast_ref::<Faults>()) {
        (Output::Text, _) => eprintln!("stocklock: {error:#}"),
        (Output::Json, Some(Faults { what, errors })) => eprintln!("{}", json!({"error": what, "errors": errors})),
        (Output::Json, None) => eprintln!("{}", json!({"error": format!("{error:#}")})),
    }
}

/// Why the answer is no.
pub(super) fn complaint(text: &str, output: Output) {
    match output {
        Output::Text => eprintln!("{text}"),
        Output::Json => eprintln!("{}", json!({"error": text})),
    }
}
