use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::{
    Answer, Output, print,
    process::{self, Codecs},
};
use crate::{
    config::{Config, ConfigError, InsecureConnection, KEYS, Layers, LockStrategy},
    error_text,
    kafka::{Producer, check_identity},
    lock::{Lease, Locks},
    pem,
};

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// Only report what is wrong; exit status 1 if anything is
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: &ConfigArgs, layers: &Layers, output: Output) -> Answer {
    if !args.check {
        show(layers, output);
    }
    let mut warnings = Vec::new();
    let errors = match Config::resolve(layers) {
        Err(ConfigError(errors)) => errors,
        Ok(config) if args.check => {
            let insecure = config.insecure_connections();
            warnings.extend(insecure.iter().map(InsecureConnection::to_string));
            refused_at_start(config)
        }
        Ok(_) => Vec::new(),
    };
    for warning in &warnings {
        eprintln!("WARNING: {warning}");
    }
    if !errors.is_empty() {
        match output {
            Output::Text => errors.iter().for_each(|error| eprintln!("{error}")),
            Output::Json => print::failure(&super::wrong_configuration(errors).into(), output),
        }
        return Answer::No;
    }
    match (args.check, output) {
        (true, Output::Text) => println!("the configuration is valid"),
        (true, Output::Json) => println!("{}", json!({"valid": true, "warnings": warnings})),
        (false, _) => {}
    }
    Answer::Done
}

/// The errors that a role or a client would report at its start, such as a missing file. Connects
/// to no server.
pub(super) fn refused_at_start(mut config: Config) -> Vec<String> {
    config.lock.strategy = LockStrategy::Redlock;
    let mut errors = match config.check_listeners() {
        Ok(()) => Vec::new(),
        Err(ConfigError(errors)) => errors,
    };
    errors.extend(check_identity(&config.kafka));
    let files = named_files(&config).into_iter().map(check_pem);
    let refused = files.chain([Codecs::open(&config, None).map(drop)]).filter_map(Result::err);
    errors.extend(refused.map(|error| error_text::with_causes(&*error)));
    // The clients would report the same missing files again.
    if errors.is_empty() {
        errors.extend(open_clients(&config).err().map(|error| error_text::with_causes(&*error)));
    }
    errors
}

/// Opens every client without a connection. Fails with the error of the first client that refuses
/// its settings. Needs a runtime.
fn open_clients(config: &Config) -> anyhow::Result<()> {
    let metrics = process::metrics()?;
    process::open_order_store(config, &metrics)?;
    process::open_stock_store(config, &metrics)?;
    Locks::new(&config.lock, &config.redis, &metrics)?;
    Lease::new(&config.lock, &config.redis, "check")?;
    Producer::new(&config.kafka).context("cannot open the Kafka client")?;
    Ok(())
}

/// A file that a setting names.
struct NamedFile {
    /// The key, or the section of a URL.
    setting: String,
    path: PathBuf,
}

/// The files that clients read only when they connect.
fn named_files(config: &Config) -> Vec<NamedFile> {
    let mut files = Vec::new();
    for (section, store) in
        [("order_store", &config.order_store), ("stock_store", &config.stock_store)]
    {
        let paths = store.tls_files().into_iter();
        files.extend(paths.map(|path| NamedFile { setting: section.to_owned(), path }));
    }
    files
}

fn check_pem(NamedFile { setting, path }: NamedFile) -> anyhow::Result<()> {
    let content =
        fs::read(&path).with_context(|| format!("{setting}: cannot open {}", path.display()))?;
    anyhow::ensure!(
        pem::has_section(&content),
        "{setting}: {} is no PEM file: it lacks the text -----BEGIN",
        path.display()
    );
    Ok(())
}

fn show(layers: &Layers, output: Output) {
    for key in KEYS {
        let (value, origin) = layers.value(key);
        let (value, default) = (key.shown(value), key.shown(key.default));
        if output == Output::Json {
            let environment = key.environment_name();
            let row = json!({
                "key": key.name, "value": value, "default": default, "origin": origin.to_string(),
                "environment": environment, "allowed": key.allowed.to_string(),
                "rule": key.rule, "help": key.help,
            });
            println!("{row}");
        } else {
            let default =
                if value == default { String::new() } else { format!("; default {default:?}") };
            println!(
                "{:32} = {value:<40} # {} [{}] ({origin}{default})",
                key.name, key.help, key.allowed
            );
        }
    }
}
