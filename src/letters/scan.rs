use chrono::{DateTime, Utc};

use super::{Letter, LetterId, LetterTopic, LettersError};
use crate::kafka::{EndOffsets, StartOffsets, TopicReader};

/// The part of a dead-letter topic that is read.
pub(super) struct Span {
    starts: StartOffsets,
    ends: EndOffsets,
}

impl Span {
    /// The letters since a time, up to the present end of the topic.
    pub(super) fn of(
        reader: &TopicReader,
        topic: &LetterTopic,
        since: Option<DateTime<Utc>>,
    ) -> Result<Self, LettersError> {
        let asked = || {
            let mut ends = reader.present_ends(&topic.name)?;
            let starts = match since {
                Some(since) => {
                    reader.starts_at(&topic.name, since.timestamp_millis(), &mut ends)?
                }
                None => StartOffsets::new(),
            };
            Ok(Self { starts, ends })
        };
        asked().map_err(|source| LettersError::Kafka { topic: topic.name.clone(), source })
    }

    /// Gives `take` every letter of the span. Returns early once `take` returns `false`.
    pub(super) fn read(
        &self,
        reader: &TopicReader,
        topic: &LetterTopic,
        mut take: impl FnMut(Letter) -> bool,
    ) -> Result<(), LettersError> {
        let read = reader.read_from(&topic.name, &self.starts, self.ends.clone(), |message| {
            take(Letter::read(message, topic.kind))
        });
        read.map_err(|source| LettersError::Kafka { topic: topic.name.clone(), source })
    }
}

/// Gives `take` every letter of a topic since a time, up to the topic's present end. Returns early
/// once `take` returns `false`. Blocks.
pub(crate) fn scan(
    reader: &TopicReader,
    topic: &LetterTopic,
    since: Option<DateTime<Utc>>,
    take: impl FnMut(Letter) -> bool,
) -> Result<(), LettersError> {
    Span::of(reader, topic, since)?.read(reader, topic, take)
}

/// One letter; `None` if the topic does not have it, or not any more. Blocks.
pub(crate) fn find_letter(
    reader: &TopicReader,
    topic: &LetterTopic,
    id: &LetterId,
) -> Result<Option<Letter>, LettersError> {
    let mut found = None;
    let mut find = || {
        let (partition, offset) = (id.partition, id.offset);
        if !reader.partitions(&topic.name)?.contains(&partition)
            || !reader.retained(&topic.name, partition)?.contains(&offset)
        {
            return Ok(());
        }
        let starts = StartOffsets::from([(partition, offset)]);
        let ends = EndOffsets::from([(partition, offset + 1)]);
        reader.read_from(&topic.name, &starts, ends, |message| {
            found = Some(Letter::read(message, topic.kind)).filter(|letter| letter.id == *id);
            true
        })
    };
    find().map_err(|source| LettersError::Kafka { topic: topic.name.clone(), source })?;
    Ok(found)
}
