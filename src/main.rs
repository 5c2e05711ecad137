//! `stocklock`: orders in, stock deducted, outcomes out.

use std::process::ExitCode;

use clap::Parser;
use stocklock::commands::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("stocklock: {error}");
            return ExitCode::from(2);
        }
    };
    runtime.block_on(cli.run())
}
