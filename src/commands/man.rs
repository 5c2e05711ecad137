use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};

use super::{Answer, Cli};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stocklock man /usr/local/share/man/man1     then `man stocklock-verify` shows a page
  stocklock man /tmp/man && man -l /tmp/man/stocklock.1")]
pub(super) struct ManArgs {
    /// Folder for the pages; the command makes it if it is missing
    dir: PathBuf,
}

/// Writes a manual page for this binary and for each of its subcommands. Fails if the folder cannot
/// be made or written to.
pub(super) fn run(args: &ManArgs) -> anyhow::Result<Answer> {
    let folder = || args.dir.display().to_string();
    fs::create_dir_all(&args.dir).with_context(folder)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).with_context(folder)?;
    Ok(Answer::Done)
}
