use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::json;

use super::{Answer, FilterArgs, LetterParts, Output, rfc3339, summary, summary_line, with_reader};
use crate::{
    commands::print,
    config::Config,
    letters::{Letter, LetterFilter, LettersError, escaped, scan},
};

/// Most pairs of a topic and a class that are counted apart. Anybody may write a letter.
const MAX_CLASSES: usize = 1_000;
const OTHER_CLASSES: &str = "(others)";

#[derive(Debug, Args)]
pub(in crate::commands) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// List at most so many letters
    #[arg(long)]
    limit: Option<u64>,
}

/// The letters of a topic and a class.
#[derive(Debug, Default)]
struct Count {
    letters: u64,
    replayed: u64,
    oldest: Option<DateTime<Utc>>,
    newest: Option<DateTime<Utc>>,
}

/// The letters of each topic and class.
type Counts = BTreeMap<(String, String), Count>;

pub(super) async fn run(
    args: &ListArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let parts = Arc::new(LetterParts::open(config).await?);
    let filter = args.filter.filter(&parts.topics, Utc::now())?;
    if filter.is_empty() && args.limit.is_none() {
        let counts = with_reader(config, move |reader| {
            let mut counts = Counts::new();
            each_letter(reader, &parts, &filter, |letter| {
                count(&mut counts, &letter);
                true
            })?;
            Ok(counts)
        });
        print_counts(&counts.await?, output);
        return Ok(Answer::Done);
    }
    let mut left = args.limit.unwrap_or(u64::MAX);
    with_reader(config, move |reader| {
        if left == 0 {
            return Ok(());
        }
        let codecs = &parts.codecs;
        each_letter(reader, &parts, &filter, |letter| {
            left -= 1;
            let is_read = match output {
                Output::Json => print::read_line(format_args!("{}", summary(&letter, codecs))),
                Output::Text => print::read_line(format_args!("{}", summary_line(&letter, codecs))),
            };
            is_read && left > 0
        })
    })
    .await?;
    Ok(Answer::Done)
}

/// Gives `take` each wanted letter until it returns `false`.
fn each_letter(
    reader: &crate::kafka::TopicReader,
    parts: &LetterParts,
    filter: &LetterFilter,
    mut take: impl FnMut(Letter) -> bool,
) -> Result<(), LettersError> {
    let mut goes_on = true;
    for topic in parts.topics.iter().filter(|topic| filter.wants_topic(topic)) {
        if goes_on {
            scan(reader, topic, filter.since, |letter| {
                goes_on = !filter.wants(&letter, &parts.codecs) || take(letter);
                goes_on
            })?;
        }
    }
    Ok(())
}

fn count(counts: &mut Counts, letter: &Letter) {
    let mut place = (letter.id.topic.clone(), letter.class.clone());
    if counts.len() >= MAX_CLASSES && !counts.contains_key(&place) {
        OTHER_CLASSES.clone_into(&mut place.1);
    }
    let count = counts.entry(place).or_default();
    count.letters += 1;
    count.replayed += u64::from(letter.replays > 0);
    if let Some(at) = letter.written_at {
        count.oldest = Some(count.oldest.map_or(at, |oldest| oldest.min(at)));
        count.newest = Some(count.newest.map_or(at, |newest| newest.max(at)));
    }
}

fn print_counts(counts: &Counts, output: Output) {
    for ((topic, class), count) in counts {
        let Count { letters, replayed, .. } = count;
        let (oldest, newest) = (count.oldest.map(rfc3339), count.newest.map(rfc3339));
        match output {
            Output::Json => println!(
                "{}",
                json!({
                    "topic": topic, "class": class, "letters": letters, "replayed": replayed,
                    "oldest": oldest, "newest": newest,
                })
            ),
            Output::Text => println!(
                "{topic}  {}  {letters} letters, {replayed} came back after a replay, {} to {}",
                escaped(class),
                oldest.as_deref().unwrap_or("no time"),
                newest.as_deref().unwrap_or("no time"),
            ),
        }
    }
    if output == Output::Text && counts.is_empty() {
        println!("no dead letters");
    }
}
