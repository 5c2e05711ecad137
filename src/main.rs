//! `stocklock`: orders in, stock deducted, outcomes out.

use std::{process::ExitCode, time::Duration};

use stocklock::commands::Cli;

/// How long what still blocks a thread may hold up the end of the process, such as a client of brokers that are away.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("stocklock: {error}");
            return ExitCode::from(2);
        }
    };
    let status = runtime.block_on(cli.run());
    runtime.shutdown_timeout(STOP_DEADLINE);
    status
}
