use clap::Args;
use serde_json::json;

use super::{Answer, Output};
use crate::ingest::{NAME_RULE, NewToken, Scope, is_name, new_token};

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// Name of the principal: ASCII letters, digits, dots, hyphens, underscores and @
    #[arg(value_parser = name)]
    name: String,
    /// What the token allows: orders:write, orders:read or stock:write; may be repeated
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_parser = scope)]
    scopes: Vec<Scope>,
}

/// Makes a token. It is shown once, and stored nowhere.
pub(super) fn run(args: &TokenArgs, output: Output) -> anyhow::Result<Answer> {
    let NewToken { token, line } = new_token(&args.name, &args.scopes)?;
    match output {
        Output::Text => {
            println!("token (give it to the client, it is not shown again):\n{token}");
            println!("\nline for the file of auth.tokens_file:\n{line}");
        }
        Output::Json => println!("{}", json!({"token": token, "line": line})),
    }
    Ok(Answer::Done)
}

fn name(text: &str) -> Result<String, &'static str> {
    if is_name(text) { Ok(text.to_owned()) } else { Err(NAME_RULE) }
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| format!("expected one of {}", Scope::names()))
}
