use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::bail;
use chrono::Utc;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Answer, FilterArgs, LetterParts, Output, names, summary, summary_line, with_reader};
use crate::{
    commands::{print, process},
    config::Config,
    kafka::Replayer,
    letters::{
        Judged, LeftAlone, Letter, LetterId, LettersError, Prospect, ReplayOrder, ReplayTerms,
        Replays, Verdict, escaped, judge_letters,
    },
};

/// Letters on their way from the reader to the producer.
const MAX_IN_FLIGHT: usize = 500;
/// Most letters that one command names.
const MAX_NAMED: usize = 1_000;
const MAX_RATE: i64 = 100_000;
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(in crate::commands) struct ReplayArgs {
    /// Letters to replay, as `dlq list` prints their places
    #[arg(value_name = "TOPIC:PARTITION:OFFSET")]
    letters: Vec<LetterId>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Replay all letters
    #[arg(long)]
    all: bool,
    /// Only say what each letter would do now
    #[arg(long)]
    dry_run: bool,
    /// Most letters a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=MAX_RATE))]
    rate: u32,
    /// Leave a letter alone that came back so often
    #[arg(long, value_name = "TIMES", default_value_t = 3)]
    max_replays: u32,
}

impl ReplayArgs {
    /// Fails unless the user says clearly which letters are wanted.
    fn order(&self, parts: &LetterParts) -> anyhow::Result<ReplayOrder> {
        let filter = self.filter.filter(&parts.topics, Utc::now())?;
        let ways = [!self.letters.is_empty(), !filter.is_empty(), self.all];
        if ways.iter().filter(|is_used| **is_used).count() != 1 {
            bail!("which letters? Name letters, or give filters, or --all");
        }
        if self.letters.len() > MAX_NAMED {
            bail!("{} letters: expected at most {MAX_NAMED}; use filters", self.letters.len());
        }
        for id in &self.letters {
            if !parts.topics.iter().any(|topic| topic.name == id.topic) {
                bail!("{} is no dead-letter topic: expected {}", id.topic, names(&parts.topics));
            }
        }
        Ok(if self.letters.is_empty() {
            ReplayOrder::Matching(filter)
        } else {
            ReplayOrder::Named(self.letters.clone())
        })
    }
}

/// What became of the letters.
#[derive(Debug, Default)]
struct Summary {
    replayed: u64,
    left_alone: BTreeMap<LeftAlone, u64>,
    /// What the letters would do, of a dry run.
    prospects: BTreeMap<Verdict, u64>,
}

pub(super) async fn run(
    args: ReplayArgs,
    config: &Config,
    output: Output,
) -> anyhow::Result<Answer> {
    let parts = Arc::new(LetterParts::open(config).await?);
    let order = args.order(&parts)?;
    let terms = ReplayTerms::new(Utc::now(), config.retention.horizon, args.max_replays);
    let partitions = partitions(&parts, config).await?;
    let (judged, letters) = mpsc::channel(MAX_IN_FLIGHT);
    let reading = {
        let parts = Arc::clone(&parts);
        with_reader(config, move |reader| {
            judge_letters(reader, &parts.topics, &order, &parts.codecs, &terms, &judged)
        })
    };
    let replaying = async {
        if args.dry_run {
            return foretell(letters, &parts, config, output).await;
        }
        let replayer = Replayer::new(&config.kafka)?;
        let replays = Replays { replayer, partitions, rate: args.rate };
        replay(letters, &replays, output).await
    };
    let (missing, summary) = tokio::join!(reading, replaying);
    let summary = summary?;
    let missing = missing.inspect_err(|_| summary.print(args.dry_run, output))?;
    for id in &missing {
        print::complaint(&format!("there is no letter {id}"), output);
    }
    summary.print(args.dry_run, output);
    Ok(if missing.is_empty() { Answer::Done } else { Answer::No })
}

/// How many partitions each original topic has.
async fn partitions(
    parts: &Arc<LetterParts>,
    config: &Config,
) -> anyhow::Result<BTreeMap<String, i32>> {
    let parts = Arc::clone(parts);
    with_reader(config, move |reader| {
        let count = |topic: &String| {
            let partitions = reader.partitions(topic);
            let partitions = partitions
                .map_err(|source| LettersError::Kafka { topic: topic.clone(), source })?;
            Ok((topic.clone(), i32::try_from(partitions.len()).unwrap_or(i32::MAX)))
        };
        parts.topics.iter().map(|topic| count(&topic.original)).collect()
    })
    .await
}

