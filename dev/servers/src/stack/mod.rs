//! The commands of `dev/stack`.

mod command;
mod conf;
mod exec;
mod folder;
mod install;
mod servers;
mod settings;
mod start;

use std::{path::Path, process::ExitCode, time::Instant};

use nix::sys::signal::Signal;
use stocklock_servers::{Interrupt, Lifetime};

pub(crate) use exec::exec;

use crate::{cli::Database, say};
use conf::{Conf, ServerName};
use start::Stack;

/// The error that ends the program with this exit status. All that is to be said about it was said.
#[derive(Debug)]
pub(crate) struct Exit(pub(crate) u8);

impl Exit {
    /// The status that a shell reports for a command that a signal ended.
    fn by(signal: Signal) -> Self {
        Self(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX))
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit status {}", self.0)
    }
}

impl std::error::Error for Exit {}

pub(crate) fn up(database: Option<Database>, dir: Option<&Path>) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let existing = match dir {
        Some(dir) => folder::is_stack(dir).then(|| dir.to_owned()),
        None => folder::find(None)?,
    };
    if let Some(existing) = existing
        && is_reused(&existing, database)?
    {
        return Ok(ExitCode::SUCCESS);
    }
    let interrupt = Interrupt::on_signals()?;
    let databases = install::install(database, &interrupt)?;
    let chosen = dir.map(Path::to_owned).or_else(folder::from_environment);
    let folder = chosen.map_or_else(folder::create, Ok)?;
    Stack::start(&folder, &databases, Lifetime::Detached, &interrupt, begun)?;
    let option = dir.map(|dir| format!(" --dir {}", dir.display()));
    if option.is_none() {
        folder::remember(&folder)?;
    }
    say(format!("its settings: eval \"$(dev/stack env{})\"", option.unwrap_or_default()));
    Ok(ExitCode::SUCCESS)
}

/// Whether the folder has a stack that runs. What a reboot left of one is removed.
///
/// Fails if only a part of it runs, or if it lacks the database.
fn is_reused(dir: &Path, database: Option<Database>) -> anyhow::Result<bool> {
    let conf = Conf::load(dir)?;
    let running = conf.running(dir).count();
    if running == 0 {
        folder::stop_and_remove(dir)?;
        return Ok(false);
    }
    let shown = dir.display();
    anyhow::ensure!(
        running == conf.servers.len(),
        "only a part of the stack in {shown} runs: take it down first"
    );
    let has = |name| conf.servers.contains(&name);
    let missing = match database {
        Some(Database::MySql | Database::Both) if !has(ServerName::MySql) => Some("mysql"),
        Some(Database::MariaDb | Database::Both) if !has(ServerName::MariaDb) => Some("mariadb"),
        _ => None,
    };
    if let Some(missing) = missing {
        anyhow::bail!(
            "the stack in {shown} is up without {missing}: take it down first, or choose another \
             --dir"
        );
    }
    say(format!("already up in {shown}: {}", conf.names()));
    Ok(true)
}

pub(crate) fn env(dir: Option<&Path>) -> anyhow::Result<ExitCode> {
    let dir = folder::required(dir)?;
    for (key, value) in settings::of(&dir, &Conf::load(&dir)?)? {
        println!("export {key}={}", settings::quoted(&value));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn status(dir: Option<&Path>) -> anyhow::Result<ExitCode> {
    let dir = folder::required(dir)?;
    let conf = Conf::load(&dir)?;
    println!("{}", dir.display());
    let mut all_run = true;
    for server in &conf.servers {
        let identity = folder::recorded(&dir, *server);
        let runs = identity.is_some_and(stocklock_servers::Identity::is_running);
        all_run &= runs;
        let state = if runs { "running" } else { "ended" };
        let pid = identity.map_or_else(String::new, |identity| identity.pid().to_string());
        let (name, port) = (server.to_string(), conf.port(*server));
        println!("{name:<8} {state:<8} port {port:<5} pid {pid}");
    }
    Ok(if all_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn down(dir: Option<&Path>) -> anyhow::Result<ExitCode> {
    let Some(found) = folder::find(dir)? else {
        if let Some(dir) = dir {
            folder::forget(dir)?;
        }
        say(folder::no_stack(dir));
        return Ok(ExitCode::SUCCESS);
    };
    // A half-stopped stack is of no use: a signal does not cut this short.
    let _ignored = Interrupt::on_signals()?;
    folder::stop_and_remove(&found)?;
    folder::forget(&found)?;
    say(format!("down: {}", found.display()));
    Ok(ExitCode::SUCCESS)
}
