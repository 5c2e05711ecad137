use chrono::{DateTime, Utc};

use super::{Letter, LetterCodecs, LetterTopic};

/// The letters that a caller wants. A field that is `None` excludes no letter.
#[derive(Debug, Clone, Default)]
pub(crate) struct LetterFilter {
    /// The name of the topic, or of its dead-letter topic.
    pub(crate) topic: Option<String>,
    pub(crate) class: Option<String>,
    /// The source that a status names.
    pub(crate) source: Option<String>,
    pub(crate) key: Option<String>,
    /// Letters of that time or later.
    pub(crate) since: Option<DateTime<Utc>>,
    /// Letters before that time.
    pub(crate) until: Option<DateTime<Utc>>,
}

impl LetterFilter {
    /// Whether every letter is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { topic, class, source, key, since, until } = self;
        let texts = [topic, class, source, key];
        texts.iter().all(|text| text.is_none()) && since.is_none() && until.is_none()
    }

    pub(crate) fn wants_topic(&self, topic: &LetterTopic) -> bool {
        self.topic.as_ref().is_none_or(|wanted| [&topic.name, &topic.original].contains(&wanted))
    }

    /// A letter without a time has every time.
    pub(crate) fn wants(&self, letter: &Letter, codecs: &LetterCodecs) -> bool {
        let Self { topic: _, class, source, key, since, until } = self;
        let is_in_time = letter.written_at.is_none_or(|at| {
            since.is_none_or(|since| since <= at) && until.is_none_or(|until| at < until)
        });
        is_in_time
            && class.as_ref().is_none_or(|class| *class == letter.class)
            && key.as_ref().is_none_or(|key| Some(key.as_bytes()) == letter.key.as_deref())
            && source.as_ref().is_none_or(|source| codecs.source(letter).as_ref() == Some(source))
    }
}
