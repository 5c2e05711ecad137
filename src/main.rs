//! The binary `stocklock`. [`stocklock::commands`] has the command line.

use std::{process::ExitCode, time::Duration};

use mimalloc::MiMalloc;
use stocklock::commands::Cli;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Most time that a blocked thread may delay the end of the process. A Kafka client whose brokers
/// are away blocks one, for example.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(exit_code) => return exit_code,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("stocklock: cannot start the runtime: {error}");
            return ExitCode::from(2);
        }
    };
    let status = runtime.block_on(cli.run());
    runtime.shutdown_timeout(STOP_DEADLINE);
    status
}
