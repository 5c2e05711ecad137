use std::sync::Arc;

use anyhow::Context as _;
use chrono::Utc;
use serde_json::{Value, json};

use super::{Answer, LetterParts, Output, names, summary, with_reader};
use crate::{
    commands::{print, process},
    config::Config,
    letters::{Content, Letter, LetterId, Prospect, escaped, find_letter, hex, printable},
    telemetry::Metrics,
};

/// Most bytes of a value that are shown as hexadecimal digits, as text.
const MAX_SHOWN_BYTES: usize = 4096;

pub(super) async fn run(id: LetterId, config: &Config, output: Output) -> anyhow::Result<Answer> {
    let parts = Arc::new(LetterParts::open(config).await?);
    let topic = parts.topics.iter().find(|topic| topic.name == id.topic).cloned();
    let topic = topic.with_context(|| {
        format!("{} is no dead-letter topic: expected {}", id.topic, names(&parts.topics))
    })?;
    let wanted = id.clone();
    let found = with_reader(config, move |reader| find_letter(reader, &topic, &wanted)).await?;
    let Some(letter) = found else {
        print::complaint(&format!("there is no letter {id}"), output);
        return Ok(Answer::No);
    };
    let prospect = prospect(&letter, &parts, config, &process::metrics()?).await;
    let fields = parts.codecs.fields(&letter);
    let why_unreadable = match parts.codecs.decode(&letter) {
        Content::Unreadable(error) => Some(error.to_string()),
        Content::Event(_)
        | Content::Status(_)
        | Content::Tombstone
        | Content::OrderRequest
        | Content::Adjustment(_) => None,
    };
    let shown = Shown { letter, prospect, fields, why_unreadable };
    match output {
        Output::Json => println!("{}", shown.as_json(&parts)),
        Output::Text => shown.print(&parts),
    }
    Ok(Answer::Done)
}

/// A store that cannot be reached leaves the answer open.
async fn prospect(
    letter: &Letter,
    parts: &LetterParts,
    config: &Config,
    metrics: &Metrics,
) -> Prospect {
    let asked = async {
        let orders = process::open_order_store(config, metrics)?;
        let stock = process::open_stock_store(config, metrics)?;
        let prospects = parts.prospects(&orders, &stock, config);
        anyhow::Ok(prospects.of(&[letter], Utc::now()).await?)
    };
    match asked.await {
        Ok(prospects) => {
            prospects.into_iter().next().unwrap_or_else(|| Prospect::unknown("no prospect"))
        }
        Err(error) => Prospect::unknown(format!("{error:#}")),
    }
}

/// A letter with what was found out about it.
struct Shown {
    letter: Letter,
    prospect: Prospect,
    fields: Option<Value>,
    why_unreadable: Option<String>,
}

impl Shown {
    fn as_json(&self, parts: &LetterParts) -> Value {
        let Self { letter, prospect, fields, why_unreadable } = self;
        let mut shown = summary(letter, &parts.codecs);
        let headers = letter.headers.iter().map(
            |header| json!({"name": header.name, "value": header.value.as_deref().map(printable)}),
        );
        shown["headers"] = headers.collect();
        shown["value"] = json!(fields);
        shown["value_hex"] = json!(letter.payload.as_deref().map(hex));
        shown["unreadable"] = json!(why_unreadable);
        shown["now"] = json!({"verdict": prospect.verdict.as_str(), "text": prospect.text});
        shown
    }

    fn print(&self, parts: &LetterParts) {
        let Self { letter, prospect, fields, why_unreadable } = self;
        if let Value::Object(members) = summary(letter, &parts.codecs) {
            for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
                let value = value.as_str().map_or_else(|| value.to_string(), escaped);
                println!("{name:12} {value}");
            }
        }
        for header in &letter.headers {
            let value = header.value.as_deref().map_or_else(|| "null".to_owned(), printable);
            println!("header       {} = {value}", escaped(&header.name));
        }
        match (fields, &letter.payload) {
            (Some(fields), _) => println!("value        {fields}"),
            (None, Some(payload)) => {
                let first = &payload[..payload.len().min(MAX_SHOWN_BYTES)];
                println!("value        {} bytes: {}", payload.len(), hex(first));
            }
            (None, None) => println!("value        none"),
        }
        if let Some(why) = why_unreadable {
            println!("unreadable   {}", escaped(why));
        }
        println!("now          {}: {}", prospect.verdict.as_str(), escaped(&prospect.text));
    }
}
