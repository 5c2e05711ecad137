//! The dead letters: reads them, says what each would do now, and replays them.
//!
//! | file | what it does |
//! | --- | --- |
//! | `letter` | a letter: its message, its reason and its origin |
//! | `content` | decodes a letter's value |
//! | `filter` | the letters that a caller wants |
//! | `scan` | reads dead-letter topics up to their present end |
//! | `prospect` | what a letter would do if it were replayed now |
//! | `replay` | chooses the letters to replay, and produces them at a bounded rate |
//!
//! Kafka cannot delete one letter. So a letter stays in its topic after it was replayed. If the
//! message is dead-lettered again, the new letter names the same origin and has more replays. Then
//! the older letter is *superseded*, and is left alone.
//!
//! The memory does not grow with the number of letters, except for letters that came back: their
//! origins are kept, [`MAX_RETURNED`] at most.

mod content;
mod filter;
mod letter;
mod prospect;
mod replay;
mod scan;

pub(crate) use content::{Content, LetterCodecs};
pub(crate) use filter::LetterFilter;
pub(crate) use letter::{Letter, LetterId, LetterTopic, escaped, hex, letter_topics, printable};
pub(crate) use prospect::{Prospect, Prospects, Verdict};
pub(crate) use replay::{Judged, LeftAlone, ReplayOrder, ReplayTerms, Replays, judge_letters};
pub(crate) use scan::{find_letter, scan};

/// Most origins of letters that came back after a replay.
pub(crate) const MAX_RETURNED: usize = 1_000_000;

/// Why letters were not read or replayed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LettersError {
    #[error("topic {topic}: {source}")]
    Kafka { topic: String, source: rdkafka::error::KafkaError },
    #[error("the client cannot be made: {0}")]
    Client(#[source] rdkafka::error::KafkaError),
    #[error("more than {MAX_RETURNED} letters came back after a replay: name a shorter time")]
    TooManyReturned,
    #[error("the thread that reads letters panicked")]
    Panicked,
}
