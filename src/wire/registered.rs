//! What is known of the schemas in a schema registry. Other rooms ask the registry; see
//! `src/registry/`.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{SchemaError, WriterSchema, fingerprint::fingerprint};
use crate::{
    config::{StatusFormat, TopicsConfig},
    error_text,
};

/// How long the answer counts that the registry has no schema with an id. Then it is asked again.
const ABSENT_FOR: Duration = Duration::from_secs(30);
/// The most schemas that are kept. Each keeps its memory until the process ends.
const MAX_SCHEMAS: usize = 1_000;
/// The most ids that are remembered as absent, and the most that wait for an answer.
const MAX_IDS: usize = 10_000;

/// The schemas of a registry, by their ids. All codecs of a process share them.
pub(crate) struct RegisteredSchemas {
    subjects: Vec<Arc<Subject>>,
    known: Mutex<Known>,
    /// Notified when an id is wanted.
    wanted: Notify,
}

#[derive(Default)]
struct Known {
    schemas: HashMap<u32, Arc<WriterSchema>>,
    absent: HashMap<u32, Absence>,
    wanted: BTreeSet<u32>,
}

/// An id that is of no use.
struct Absence {
    since: Instant,
    why: String,
}

/// What is known of an id.
pub(super) enum Registered {
    Schema(Arc<WriterSchema>),
    /// The registry has no usable schema with this id, for this cause.
    Absent(String),
    /// The registry has not answered yet.
    Pending,
}

/// The values of a topic, as the registry names them, and the schema that stocklock has for them.
pub(crate) struct Subject {
    /// The topic's name and `-value`, which is the registries' own convention.
    pub(crate) name: String,
    topic: String,
    pub(crate) schema: &'static str,
    /// Whether stocklock writes values with the schema, and so needs its id.
    pub(crate) is_written: bool,
    id: OnceLock<u32>,
}

impl Subject {
    fn new(topic: &str, schema: &'static str, is_written: bool) -> Arc<Self> {
        let (name, topic) = (format!("{topic}-value"), topic.to_owned());
        Arc::new(Self { name, topic, schema, is_written, id: OnceLock::new() })
    }

    /// The id of the schema in the registry, once it is known.
    pub(crate) fn id(&self) -> Option<u32> {
        self.id.get().copied()
    }

    /// Keeps the first id that is found: equal schemas have one id.
    pub(crate) fn set_id(&self, id: u32) {
        self.id.get_or_init(|| id);
    }

    /// Whether a registered schema is the subject's own, docs and defaults aside.
    pub(crate) fn is_own(&self, text: &str) -> bool {
        let of = |text: &str| serde_json::from_str(text).ok().map(|json| fingerprint(&json));
        of(text).is_some_and(|theirs| Some(theirs) == of(self.schema))
    }

    /// Fails with the cause unless the subject's own schema can read the values of `registered`.
    pub(crate) fn can_read(&self, registered: &str) -> Result<(), SchemaError> {
        let (own, theirs) = (
            WriterSchema::parse("this version", None, self.schema)?,
            WriterSchema::parse("the registered version", None, registered)?,
        );
        theirs.check_read_by(&own)
    }
}

impl RegisteredSchemas {
    /// Knows no schema, and has a subject for each topic that is used.
    pub(crate) fn new(topics: &TopicsConfig) -> Arc<Self> {
        let writes_avro = topics.status_format == StatusFormat::Avro;
        let mut subjects = vec![
            Subject::new(&topics.orders, include_str!("../../schemas/order_event.avsc"), true),
            Subject::new(
                &topics.order_status,
                include_str!("../../schemas/order_status.avsc"),
                writes_avro,
            ),
        ];
        subjects.extend(topics.order_requests.as_ref().map(|topic| {
            let schema = include_str!("../../schemas/order_request.avsc");
            Subject::new(&topic.requests, schema, false)
        }));
        subjects.extend(topics.stock_adjustments.as_ref().map(|topic| {
            let schema = include_str!("../../schemas/stock_adjustment.avsc");
            Subject::new(&topic.requests, schema, false)
        }));
        subjects.extend(topics.stock_levels.as_ref().map(|topic| {
            Subject::new(topic, include_str!("../../schemas/stock_level.avsc"), true)
        }));
        Arc::new(Self { subjects, known: Mutex::default(), wanted: Notify::new() })
    }

    pub(crate) fn subjects(&self) -> &[Arc<Subject>] {
        &self.subjects
    }

    pub(super) fn subject_of(&self, topic: &str) -> Option<Arc<Subject>> {
        self.subjects.iter().find(|subject| subject.topic == topic).cloned()
    }

    /// What is known of an id. An id that is pending is wanted from now on.
    pub(super) fn find(&self, id: u32) -> Registered {
        let mut known = self.lock();
        if let Some(schema) = known.schemas.get(&id) {
            return Registered::Schema(Arc::clone(schema));
        }
        if let Some(absence) = known.absent.get(&id)
            && absence.since.elapsed() < ABSENT_FOR
        {
            return Registered::Absent(absence.why.clone());
        }
        if known.wanted.len() < MAX_IDS && known.wanted.insert(id) {
            self.wanted.notify_one();
        }
        Registered::Pending
    }

    /// The ids that are to be looked up. Waits until there are any.
    pub(crate) async fn wanted(&self) -> Vec<u32> {
        loop {
            let wanted: Vec<_> = self.lock().wanted.iter().copied().collect();
            if !wanted.is_empty() {
                return wanted;
            }
            self.wanted.notified().await;
        }
    }

    /// Keeps the schema of an id. A text that is no Avro schema makes the id absent.
    pub(crate) fn add(&self, id: u32, text: &str) {
        let mut known = self.lock();
        if known.schemas.contains_key(&id) {
            known.wanted.remove(&id);
            return;
        }
        let is_full = known.schemas.len() >= MAX_SCHEMAS;
        drop(known);
        if is_full {
            tracing::error!(id, MAX_SCHEMAS, "too many registered schemas, one is ignored");
            self.add_absent(id, format!("{MAX_SCHEMAS} schemas are in use already"));
            return;
        }
        match WriterSchema::parse(&format!("id {id}"), Some(id), text) {
            Ok(schema) => {
                let mut known = self.lock();
                known.wanted.remove(&id);
                known.absent.remove(&id);
                known.schemas.insert(id, Arc::new(schema));
            }
            Err(error) => self.add_absent(id, error_text::with_causes(&error)),
        }
    }

    /// Notes that an id is of no use, for 30 s.
    pub(crate) fn add_absent(&self, id: u32, why: String) {
        let mut known = self.lock();
        known.wanted.remove(&id);
        if known.absent.len() >= MAX_IDS {
            known.absent.clear();
        }
        known.absent.insert(id, Absence { since: Instant::now(), why });
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
