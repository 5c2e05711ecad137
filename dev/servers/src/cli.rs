//! The command line.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    guard, roles, say,
    stack::{self, Exit},
};

/// The exit status for a command line that makes no sense. Source: sysexits.h.
const USAGE: u8 = 64;

/// A private stack of real servers, on free ports of 127.0.0.1, with their data in a temporary
/// folder: Apache Kafka, MySQL and/or MariaDB, and three Redis masters.
///
/// Several stacks can run side by side. The script installs what is missing first; see
/// dev/lib/install.sh --help.
#[derive(Parser)]
#[command(name = "dev/stack", bin_name = "dev/stack", after_long_help = ENVIRONMENT)]
struct Cli {
    /// The pid of the process that watches this one.
    #[arg(long, hide = true)]
    guarded_by: Option<u32>,
    #[command(subcommand)]
    command: Command,
}

const ENVIRONMENT: &str = "\
Environment:
  STOCKLOCK_STACK_DIR            the folder of the stack, where --dir names none
  STOCKLOCK_MYSQLD               a mysqld to use instead of the downloaded one
  STOCKLOCK_STACK_READY_SECONDS  how long to wait for the servers (90)";

#[derive(Subcommand)]
enum Command {
    /// Starts a stack, waits until every server answers, and leaves it running
    Up {
        #[command(flatten)]
        database: DatabaseOption,
        /// The folder of the stack [default: `STOCKLOCK_STACK_DIR`, else a new one below
        /// ${TMPDIR:-/var/tmp}]
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Prints the settings for a stack: eval "$(dev/stack env)"
    Env(DirOption),
    /// Lists the servers; succeeds when all of them run
    Status(DirOption),
    /// Stops the servers of a stack and removes its data
    Down(DirOption),
    /// Starts a stack, runs COMMAND with its settings in the environment, and takes everything down
    ///
    /// That happens when COMMAND ends, and on Ctrl-C. The exit status is that of COMMAND. Nothing
    /// that COMMAND started is left running.
    Exec {
        #[command(flatten)]
        database: DatabaseOption,
        /// The folder of the stack [default: a new one below ${TMPDIR:-/var/tmp}]
        #[arg(long)]
        dir: Option<PathBuf>,
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<OsString>,
    },
    /// Runs roles of stocklock until standard input closes; prints `NAME HTTP ADMIN` of each
    #[command(hide = true)]
    Roles {
        #[arg(long)]
        binary: PathBuf,
        /// The folder for a log of each role
        #[arg(long)]
        logs: PathBuf,
        #[arg(required = true)]
        role: Vec<String>,
    },
}

#[derive(Args)]
struct DatabaseOption {
    /// The SQL server [default: MySQL where it can be had, MariaDB elsewhere]
    #[arg(long)]
    database: Option<Database>,
}

#[derive(Args)]
struct DirOption {
    /// The folder of the stack [default: `STOCKLOCK_STACK_DIR`, else that of the last `up`]
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Database {
    #[value(name = "mysql")]
    MySql,
    #[value(name = "mariadb")]
    MariaDb,
    Both,
}

/// Runs the command line, and answers its exit status.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _printed = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let leaves_servers = matches!(cli.command, Command::Up { .. });
    let done = match cli.guarded_by {
        None if cli.command.is_guarded() => guard::run(leaves_servers),
        guard => guard.map_or(Ok(()), guard::end_with).and_then(|()| cli.command.run()),
    };
    done.unwrap_or_else(|error| match error.downcast::<Exit>() {
        Ok(Exit(status)) => ExitCode::from(status),
        Err(error) => {
            say(format!("{error:#}"));
            ExitCode::FAILURE
        }
    })
}

impl Command {
    /// Whether it starts processes, so that another process watches it.
    fn is_guarded(&self) -> bool {
        matches!(self, Self::Up { .. } | Self::Exec { .. })
    }

    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Up { database, dir } => stack::up(database.database, absolute(dir)?.as_deref()),
            Self::Env(dir) => stack::env(absolute(dir.dir)?.as_deref()),
            Self::Status(dir) => stack::status(absolute(dir.dir)?.as_deref()),
            Self::Down(dir) => stack::down(absolute(dir.dir)?.as_deref()),
            Self::Exec { database, dir, command } => {
                stack::exec(database.database, absolute(dir)?.as_deref(), &command)
            }
            Self::Roles { binary, logs, role } => roles::run(&binary, &logs, &role),
        }
    }
}

fn absolute(dir: Option<PathBuf>) -> anyhow::Result<Option<PathBuf>> {
    let absolute = dir.map(|dir| {
        // The folder may not exist yet; its links are resolved once it does.
        dir.canonicalize().or_else(|_| std::path::absolute(Path::new(&dir)))
    });
    Ok(absolute.transpose()?)
}