/// Replays letters, and shows a progress bar on a terminal.
async fn replay(
    letters: mpsc::Receiver<Judged>,
    replays: &Replays,
    output: Output,
) -> anyhow::Result<Summary> {
    let style = ProgressStyle::with_template("replayed {human_pos} letters, {per_sec}, {elapsed}")?;
    let progress = ProgressBar::no_length().with_style(style);
    progress.enable_steady_tick(REDRAW_INTERVAL);
    let mut summary = Summary::default();
    let replayed = replays.run(letters, |Judged { letter, left_alone }| match left_alone {
        None => {
            summary.replayed += 1;
            progress.inc(1);
        }
        Some(why) => {
            *summary.left_alone.entry(*why).or_default() += 1;
            tracing::debug!(letter = %letter.id, why = why.as_str(), "letter left alone");
        }
    });
    let replayed = replayed.await;
    progress.finish_and_clear();
    if let Err(error) = replayed {
        summary.print(false, output);
        return Err(error.into());
    }
    Ok(summary)
}

/// Prints for each letter what it would do now.
async fn foretell(
    mut letters: mpsc::Receiver<Judged>,
    parts: &LetterParts,
    config: &Config,
    output: Output,
) -> anyhow::Result<Summary> {
    let metrics = process::metrics()?;
    let orders = process::open_order_store(config, &metrics)?;
    let stock = process::open_stock_store(config, &metrics)?;
    let prospects = parts.prospects(&orders, &stock, config);
    let (mut summary, mut page) = (Summary::default(), Vec::new());
    while letters.recv_many(&mut page, MAX_IN_FLIGHT).await > 0 {
        let all: Vec<&Letter> = page.iter().map(|judged| &judged.letter).collect();
        let found = prospects.of(&all, Utc::now()).await?;
        for (Judged { letter, left_alone }, prospect) in page.iter().zip(found) {
            if let Some(why) = left_alone {
                *summary.left_alone.entry(*why).or_default() += 1;
            } else {
                summary.replayed += 1;
                *summary.prospects.entry(prospect.verdict).or_default() += 1;
            }
            if !print_prospect(letter, *left_alone, &prospect, parts, output) {
                return Ok(summary);
            }
        }
        page.clear();
    }
    Ok(summary)
}

/// Returns whether the reader of the output is still there.
fn print_prospect(
    letter: &Letter,
    left_alone: Option<LeftAlone>,
    Prospect { verdict, text }: &Prospect,
    parts: &LetterParts,
    output: Output,
) -> bool {
    match output {
        Output::Json => {
            let mut shown = summary(letter, &parts.codecs);
            shown["left_alone"] = json!(left_alone.map(LeftAlone::as_str));
            shown["now"] = json!({"verdict": verdict.as_str(), "text": text});
            print::read_line(format_args!("{shown}"))
        }
        Output::Text => {
            let line = summary_line(letter, &parts.codecs);
            let now = format!("{}: {}", verdict.as_str(), escaped(text));
            match left_alone {
                Some(why) => print::read_line(format_args!(
                    "{line}\n  left alone: {}; now: {now}",
                    why.meaning()
                )),
                None => print::read_line(format_args!("{line}\n  now: {now}")),
            }
        }
    }
}

impl Summary {
    fn print(&self, dry_run: bool, output: Output) {
        let Self { replayed, left_alone, prospects } = self;
        let name = if dry_run { "would_replay" } else { "replayed" };
        if output == Output::Json {
            let left_alone: BTreeMap<_, _> =
                left_alone.iter().map(|(why, count)| (why.as_str(), count)).collect();
            let mut shown = json!({name: replayed, "left_alone": left_alone});
            if dry_run {
                let prospects: BTreeMap<_, _> =
                    prospects.iter().map(|(verdict, count)| (verdict.as_str(), count)).collect();
                shown["now"] = json!(prospects);
            }
            println!("{shown}");
            return;
        }
        println!("{replayed} letters {}", if dry_run { "would be replayed" } else { "replayed" });
        for (verdict, count) in prospects {
            println!("  {count} {}", verdict.as_str());
        }
        for (why, count) in left_alone {
            println!("{count} letters left alone: {}", why.meaning());
        }
    }
}
