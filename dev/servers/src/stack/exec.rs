//! `exec`: a stack for the time of one command.

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Context as _;
use stocklock_servers::{Flavour, Interrupt, Lifetime};

use super::{command, conf::Conf, folder, install, settings, start::Stack};
use crate::cli::Database;

/// Starts a stack, runs a command with its settings, and removes the stack, whatever happens. The
/// exit status is that of the command.
pub(crate) fn exec(
    database: Option<Database>,
    dir: Option<&Path>,
    words: &[OsString],
) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let interrupt = Interrupt::on_signals()?;
    let databases = install::install(database, &interrupt)?;
    let folder = dir.map(Path::to_owned).map_or_else(folder::create, Ok)?;
    let stack = Stack::start(&folder, &databases, Lifetime::OfParent, &interrupt, begun)?;
    let status = run(&stack, words, &interrupt);
    stack.remove()?;
    Ok(ExitCode::from(status?))
}

fn run(stack: &Stack, words: &[OsString], interrupt: &Interrupt) -> anyhow::Result<u8> {
    let (program, arguments) = words.split_first().context("no command given")?;
    let conf = Conf::load(&stack.dir)?;
    let settings = settings::of(&stack.dir, &conf)?;
    let servers: Vec<_> = conf.running(&stack.dir).map(|(_, process)| process).collect();
    let started = Command::new(program).args(arguments).envs(settings).spawn();
    let running = started.with_context(|| program.display().to_string())?;
    command::run_to_end(&running, &servers, interrupt)
}

/// The names of the servers, as their makers write them.
pub(super) fn title(databases: &[Flavour]) -> String {
    let names = databases.iter().map(|flavour| match flavour {
        Flavour::MySql => "MySQL",
        Flavour::MariaDb => "MariaDB",
    });
    names.collect::<Vec<_>>().join(" and ")
}
