use clap::Args;
use serde_json::json;

use super::{Answer, Output};
use crate::ingest::{NewToken, Scope, is_name, new_token};

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

fn name(text: &str) -> Result<String, String> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 60 ASCII letters, digits, dots, hyphens, underscores and @, not jwt. at \
         the beginning"
        .to_owned())
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| {
        let all = Scope::ALL.map(Scope::as_str);
        format!("expected one of {}", all.join(", "))
    })
}
