use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::Range,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{sync::mpsc, time::Instant};

use super::{
    Content, Letter, LetterCodecs, LetterFilter, LetterId, LetterTopic, LettersError, MAX_RETURNED,
    find_letter, scan::Span,
};
use crate::{
    domain::{Horizon, OrderId},
    kafka::{Replayer, TopicReader},
};

/// Letters that are replayed at once, at most. Fewer at a low rate.
const MAX_AT_ONCE: u32 = 500;
/// How often letters are produced, at a rate that allows more than one each time.
const TICKS_A_SECOND: u32 = 20;

/// The letters that a caller wants to replay.
#[derive(Debug, Clone)]
pub(crate) enum ReplayOrder {
    Named(Vec<LetterId>),
    Matching(LetterFilter),
}

/// Which of the wanted letters are left alone.
pub(crate) struct ReplayTerms {
    /// A letter with so many replays is left alone.
    pub(crate) max_replays: u32,
    /// The orders that workers still decide.
    pub(crate) decidable: Range<OrderId>,
}

impl ReplayTerms {
    pub(crate) fn new(now: DateTime<Utc>, horizon: Horizon, max_replays: u32) -> Self {
        Self { max_replays, decidable: horizon.decidable(now) }
    }
}

/// Why a letter is not replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LeftAlone {
    /// Its message was replayed, and a later letter of it exists. Or this run has replayed it.
    Superseded,
    /// It came back too often.
    Limit,
    /// Its order is beyond the horizon.
    Expired,
    /// A part of the message was too large for the dead-letter topic.
    Incomplete,
    /// It does not name a message of this topic as its origin.
    Foreign,
    /// The original topic does not take a message of its size.
    TooLarge,
}

impl LeftAlone {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Limit => "limit",
            Self::Expired => "expired",
            Self::Incomplete => "incomplete",
            Self::Foreign => "foreign",
            Self::TooLarge => "too_large",
        }
    }

    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Superseded => "its message was replayed, and has a later letter",
            Self::Limit => "it came back too often: see --max-replays",
            Self::Expired => "its order is beyond the horizon",
            Self::Incomplete => "its message is not complete",
            Self::Foreign => "it names no message of its topic as its origin",
            Self::TooLarge => "its topic does not take a message of its size",
        }
    }
}

/// A letter that the caller wants, and why it is left alone, if it is.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) letter: Letter,
    pub(crate) left_alone: Option<LeftAlone>,
}

/// A message that was replayed, as a hash of its first origin, and the number of its replays.
type Returned = HashMap<u64, u32>;

/// Reads the wanted letters, each topic up to its present end, and sends them with a judgement.
/// Returns the named letters that do not exist. Ends early once the receiver is gone. Blocks.
///
/// Fails if a topic cannot be read, or if too many letters came back.
pub(crate) fn judge_letters(
    reader: &TopicReader,
    topics: &[LetterTopic],
    order: &ReplayOrder,
    codecs: &LetterCodecs,
    terms: &ReplayTerms,
    to: &mpsc::Sender<Judged>,
) -> Result<Vec<LetterId>, LettersError> {
    let mut missing = Vec::new();
    for topic in topics {
        let since = match order {
            ReplayOrder::Named(_) => None,
            ReplayOrder::Matching(filter) if filter.wants_topic(topic) => filter.since,
            ReplayOrder::Matching(_) => continue,
        };
        let named = match order {
            ReplayOrder::Named(ids) => ids.iter().filter(|id| id.topic == topic.name).collect(),
            ReplayOrder::Matching(_) => Vec::new(),
        };
        if matches!(order, ReplayOrder::Named(_)) && named.is_empty() {
            continue;
        }
        let span = Span::of(reader, topic, since)?;
        let mut judge = Judge { returned: returned(reader, topic, &span)?, codecs, terms, topic };
        match order {
            ReplayOrder::Matching(filter) => span.read(reader, topic, |letter| {
                !filter.wants(&letter, codecs) || to.blocking_send(judge.judge(letter)).is_ok()
            })?,
            ReplayOrder::Named(_) => {
                for id in named {
                    let Some(letter) = find_letter(reader, topic, id)? else {
                        missing.push(id.clone());
                        continue;
                    };
                    if to.blocking_send(judge.judge(letter)).is_err() {
                        break;
                    }
                }
            }
        }
    }
    Ok(missing)
}

/// The messages whose letters came back, and how often. Fails if there are too many.
fn returned(
    reader: &TopicReader,
    topic: &LetterTopic,
    span: &Span,
) -> Result<Returned, LettersError> {
    let mut returned = Returned::new();
    span.read(reader, topic, |letter| {
        if letter.replays > 0
            && let Some(message) = first_message(&letter)
        {
            let replays = returned.entry(message).or_insert(0);
            *replays = letter.replays.max(*replays);
        }
        returned.len() <= MAX_RETURNED
    })?;
    if returned.len() > MAX_RETURNED {
        return Err(LettersError::TooManyReturned);
    }
    Ok(returned)
}

