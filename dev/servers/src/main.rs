//! `dev/stack`, and the roles of `dev/demo`.

mod children;
mod cli;
mod guard;
mod roles;
mod stack;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}

/// A line for the user. Standard output is only for what `env`, `status` and `roles` print.
fn say(text: impl std::fmt::Display) {
    eprintln!("stack: {text}");
}
