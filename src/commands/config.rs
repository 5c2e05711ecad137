use std::{fs::File, path::PathBuf};

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
pub(super) struct ConfigArgs {
    /// Say what is wrong with it, and nothing else; exit status 1 where anything is
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: &ConfigArgs, layers: &Layers, output: Output) -> Answer {
    if !args.check {
        show(layers, output);
    }
    let errors = match Config::resolve(layers) {
        Err(ConfigError(errors)) => errors,
        Ok(config) if args.check => refused_at_start(config),
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

/// What a role or a client refuses when it starts, such as a file that is missing. Connects to
/// nothing.
fn refused_at_start(mut config: Config) -> Vec<String> {
    config.lock.strategy = LockStrategy::Redlock;
    let mut errors = match config.check_listeners() {
        Ok(()) => Vec::new(),
        Err(ConfigError(errors)) => errors,
    };
    let files = named_files(&config).into_iter().map(open);
    let refused = files.chain([process::codecs(&config).map(drop)]).filter_map(Result::err);
    errors.extend(refused.map(|error| format!("{error:#}")));
    // The clients would report the same files again.
    if errors.is_empty() {
        errors.extend(open_clients(&config).err().map(|error| format!("{error:#}")));
    }
    errors
}

/// Opens every client within a runtime, without connecting. Fails with the first that refuses.
fn open_clients(config: &Config) -> anyhow::Result<()> {
    let metrics = process::metrics()?;
    process::open_order_store(config, &metrics)?;
    process::open_stock_store(config, &metrics)?;
    Locks::new(&config.lock, &config.redis, &metrics)?;
    Lease::new(&config.lock, &config.redis, "check")?;
    Producer::new(&config.kafka).context("kafka")?;
    Ok(())
}

/// The files that clients read only when they connect, each with what names it.
fn named_files(config: &Config) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    for (name, file) in config.kafka.security.iter().filter(|(name, _)| name.ends_with(".location"))
    {
        // With this word librdkafka looks for the system's authorities itself.
        if (*name, file.as_str()) != ("ssl.ca.location", "probe") {
            files.push((format!("kafka.{}", name.replace('.', "_")), file.into()));
        }
    }
    for (name, store) in
        [("order_store", &config.order_store), ("stock_store", &config.stock_store)]
    {
        files.extend(store.tls_files().into_iter().map(|file| (name.to_owned(), file)));
    }
    files
}

fn open((name, file): (String, PathBuf)) -> anyhow::Result<()> {
    File::open(&file).map(drop).with_context(|| format!("{name}: {}", file.display()))
}

fn show(layers: &Layers, output: Output) {
    for key in KEYS {
        let (value, origin) = layers.value(key);
        let (value, default) = (shown(key, value), shown(key, key.default));
        if output == Output::Json {
            let environment = key.environment_name();
            let row = json!({"key": key.name, "value": value, "default": default, "origin": origin.to_string(),
                             "environment": environment, "allowed": key.allowed.to_string(),
                             "rule": key.rule, "help": key.help});
            println!("{row}");
        } else {
            let default =
                if value == default { String::new() } else { format!("; default {default:?}") };
            println!(
                "{:32} = {value:<40} # {}: {} ({origin}{default})",
                key.name, key.help, key.allowed
            );
        }
    }
}

fn shown(key: &Key, value: &str) -> String {
    if key.is_secret() && !value.is_empty() {
        return "***".to_owned();
    }
    // A list of URLs; a comma elsewhere may be part of a password.
    if key.name == "redis.urls" {
        return value
            .split(',')
            .map(|url| SecretUrl::new(url).to_string())
            .collect::<Vec<_>>()
            .join(",");
    }
    SecretUrl::new(value).to_string()
}