/// Tells messages apart by their first origin and their key.
fn first_message(letter: &Letter) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    (letter.first_origin.as_ref()?, letter.original_key()).hash(&mut hasher);
    Some(hasher.finish())
}

/// Judges the letters of a topic.
struct Judge<'a> {
    returned: Returned,
    codecs: &'a LetterCodecs,
    terms: &'a ReplayTerms,
    topic: &'a LetterTopic,
}

impl Judge<'_> {
    fn judge(&mut self, letter: Letter) -> Judged {
        let left_alone = self.left_alone(&letter);
        if left_alone.is_none()
            && self.returned.len() < MAX_RETURNED
            && let Some(message) = first_message(&letter)
        {
            self.returned.insert(message, letter.replays.saturating_add(1));
        }
        Judged { letter, left_alone }
    }

    fn left_alone(&self, letter: &Letter) -> Option<LeftAlone> {
        let is_foreign =
            letter.origin.as_ref().is_none_or(|origin| origin.topic != self.topic.original);
        if is_foreign {
            return Some(LeftAlone::Foreign);
        }
        if !letter.is_complete() {
            return Some(LeftAlone::Incomplete);
        }
        let replayed = first_message(letter).and_then(|message| self.returned.get(&message));
        if replayed.is_some_and(|replays| *replays > letter.replays) {
            return Some(LeftAlone::Superseded);
        }
        if letter.replays >= self.terms.max_replays {
            return Some(LeftAlone::Limit);
        }
        match self.codecs.decode(letter) {
            Content::Event(event) if event.order_id < self.terms.decidable.start => {
                Some(LeftAlone::Expired)
            }
            Content::Event(_)
            | Content::Status(_)
            | Content::Tombstone
            | Content::Unreadable(_)
            | Content::OrderRequest
            | Content::Adjustment(_) => None,
        }
    }
}

/// Produces letters to their original topics.
pub(crate) struct Replays {
    pub(crate) replayer: Replayer,
    /// The original topics, and how many partitions each has.
    pub(crate) partitions: BTreeMap<String, i32>,
    /// Most letters a second.
    pub(crate) rate: u32,
}

impl Replays {
    /// Replays all letters that are not left alone, at a bounded rate, and gives `report` each
    /// letter that was replayed or left alone.
    ///
    /// Fails if the broker does not acknowledge a message. Those that were reported are produced.
    pub(crate) async fn run(
        &self,
        mut letters: mpsc::Receiver<Judged>,
        mut report: impl FnMut(&Judged),
    ) -> Result<(), LettersError> {
        let at_once = (self.rate / TICKS_A_SECOND).clamp(1, MAX_AT_ONCE) as usize;
        let mut due = Instant::now();
        let mut batch = Vec::new();
        while let Some(judged) = letters.recv().await {
            if judged.left_alone.is_some() {
                report(&judged);
                continue;
            }
            batch.push(judged);
            if batch.len() < at_once && !letters.is_empty() {
                continue;
            }
            tokio::time::sleep_until(due).await;
            due = due.max(Instant::now()) + self.time_of(batch.len());
            self.replay(&mut batch, &mut report).await?;
        }
        if !batch.is_empty() {
            tokio::time::sleep_until(due).await;
            self.replay(&mut batch, &mut report).await?;
        }
        Ok(())
    }

    /// The time that so many letters take at the rate.
    fn time_of(&self, letters: usize) -> Duration {
        let letters = u32::try_from(letters).unwrap_or(u32::MAX);
        Duration::from_secs(1).saturating_mul(letters) / self.rate.max(1)
    }

    async fn replay(
        &self,
        batch: &mut Vec<Judged>,
        report: &mut impl FnMut(&Judged),
    ) -> Result<(), LettersError> {
        let sending = batch.iter().map(|judged| self.produce(&judged.letter));
        let sent = futures::future::join_all(sending).await;
        for (mut judged, sent) in batch.drain(..).zip(sent) {
            judged.left_alone = (!sent?).then_some(LeftAlone::TooLarge);
            report(&judged);
        }
        Ok(())
    }

    /// Produces the message of a letter to the partition that it had, if that still exists.
    async fn produce(&self, letter: &Letter) -> Result<bool, LettersError> {
        let Some(origin) = &letter.origin else { return Ok(false) };
        let partitions = self.partitions.get(&origin.topic).copied().unwrap_or(0);
        let partition = Some(origin.partition).filter(|number| *number < partitions);
        let replayed = self.replayer.replay(letter.replayed(&origin.topic, partition)).await;
        replayed.map_err(|source| LettersError::Kafka { topic: origin.topic.clone(), source })
    }
}
