use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{Log, LogFormat};

/// Logs go to standard error. Fails where `log.level` is neither a level nor a list of directives.
pub fn init_logging(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.level).map_err(|e| anyhow::anyhow!("log.level = {:?}: {e}", log.level))?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    let initialised = match log.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    initialised.map_err(|e| anyhow::anyhow!("logging: {e}"))
}
