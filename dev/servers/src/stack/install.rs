//! What a stack needs to be installed.

use std::process::Command;

use anyhow::Context as _;
use stocklock_servers::{Flavour, Interrupt};

use super::{Exit, command};
use crate::{cli::Database, say};

/// Installs packages; that is all that the shell is left with.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lib/install.sh");
/// The exit status of the script where all is there but MySQL.
const NO_MYSQL: u8 = 3;

/// Installs everything, and answers the SQL servers to run. MariaDB takes the place of MySQL where
/// that cannot be had, unless the caller asked for MySQL and nothing else.
///
/// Fails with the exit status of the script.
pub(super) fn install(
    database: Option<Database>,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Flavour>> {
    let databases = match database {
        None | Some(Database::MySql) => vec![Flavour::MySql],
        Some(Database::MariaDb) => vec![Flavour::MariaDb],
        Some(Database::Both) => vec![Flavour::MySql, Flavour::MariaDb],
    };
    let sql = databases.iter().map(|flavour| flavour.name());
    let status = run_script(["tools", "kafka", "redis"].into_iter().chain(sql), interrupt)?;
    if status != NO_MYSQL || database == Some(Database::MySql) {
        return success(status).map(|()| databases);
    }
    say("using MariaDB instead of MySQL");
    success(run_script([Flavour::MariaDb.name()].into_iter(), interrupt)?)?;
    Ok(vec![Flavour::MariaDb])
}

fn success(status: u8) -> anyhow::Result<()> {
    anyhow::ensure!(status == 0, Exit(status));
    Ok(())
}

fn run_script<'a>(
    parts: impl Iterator<Item = &'a str>,
    interrupt: &Interrupt,
) -> anyhow::Result<u8> {
    let mut script = Command::new("bash");
    let running = script.arg(SCRIPT).args(parts).spawn().context("dev/lib/install.sh")?;
    command::run_to_end(&running, &[], interrupt)
}
