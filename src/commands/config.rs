use clap::Args;
use serde_json::json;

use super::{Answer, Output};
use crate::config::{Config, KEYS, Key, Layers, SecretUrl};

#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Say what is wrong with it, and nothing else; exit status 1 where anything is
    #[arg(long)]
    check: bool,
}

pub fn run(args: &ConfigArgs, layers: &Layers, output: Output) -> Answer {
    if !args.check {
        show(layers, output);
    }
    if let Err(errors) = Config::resolve(layers) {
        eprintln!("{errors}");
        return Answer::No;
    }
    if args.check {
        println!("the configuration is valid");
    }
    Answer::Done
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
