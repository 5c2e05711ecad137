use std::collections::{BTreeMap, HashMap, HashSet};

use rdkafka::{
    Message as _,
    error::KafkaResult,
    message::{BorrowedMessage, Headers as _},
};

use super::{Checks, Topics};
use crate::{domain::OrderId, kafka::TopicReader};

/// The dead letters that are retained.
#[derive(Debug, Default)]
pub(super) struct Letters {
    /// The partitions and the offsets of the `orders` topic from which they come.
    events: HashSet<(i32, i64)>,
    /// Why the last message of an order was dead-lettered.
    causes: HashMap<OrderId, String>,
    /// Messages written earlier may have had letters that are no longer retained; milliseconds
    /// since 1970.
    complete_since: i64,
}

impl Letters {
    /// Reads both dead-letter topics. `None` where `checks` leaves Kafka out, or it cannot be read.
    pub(super) async fn read(checks: &Checks<'_>) -> Option<Self> {
        if checks.is_without(7) {
            return None;
        }
        let topics = checks.topics();
        let read = tokio::task::spawn_blocking(move || Self::read_blocking(&topics)).await.ok()?;
        read.inspect_err(|error| tracing::warn!(%error, "the dead letters cannot be read")).ok()
    }

    pub(super) fn read_blocking(topics: &Topics) -> KafkaResult<Self> {
        let reader = TopicReader::new(&topics.kafka, &topics.kafka.group_id)?;
        let mut letters = Self::default();
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

    /// Why an order's last message was dead-lettered, if it was.
    pub(super) fn cause(&self, id: OrderId) -> Option<&str> {
        self.causes.get(&id).map(String::as_str)
    }

    /// Whether a message of the `orders` topic was dead-lettered. True too if it may have been, and
    /// its letter is no longer retained.
    pub(super) fn may_explain(
        &self,
        partition: i32,
        offset: i64,
        written_at_millis: Option<i64>,
    ) -> bool {
        self.events.contains(&(partition, offset))
            || written_at_millis.unwrap_or(0) < self.complete_since
    }

    fn add_event(&mut self, letter: &BorrowedMessage<'_>, orders: &str) {
        if header(letter, "stocklock.original.topic").as_deref() != Some(orders) {
            return;
        }
        let number = |name| header(letter, name)?.parse::<i64>().ok();
        let origin = (number("stocklock.original.partition"), number("stocklock.original.offset"));
        if let (Some(partition), Some(offset)) = origin {
            self.events.extend(i32::try_from(partition).map(|partition| (partition, offset)));
        }
        if let Some(id) = order_of(letter) {
            self.add_cause(id, letter);
        }
    }

    /// What others report of an order does not keep it from its outcome.
    fn add_status(&mut self, letter: &BorrowedMessage<'_>, topics: &Topics) {
        let Some(payload) = letter.payload() else { return };
        if let Ok(status) = topics.statuses.decode(payload, chrono::DateTime::UNIX_EPOCH)
            && status.is_from_worker()
        {
            self.add_cause(status.order_id, letter);
        }
    }

    fn add_cause(&mut self, id: OrderId, letter: &BorrowedMessage<'_>) {
        let [class, text] =
            ["class", "text"].map(|name| header(letter, &format!("stocklock.error.{name}")));
        let cause = format!(
            "{} on {}: {}",
            class.unwrap_or_default(),
            letter.topic(),
            text.unwrap_or_default()
        );
        self.causes.insert(id, cause);
    }
}

fn order_of(letter: &BorrowedMessage<'_>) -> Option<OrderId> {
    std::str::from_utf8(letter.key()?).ok()?.parse().ok()
}

/// The last value of a header, as text: a letter of a letter has the headers of both.
fn header(letter: &BorrowedMessage<'_>, key: &str) -> Option<String> {
    let found = letter.headers()?.iter().filter(|header| header.key == key).last()?;
    Some(String::from_utf8_lossy(found.value?).into_owned())
}
