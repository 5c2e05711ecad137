use std::{net::Ipv4Addr, net::Ipv6Addr, time::Duration};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use reqwest::Client;
use serde_json::json;

use super::{Answer, Output};
use crate::{config::Config, trust};

#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    /// The question
    #[arg(value_enum)]
    question: HealthCheck,
    /// Most time for the role to answer
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HealthCheck {
    /// Does the role make progress? (/livez)
    Live,
    /// Can the role do its work? (/readyz)
    Ready,
}

/// Asks the role that listens on `admin.listen`. Fails if it does not answer in time.
pub(super) async fn run(
    args: &ProbeArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let path = match args.question {
        HealthCheck::Live => "livez",
        HealthCheck::Ready => "readyz",
    };
    let url = format!("{}/{path}", admin_url(config));
    let client = admin_client(args.timeout)?;
    let answered = client.get(&url).send().await.with_context(|| url.clone())?;
    let is_well = answered.status().is_success();
    let text = answered.text().await.with_context(|| url.clone())?;
    match output {
        Output::Text => println!("{}", text.trim_end()),
        Output::Json => {
            let complaints: Vec<_> = if is_well { Vec::new() } else { text.lines().collect() };
            println!("{}", json!({"ok": is_well, "complaints": complaints}));
        }
    }
    Ok(if is_well { Answer::Done } else { Answer::No })
}

/// A client of `admin.listen`. The role runs on this machine, so a proxy could not reach it.
pub(super) fn admin_client(timeout: Duration) -> reqwest::Result<Client> {
    trust::client_without_tls().no_proxy().timeout(timeout).build()
}

/// The URL of `admin.listen`, as a client on the same machine reaches it.
pub(super) fn admin_url(config: &Config) -> String {
    let mut address = config.admin.listen;
    // A role that listens on every address also listens on the loopback.
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    format!("http://{address}")
}
