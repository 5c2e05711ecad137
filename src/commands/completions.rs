use std::io::{self, Write as _};

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::{Answer, Cli};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stocklock completions bash > /etc/bash_completion.d/stocklock
  stocklock completions zsh > \"${fpath[1]}/_stocklock\"
  stocklock completions fish > ~/.config/fish/completions/stocklock.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script with which a shell completes the commands and options of this binary. A reader
/// may close its end early.
pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<Answer> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "stocklock", &mut script);
    match io::stdout().lock().write_all(&script) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Answer::Done),
    }
}
