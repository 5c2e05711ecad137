//! `stocklock dlq`: dead letters.

mod list;
mod replay;
mod show;

use anyhow::Context as _;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Answer, Output,
    process::{Codecs, SchemaRegistry},
    since::{Since, parse_since},
};
use crate::{
    config::Config,
    ingest::IntakePreview,
    kafka::TopicReader,
    letters::{
        Letter, LetterCodecs, LetterFilter, LetterId, LetterTopic, LettersError, Prospects,
        escaped, letter_topics, printable,
    },
    store::{OrderStore, StockStore},
};

/// Most characters of a letter's error text in a line of text.
const MAX_SHOWN_CHARS: usize = 120;

#[derive(Debug, Subcommand)]
pub(super) enum DlqCommand {
    /// Count the letters by topic and class; with a filter, list each letter
    List(list::ListArgs),
    /// Show one letter: its headers, its value, and what its replay would do now
    Show {
        /// The place of the letter, as `dlq list` prints it
        #[arg(value_name = "TOPIC:PARTITION:OFFSET")]
        letter: LetterId,
    },
    /// Produce letters again to the topics that they came from; exit status 1 if a named letter
    /// does not exist
    Replay(replay::ReplayArgs),
}

/// The letters that the user wants.
#[derive(Debug, Args)]
struct FilterArgs {
    /// Letters of this topic; the name of its dead-letter topic works too
    #[arg(long)]
    topic: Option<String>,
    /// Letters of this class, such as `unknown_schema`
    #[arg(long)]
    class: Option<String>,
    /// Statuses of this source, as far as the value can be read
    #[arg(long)]
    source: Option<String>,
    /// Letters with this key, which is the order id on `orders` and `order-status`
    #[arg(long)]
    key: Option<String>,
    /// Letters since then: an RFC 3339 time, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Since>,
    /// Letters before then: an RFC 3339 time, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    until: Option<Since>,
}

impl FilterArgs {
    /// Fails if no topic with dead letters has the name that the user gave.
    fn filter(&self, topics: &[LetterTopic], now: DateTime<Utc>) -> anyhow::Result<LetterFilter> {
        let filter = LetterFilter {
            topic: self.topic.clone(),
            class: self.class.clone(),
            source: self.source.clone(),
            key: self.key.clone(),
            since: self.since.map(|since| since.at(now)),
            until: self.until.map(|until| until.at(now)),
        };
        if let Some(topic) = &self.topic
            && !topics.iter().any(|known| filter.wants_topic(known))
        {
            anyhow::bail!("topic {topic}: expected {}", names(topics));
        }
        Ok(filter)
    }
}

fn names(topics: &[LetterTopic]) -> String {
    let names = topics.iter().flat_map(|topic| [topic.original.as_str(), topic.name.as_str()]);
    format!("one of {}", names.collect::<Vec<_>>().join(", "))
}

pub(super) async fn run(
    command: DlqCommand,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    match command {
        DlqCommand::List(args) => list::run(&args, config, output).await,
        DlqCommand::Show { letter } => show::run(letter, config, output).await,
        DlqCommand::Replay(args) => replay::run(args, config, output).await,
    }
}

/// The topics with dead letters, and what reads them.
struct LetterParts {
    topics: Vec<LetterTopic>,
    codecs: LetterCodecs,
}

impl LetterParts {
    /// Without the schema registry, values with its framing are shown as bytes.
    async fn open(config: &Config) -> anyhow::Result<Self> {
        let registry = match SchemaRegistry::open_for_command(config).await {
            Ok(registry) => registry,
            Err(error) => {
                eprintln!("WARNING: {error:#}");
                None
            }
        };
        let Codecs { events, statuses, adjustments, requests } =
            Codecs::open(config, registry.as_ref())?;
        let codecs = LetterCodecs { events, statuses, requests, adjustments };
        Ok(Self { topics: letter_topics(&config.topics), codecs })
    }

    /// What asks the stores what letters would do.
    fn prospects<'s>(
        &'s self,
        orders: &'s OrderStore,
        stock: &'s StockStore,
        config: &Config,
    ) -> Prospects<'s> {
        let intake = IntakePreview {
            orders,
            stock,
            codec: &self.codecs.requests,
            horizon: config.retention.horizon,
            hold_max_seconds: config.orders.hold_max_seconds,
            keys_kept: config.retention.idempotency_keys,
        };
        let request_ids_kept = config.retention.movements;
        Prospects { intake, codecs: &self.codecs, request_ids_kept }
    }
}

/// Reads topics on a thread for blocking work. Fails with the brokers in the error.
async fn with_reader<T: Send + 'static>(
    config: &Config,
    read: impl FnOnce(&TopicReader) -> Result<T, LettersError> + Send + 'static,
) -> anyhow::Result<T> {
    let kafka = config.kafka.clone();
    let reading = tokio::task::spawn_blocking(move || {
        read(&TopicReader::new(&kafka, &kafka.group_id).map_err(LettersError::Client)?)
    });
    let read = reading.await.map_err(|_| LettersError::Panicked).and_then(|read| read);
    read.with_context(|| format!("brokers {}", config.kafka.brokers))
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A letter without its value and its headers.
fn summary(letter: &Letter, codecs: &LetterCodecs) -> Value {
    json!({
        "letter": letter.id.to_string(),
        "topic": letter.origin.as_ref().map(|origin| &origin.topic),
        "original": letter.origin.as_ref().map(ToString::to_string),
        "time": letter.written_at.map(rfc3339),
        "class": letter.class,
        "key": letter.key.as_deref().map(printable),
        "source": codecs.source(letter),
        "replays": letter.replays,
        "text": letter.text,
    })
}

/// The same as a line of text.
fn summary_line(letter: &Letter, codecs: &LetterCodecs) -> String {
    let time = letter.written_at.map_or_else(|| "no time".to_owned(), rfc3339);
    let mut parts = vec![letter.id.to_string(), time, escaped(&letter.class)];
    parts.extend(letter.key.as_deref().map(|key| format!("key {}", printable(key))));
    parts.extend(codecs.source(letter).map(|source| format!("source {}", escaped(&source))));
    if letter.replays > 0 {
        parts.push(format!("replays {}", letter.replays));
    }
    let text: String = letter.text.chars().take(MAX_SHOWN_CHARS).collect();
    parts.push(escaped(&text));
    parts.join("  ")
}
