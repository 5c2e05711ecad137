//! The dead letters, which explain why an order is not final.

use std::collections::{BTreeMap, HashMap, HashSet};

use rdkafka::{
    Message as _,
    error::KafkaResult,
    message::{BorrowedMessage, Headers as _},
};

use super::{Checks, TopicAccess};
use crate::{domain::OrderId, kafka::TopicReader};

/// The place of a message in the `orders` topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Position {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// Most causes whose text is kept. Of the others it is known that there is one.
const MAX_CAUSES: usize = 10_000;
const MAX_CAUSE_CHARS: usize = 500;

/// The letters that the caller looks for.
#[derive(Debug, Default)]
pub(super) struct LettersFilter {
    orders: HashSet<OrderId>,
    positions: HashSet<Position>,
}

/// The dead letters of some orders and of some messages, as far as their topics retain them.
#[derive(Debug, Default)]
pub(super) struct Letters {
    wanted: LettersFilter,
    /// Their origins in the `orders` topic.
    events: HashSet<Position>,
    /// Why the last dead-lettered message of an order was dead-lettered.
    causes: HashMap<OrderId, String>,
    /// Messages that were written before this time may have letters that are no longer retained. In
    /// milliseconds since 1970.
    complete_since: i64,
}

impl LettersFilter {
    pub(super) fn of_orders(orders: impl Iterator<Item = OrderId>) -> Self {
        Self { orders: orders.collect(), positions: HashSet::new() }
    }

    pub(super) fn of_messages(positions: impl Iterator<Item = Position>) -> Self {
        Self { orders: HashSet::new(), positions: positions.collect() }
    }
}

impl Letters {
    /// Reads both dead-letter topics, and keeps what `wanted` names. `None` if `checks` leaves
    /// Kafka out. Fails with a text if a topic cannot be read.
    pub(super) async fn read(
        checks: &Checks<'_>,
        wanted: LettersFilter,
    ) -> Result<Option<Self>, String> {
        if checks.is_without(7) {
            return Ok(None);
        }
        let topics = checks.topics();
        let reading = tokio::task::spawn_blocking(move || Self::read_blocking(&topics, wanted));
        let read = reading.await.map_err(|error| error.to_string())?;
        read.map(Some).map_err(|error| format!("the dead letters cannot be read: {error}"))
    }

    /// Blocks the thread. Fails with the error of the client.
    fn read_blocking(topics: &TopicAccess, wanted: LettersFilter) -> KafkaResult<Self> {
        let reader = TopicReader::new(&topics.kafka, &topics.kafka.group_id)?;
        let mut letters = Self { wanted, ..Self::default() };
        let mut first = BTreeMap::new();
        let of_orders = &topics.names.orders_dlq;
        let partitions = reader.all(of_orders)?;
        reader.read(of_orders, partitions.clone(), |letter| {
            first
                .entry(letter.partition())
                .or_insert((letter.offset(), letter.timestamp().to_millis()));
            letters.add_event(letter, &topics.names.orders);
            true
        })?;
        for partition in partitions.keys() {
            letters.complete_since = letters.complete_since.max(match first.get(partition) {
                Some((0, _)) => 0,
                Some((_, written_at)) => written_at.unwrap_or(i64::MAX),
                None if reader.retained(of_orders, *partition)?.start == 0 => 0,
                None => i64::MAX,
            });
        }
        let of_statuses = &topics.names.order_status_dlq;
        reader.read(of_statuses, reader.all(of_statuses)?, |letter| {
            letters.add_status(letter, topics);
            true
        })?;
        Ok(letters)
    }

    /// Why a message of a wanted order was dead-lettered. `None` if none was.
    pub(super) fn cause(&self, id: OrderId) -> Option<&str> {
        self.causes.get(&id).map(String::as_str)
    }

    /// Whether a wanted message of the `orders` topic was dead-lettered. Also true if its letter
    /// may be one that is no longer retained.
    pub(super) fn may_explain(&self, position: Position, written_at_millis: Option<i64>) -> bool {
        self.events.contains(&position) || written_at_millis.unwrap_or(0) < self.complete_since
    }

    fn add_event(&mut self, letter: &BorrowedMessage<'_>, orders: &str) {
        if header(letter, "stocklock.original.topic").as_deref() != Some(orders) {
            return;
        }
        let number = |name| header(letter, name)?.parse::<i64>().ok();
        let origin = (number("stocklock.original.partition"), number("stocklock.original.offset"));
        if let (Some(partition), Some(offset)) = origin {
            let partition = i32::try_from(partition);
            let position = partition.map(|partition| Position { partition, offset });
            self.events.extend(position.ok().filter(|at| self.wanted.positions.contains(at)));
        }
        if let Some(id) = order_of(letter) {
            self.add_cause(id, letter);
        }
    }

    /// Counts letters of workers' statuses alone. A status of another source does not keep an order
    /// from its outcome.
    fn add_status(&mut self, letter: &BorrowedMessage<'_>, topics: &TopicAccess) {
        let Some(payload) = letter.payload() else { return };
        if let Ok(status) = topics.statuses.decode(payload, chrono::DateTime::UNIX_EPOCH)
            && status.is_from_worker()
        {
            self.add_cause(status.order_id, letter);
        }
    }

    fn add_cause(&mut self, id: OrderId, letter: &BorrowedMessage<'_>) {
        if !self.wanted.orders.contains(&id) {
            return;
        }
        if self.causes.len() >= MAX_CAUSES && !self.causes.contains_key(&id) {
            self.causes.insert(id, format!("on {}", letter.topic()));
            return;
        }
        let [class, text] =
            ["class", "text"].map(|name| header(letter, &format!("stocklock.error.{name}")));
        let text: String = text.unwrap_or_default().chars().take(MAX_CAUSE_CHARS).collect();
        let cause = format!("{} on {}: {text}", class.unwrap_or_default(), letter.topic());
        self.causes.insert(id, cause);
    }
}

fn order_of(letter: &BorrowedMessage<'_>) -> Option<OrderId> {
    std::str::from_utf8(letter.key()?).ok()?.parse().ok()
}

/// The last value of a header, as text. A letter that was dead-lettered again has the headers of
/// both, in their order.
fn header(letter: &BorrowedMessage<'_>, key: &str) -> Option<String> {
    let found = letter.headers()?.iter().filter(|header| header.key == key).last()?;
    Some(String::from_utf8_lossy(found.value?).into_owned())
}
