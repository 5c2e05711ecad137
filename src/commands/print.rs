//! What commands print: results on standard output, errors on standard error. A reader that has
//! left, as `head` does, changes neither what a command does nor its exit status.

use std::{
    fmt,
    io::{self, ErrorKind, Write as _},
    process::exit,
};

use serde_json::json;

use super::Output;
use crate::error_text::with_causes;

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

/// Drops the line if its reader has left. Ends the process with status 2 if the line cannot be
/// written for another cause.
pub(super) fn line(line: fmt::Arguments<'_>) {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            error_line(format_args!("stocklock: standard output: {error}"));
            exit(FAILED_STATUS);
        }
        Ok(()) | Err(_) => {}
    }
}

pub(super) fn error_line(line: fmt::Arguments<'_>) {
    let _nobody_reads_it = writeln!(io::stderr().lock(), "{line}");
}

/// Several things that are wrong at once.
#[derive(Debug, thiserror::Error)]
#[error("{what}:\n  {}", .errors.join("\n  "))]
pub(super) struct Faults {
    pub(crate) what: String,
    pub(crate) errors: Vec<String>,
}

/// Why a command has no answer.
pub(super) fn failure(error: &anyhow::Error, output: Output) {
    match (output, error.downcast_ref::<Faults>()) {
        (Output::Text, _) => eprintln!("stocklock: {}", with_causes(error.as_ref())),
        (Output::Json, Some(Faults { what, errors })) => {
            eprintln!("{}", json!({"error": what, "errors": errors}));
        }
        (Output::Json, None) => eprintln!("{}", json!({"error": with_causes(error.as_ref())})),
    }
}

/// Why the answer is no.
pub(super) fn complaint(text: &str, output: Output) {
    match output {
        Output::Text => eprintln!("{text}"),
        Output::Json => eprintln!("{}", json!({"error": text})),
    }
}
