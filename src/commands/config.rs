use std::fs::File;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::{Answer, Output, print, process};
use crate::{
    config::{Config, ConfigError, KEYS, Key, Layers, LockStrategy, SecretUrl},
    kafka::Producer,
    lock::{Lease, Locks},
};

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Say what is wrong with it, and nothing else; exit status 1 where anything is
    #[arg(long)]
    check: bool,
}

pub async fn run(args: &ConfigArgs, layers: &Layers, output: Output) -> Answer {
    if !args.check {
        show(layers, output);
    }
    let errors = match Config::resolve(layers) {
        Err(ConfigError(errors)) => errors,
        Ok(config) if args.check => refused_by_clients(config).await,
        Ok(_) => Vec::new(),
    };
    if !errors.is_empty() {
        match output {
            Output::Text => errors.iter().for_each(|error| eprintln!("{error}")),
            Output::Json => print::failure(&super::wrong_configuration(errors).into(), output),
        }
        return Answer::No;
    }
    match (args.check, output) {
        (true, Output::Text) => println!("the configuration is valid"),
        (true, Output::Json) => println!("{}", json!({"valid": true})),
        (false, _) => {}
    }
    Answer::Done
}

/// What the clients of the dependencies refuse themselves, such as a file that is missing. Connects
/// to nothing.
async fn refused_by_clients(mut config: Config) -> Vec<String> {
    config.lock.strategy = LockStrategy::Redlock;
    let opening = async {
        let metrics = process::metrics()?;
        process::open_order_store(&config, &metrics)?;
        process::open_stock_store(&config, &metrics)?;
        for (name, file) in config.kafka.security.iter().filter(|(name, _)| name.ends_with(".location")) {
            File::open(file).with_context(|| format!("kafka.{}: {file}", name.replace('.', "_")))?;
        }
        Locks::new(&config.lock, &config.redis, &metrics)?;
        Lease::new(&config.lock, &config.redis, "check")?;
        Producer::new(&config.kafka).context("kafka")?;
        anyhow::Ok(())
    };
    opening.await.err().map(|error| format!("{error:#}")).into_iter().collect()
}

fn show(layers: &Layers, output: Output) {
    for key in KEYS {
        let (value, origin) = layers.value(key);
        let (value, default) = (shown(key, value), shown(key, key.default));
        if output == Output::Json {
            let environment = key.environment_name();
            let row = json!({"key": key.name, "value": value, "default": default, "origin": origin.to_string(),
                             "environment": environment, "help": key.help});
            println!("{row}");
        } else {
            let default = if value == default { String::new() } else { format!("; default {default:?}") };
            println!("{:32} = {value:<40} # {} ({origin}{default})", key.name, key.help);
        }
    }
}

fn shown(key: &Key, value: &str) -> String {
    if key.is_secret() && !value.is_empty() {
        return "***".to_owned();
    }
    // A list of URLs; a comma elsewhere may be part of a password.
    if key.name == "redis.urls" {
        return value.split(',').map(|url| SecretUrl::new(url).to_string()).collect::<Vec<_>>().join(",");
    }
    SecretUrl::new(value).to_string()
}
