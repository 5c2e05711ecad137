//! The command line, a file per subcommand; the only place that wires the rooms together.

mod bench;
mod config;
mod import;
mod order;
mod process;
mod roles;
mod setup;
mod stock;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    config::{Config, ConfigError, Layers},
    telemetry::init_logging,
};

/// Deducts stock for orders that arrive on Kafka: all lines of an order or none, never twice, never below zero.
///
/// Exit status: 0 done; 1 the answer is no; 2 bad usage, bad configuration or an unreachable dependency.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120)]
pub struct Cli {
    /// A TOML file of settings; `stocklock config` shows them all
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, over the file and the environment
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    #[value(alias = "table")]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Migrate both stores and create the topics; may be repeated
    Setup,
    /// Serve the HTTP API and publish what it saves
    Ingest,
    /// Deduct stock for the orders of the orders topic
    Worker,
    /// Bring the outcomes of the order-status topic back to the order store
    Compensator,
    /// Ingest, worker and compensator in one process
    All,
    /// Look at the stock and change it
    #[command(subcommand)]
    Stock(stock::StockCommand),
    /// Place orders and look at them, over the HTTP API
    #[command(subcommand)]
    Order(order::OrderCommand),
    /// Check the invariants over stores, locks and topics: exit status 0 they hold, 1 one is
    /// violated, 2 not checked
    Verify(verify::VerifyArgs),
    /// Measure the pipeline on databases and topics of its own, beside what the databases can do at all
    Bench(bench::BenchArgs),
    /// Show the resolved configuration
    Config(config::ConfigArgs),
}

/// Done, or the answer is no. (What keeps a command from its answer is an error.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Done,
    No,
    /// Neither yes nor no could be had.
    Unknown,
}

impl Cli {
    /// Runs the command and answers its exit status. Errors are printed on standard error.
    pub async fn run(self) -> ExitCode {
        let layers = Layers::read(self.config.as_deref(), std::env::vars(), &self.set);
        let answer = match self.command {
            Command::Config(args) => Ok(config::run(&args, &layers, self.output)),
            command => match start(&layers) {
                Ok(config) => command.run(config, &layers, self.output).await,
                Err(error) => Err(error),
            },
        };
        match answer {
            Ok(Answer::Done) => ExitCode::SUCCESS,
            Ok(Answer::No) => ExitCode::from(1),
            Ok(Answer::Unknown) => ExitCode::from(2),
            Err(error) => {
                eprintln!("stocklock: {error:#}");
                ExitCode::from(2)
            }
        }
    }
}

fn start(layers: &Layers) -> anyhow::Result<Config> {
    let config = Config::resolve(layers)
        .map_err(|ConfigError(errors)| anyhow::anyhow!("the configuration is wrong:\n  {}", errors.join("\n  ")))?;
    init_logging(&config.log)?;
    Ok(config)
}

impl Command {
    async fn run(self, config: Config, layers: &Layers, output: Output) -> anyhow::Result<Answer> {
        match self {
            Self::Setup => setup::run(&config, output).await,
            Self::Ingest => roles::run(config, &[roles::Role::Ingest]).await,
            Self::Worker => roles::run(config, &[roles::Role::Worker]).await,
            Self::Compensator => roles::run(config, &[roles::Role::Compensator]).await,
            Self::All => {
                roles::run(config, &[roles::Role::Ingest, roles::Role::Worker, roles::Role::Compensator]).await
            }
            Self::Stock(command) => stock::run(command, &config, output).await,
            Self::Order(command) => order::run(command, &config, output).await,
            Self::Verify(args) => verify::run(&args, &config, output).await,
            Self::Bench(args) => bench::run(&args, layers, output).await,
            Self::Config(_) => unreachable!("the configuration is shown without being resolved first"),
        }
    }
}
