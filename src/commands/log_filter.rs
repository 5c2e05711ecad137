use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use super::{Answer, Output, probe};
use crate::{config::Config, telemetry::check_log_filter};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stocklock log-filter                                       shows the filter
  stocklock log-filter info,stocklock::order=debug --for 10m changes it for 10 minutes
  stocklock log-filter --reset                               makes it log.level again")]
pub(super) struct LogFilterArgs {
    /// The new filter, as in log.level; without it, the command shows the present one
    directives: Option<String>,
    /// After this time the filter is log.level again, 7 d at most; without it, the filter stays
    #[arg(long = "for", value_name = "TIME", requires = "directives",
        value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Make the filter log.level again
    #[arg(long, conflicts_with = "directives")]
    reset: bool,
    /// Most time for the role to answer
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Asks the role that listens on `admin.listen` for the filter of its log lines, or changes it.
/// Fails if the role refuses, or does not answer in time.
pub(super) async fn run(
    args: &LogFilterArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let url = format!("{}/log-filter", probe::admin_url(config));
    let client = probe::admin_client(args.timeout)?;
    let request = match &args.directives {
        Some(directives) => {
            check_log_filter(directives, args.duration).map_err(anyhow::Error::msg)?;
            let query = args
                .duration
                .map(|duration| format!("?for={}ms", duration.as_millis()))
                .unwrap_or_default();
            client.put(format!("{url}{query}")).body(directives.clone())
        }
        None if args.reset => client.delete(&url),
        None => client.get(&url),
    };
    let answered = request.send().await.with_context(|| url.clone())?;
    let status = answered.status();
    let text = answered.text().await.with_context(|| url.clone())?;
    if !status.is_success() {
        bail!("{url}: {status}: {}", text.trim_end());
    }
    let shown: Value = serde_json::from_str(&text).with_context(|| url.clone())?;
    match output {
        Output::Json => println!("{shown}"),
        Output::Text => {
            let word = |name: &str| shown[name].as_str().unwrap_or_default().to_owned();
            println!("{}", word("directives"));
            if shown["until"].is_string() {
                println!("until {}, then {}", word("until"), word("configured"));
            }
        }
    }
    Ok(Answer::Done)
}
