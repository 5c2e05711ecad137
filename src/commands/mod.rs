//! The command line: a file per subcommand. This room alone wires the other rooms together.

#[macro_use]
mod print;

pub mod bench;
mod completions;
mod config;
mod dependencies;
mod dlq;
mod doctor;
mod import;
mod log_filter;
mod man;
mod order;
mod probe;
mod process;
mod releases;
mod roles;
mod setup;
mod since;
mod stock;
mod stock_adjust;
mod stock_import;
mod stock_movements;
mod stock_publish;
mod token;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    config::{Config, ConfigError, Layers},
    telemetry::{LogFilter, init_logging},
};

/// Deducts stock for orders that arrive on Kafka: all lines of an order or none, never twice, never
/// below zero.
///
/// Exit status: 0 done; 1 the answer is no; 2 bad usage, bad configuration or an unreachable
/// dependency.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 120)]
pub struct Cli {
    /// TOML file with settings; `stocklock config` lists all settings
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key; overrides the file and the environment
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Format of results and errors
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
    /// Migrate both stores, create the topics and register the schemas; safe to repeat
    Setup,
    /// Serve the HTTP API, and publish the orders that it saves
    Ingest,
    /// Consume the orders topic and deduct stock
    Worker,
    /// Consume the order-status topic and write the outcomes to the order store
    Compensator,
    /// Run ingest, worker and compensator in one process
    All,
    /// Show the stock and change it
    #[command(subcommand)]
    Stock(stock::StockCommand),
    /// Place, show, confirm, cancel and watch orders, over the HTTP API
    #[command(subcommand)]
    Order(order::OrderCommand),
    /// List releases that are owed, and owe lost ones again
    #[command(subcommand)]
    Releases(releases::ReleasesCommand),
    /// List dead letters, show them, and produce them again to the topics that they came from
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Check the invariants over stores, locks and topics; exit status 0: they hold, 1: one is
    /// violated, 2: not all could be checked
    Verify(verify::VerifyArgs),
    /// Measure the pipeline with a seeded load, on the configured stores, which must be empty and
    /// keep what it writes
    Bench(bench::BenchArgs),
    /// Show the resolved configuration
    Config(config::ConfigArgs),
    /// Look at each dependency as configured; say what is wrong and what mends it; exit status 0:
    /// fine, 1: something is wrong, 2: a dependency is unreachable
    Doctor(doctor::DoctorArgs),
    /// Make a token for a client of the HTTP API, and its line for the file of tokens
    Token(token::TokenArgs),
    /// Ask a role on its admin address whether it is live or ready; exit status 0: yes, 1: no, 2:
    /// no answer
    Probe(probe::ProbeArgs),
    /// Show or change what a role logs, on its admin address, without a restart
    LogFilter(log_filter::LogFilterArgs),
    /// Print a script by which a shell completes commands and options
    Completions(completions::CompletionsArgs),
    /// Write manual pages: one of stocklock, and one of each subcommand
    Man(man::ManArgs),
}

/// The result of a command that did not fail. It decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Done, or yes.
    Done,
    No,
    /// The command could find out neither yes nor no.
    Unknown,
}

impl Cli {
    /// Reads the arguments of this process. If they are wrong or ask for help, prints the error or
    /// the help and fails with the exit status.
    pub fn read() -> Result<Self, ExitCode> {
        Self::try_parse().map_err(|error| {
            let arguments: Vec<_> = std::env::args_os().collect();
            let asks_for_json = arguments.iter().any(|argument| argument == "--output=json")
                || arguments.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
            if error.use_stderr() && asks_for_json {
                let text = error.render().to_string();
                print::failure(
                    &anyhow::anyhow!("{}", text.trim_start_matches("error: ").trim_end()),
                    Output::Json,
                );
            } else {
                let _ignored = error.print();
            }
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        })
    }

    /// Runs the command and returns its exit status. Prints errors on standard error.
    pub async fn run(self) -> ExitCode {
        let layers = Layers::read(self.config.as_deref(), Layers::variables(), &self.set);
        let answer = match self.command {
            Command::Config(args) => Ok(config::run(&args, &layers, self.output)),
            Command::Completions(args) => completions::run(&args),
            Command::Man(args) => man::run(&args),
            command => match start(&layers) {
                Ok((config, log_filter)) => {
                    Box::pin(command.run(config, log_filter, &layers, self.output)).await
                }
                Err(error) => Err(error),
            },
        };
        match answer {
            Ok(Answer::Done) => ExitCode::SUCCESS,
            Ok(Answer::No) => ExitCode::from(1),
            Ok(Answer::Unknown) => ExitCode::from(2),
            Err(error) => {
                print::failure(&error, self.output);
                ExitCode::from(2)
            }
        }
    }
}

/// Resolves the configuration, and starts to log.
fn start(layers: &Layers) -> anyhow::Result<(Config, LogFilter)> {
    let config =
        Config::resolve(layers).map_err(|ConfigError(errors)| wrong_configuration(errors))?;
    let log_filter = init_logging(&config.log)?;
    Ok((config, log_filter))
}

fn wrong_configuration(errors: Vec<String>) -> print::Faults {
    print::Faults { what: "the configuration is wrong".to_owned(), errors }
}

impl Command {
    async fn run(
        self,
        config: Config,
        log_filter: LogFilter,
        layers: &Layers,
        output: Output,
    ) -> anyhow::Result<Answer> {
        let run_roles = async |config, roles: &[_]| roles::run(config, log_filter, roles).await;
        match self {
            Self::Setup => setup::run(&config, output).await,
            Self::Ingest => run_roles(config, &[roles::Role::Ingest]).await,
            Self::Worker => run_roles(config, &[roles::Role::Worker]).await,
            Self::Compensator => run_roles(config, &[roles::Role::Compensator]).await,
            Self::All => {
                run_roles(
                    config,
                    &[roles::Role::Ingest, roles::Role::Worker, roles::Role::Compensator],
                )
                .await
            }
            Self::Stock(command) => stock::run(command, &config, output).await,
            Self::Order(command) => order::run(command, &config, output).await,
            Self::Releases(command) => releases::run(command, &config, output).await,
            Self::Dlq(command) => dlq::run(command, &config, output).await,
            Self::Verify(args) => verify::run(&args, &config, output).await,
            Self::Bench(args) => bench::run(&args, layers, output).await,
            Self::Doctor(args) => doctor::run(&args, &config, output).await,
            Self::Token(args) => token::run(&args, output),
            Self::Probe(args) => probe::run(&args, &config, output).await,
            Self::LogFilter(args) => log_filter::run(&args, &config, output).await,
            Self::Config(_) | Self::Completions(_) | Self::Man(_) => {
                unreachable!("Cli::run handles what runs with a wrong configuration too")
            }
        }
    }
}
