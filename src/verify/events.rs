//! Invariant 7: a committed offset never passes an order that is neither decided nor dead-lettered.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use chrono::Utc;
use rdkafka::{Message as _, error::KafkaError};
use tokio::sync::mpsc;

use super::{
    Checks, PAGE_ROWS, TopicAccess, Violation,
    letters::{Letters, LettersFilter, Position},
};
use crate::{
    domain::{EventKind, OrderId},
    kafka::TopicReader,
    store::StoreError,
};

/// Most events without an effect that are looked up among the dead letters.
const MAX_SUSPECTS: usize = 200_000;

/// What the check found about the events before the committed offsets of the workers.
#[derive(Debug, Default)]
pub(super) struct PassedEvents {
    pub(crate) count: u64,
    pub(crate) violations: Vec<Violation>,
    /// What could not be checked, and why.
    pub(crate) unchecked: Vec<String>,
}

/// An event before the offset that the workers have committed.
#[derive(Debug, Clone, Copy)]
struct Passed {
    position: Position,
    written_at_millis: Option<i64>,
    /// `None` if the message is no order event.
    event: Option<PassedEvent>,
}

#[derive(Debug, Clone, Copy)]
struct PassedEvent {
    order_id: OrderId,
    kind: EventKind,
}

/// Reads the committed offsets first, then the events before them, then the outcomes, then the dead
/// letters. A worker writes the outcome or the dead letter of an event before it commits the
/// offset, so the check misses none.
///
/// Fails with the error of a store. What Kafka does not show is `unchecked`.
pub(super) async fn check(checks: &Checks<'_>) -> Result<PassedEvents, StoreError> {
    let mut found = PassedEvents::default();
    let (sender, mut pages) = mpsc::channel(2);
    let topics = checks.topics();
    let reading = tokio::task::spawn_blocking(move || read_passed(&topics, &sender));
    let (mut suspects, mut beyond_limit) = (Vec::new(), 0);
    while let Some(page) = pages.recv().await {
        let count = page.len() as u64;
        found.count += count;
        suspects.extend(undecided(checks, page).await?);
        beyond_limit += suspects.len().saturating_sub(MAX_SUSPECTS);
        suspects.truncate(MAX_SUSPECTS);
        checks.progress.advance(count);
    }
    let read = reading.await.map_err(|error| error.to_string());
    match read.and_then(|read| read.map_err(|error| error.to_string())) {
        Ok(beyond) => found.unchecked.extend(beyond),
        Err(error) => found.unchecked.push(format!("{error} (--without 7 leaves it out)")),
    }
    if suspects.is_empty() {
        return Ok(found);
    }
    if beyond_limit > 0 {
        found.unchecked.push(format!(
            "{beyond_limit} events that seem to have had no effect, beyond the first \
             {MAX_SUSPECTS}"
        ));
    }
    let wanted = LettersFilter::of_messages(suspects.iter().map(|passed| passed.position));
    let letters = match Letters::read(checks, wanted).await {
        Ok(Some(letters)) => letters,
        Ok(None) => return Ok(found),
        Err(error) => {
            found.unchecked.push(error);
            return Ok(found);
        }
    };
    suspects.retain(|passed| !letters.may_explain(passed.position, passed.written_at_millis));
    let mut named = BTreeSet::new();
    found.violations = suspects
        .iter()
        .filter(|passed| named.insert(passed.subject()))
        .map(Passed::violation)
        .collect();
    Ok(found)
}

/// Sends the passed events in pages. Returns a text for each committed offset beyond the end of a
/// partition that retains messages.
///
/// Fails with [`KafkaError`] if a topic or the offsets cannot be read.
fn read_passed(
    topics: &TopicAccess,
    pages: &mpsc::Sender<Vec<Passed>>,
) -> Result<Vec<String>, KafkaError> {
    let (orders, codec) = (&topics.names.orders, Arc::clone(&topics.events));
    let reader = TopicReader::new(&topics.kafka, &topics.kafka.group_id)?;
    let mut committed = reader.committed(orders)?;
    let mut beyond = Vec::new();
    for (partition, offset) in std::mem::take(&mut committed) {
        let Range { start, end } = reader.retained(orders, partition)?;
        if start < end && offset > end {
            // The topic was created again, or lost its last messages. So its events are not the
            // ones that the workers have passed.
            beyond.push(format!(
                "{orders}/{partition} ends at {end}, and the workers have committed {offset}"
            ));
        } else {
            committed.insert(partition, offset);
        }
    }
    let mut page = Vec::new();
    reader.read(orders, committed, |message| {
        let event = message.payload().and_then(|payload| codec.decode(payload).ok());
        page.push(Passed {
            position: Position { partition: message.partition(), offset: message.offset() },
            written_at_millis: message.timestamp().to_millis(),
            event: event.map(|event| PassedEvent { order_id: event.order_id, kind: event.kind }),
        });
        page.len() < PAGE_ROWS as usize || pages.blocking_send(std::mem::take(&mut page)).is_ok()
    })?;
    let _nobody_waits = pages.blocking_send(page);
    Ok(beyond)
}

/// The events of a page that seem to have had no effect: the order has no outcome and can still be
/// decided, or the order holds its stock although the event is its release. Leaves out orders that
/// are older than `--since`.
async fn undecided(checks: &Checks<'_>, page: Vec<Passed>) -> Result<Vec<Passed>, StoreError> {
    let ids: BTreeSet<_> = page.iter().filter_map(|passed| Some(passed.event?.order_id)).collect();
    let ids: Vec<_> = ids.into_iter().collect();
    let holds_stock = checks.stock.find_holdings(&ids).await?;
    // Read after the outcomes: an outcome that was purged before that is not missing.
    let purged_below = checks.stock.purged_below().await?;
    let decidable = checks.config.retention.horizon.decidable(Utc::now());
    let first = purged_below.max(decidable.start).max(checks.first_order().unwrap_or(purged_below));
    let is_settled = |passed: &Passed| match passed.event {
        None => false,
        Some(event) if event.order_id < first => true,
        Some(event) => match (holds_stock.get(&event.order_id), event.kind) {
            (None, _) => false,
            (Some(_), EventKind::Placed) => true,
            (Some(holds), EventKind::Release) => !holds,
        },
    };
    Ok(page.into_iter().filter(|passed| !is_settled(passed)).collect())
}

impl Passed {
    fn subject(&self) -> String {
        match self.event {
            Some(event) => format!("order {}", event.order_id),
            None => format!("message {}/{}", self.position.partition, self.position.offset),
        }
    }

    fn violation(&self) -> Violation {
        let Position { partition, offset } = self.position;
        let place = format!("offset {offset} of partition {partition}");
        let detail = match self.event.map(|event| event.kind) {
            Some(EventKind::Placed) => {
                format!("was passed at {place}, and is neither decided nor dead-lettered")
            }
            Some(EventKind::Release) => {
                format!("its release was passed at {place}, and its stock is not released")
            }
            None => format!("was passed at {place}, is no order event, and is not dead-lettered"),
        };
        Violation { invariant: 7, subject: self.subject(), detail }
    }
}
