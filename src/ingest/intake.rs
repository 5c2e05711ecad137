//! The intake: it places the orders of the records of `order-requests`, as `POST` does.
//!
//! A record may be delivered any number of times, and makes one order. It is recognized by the
//! `order_id` of its request, or by its `Idempotency-Key` header, or by its place in the topic and
//! its time. The offset is stored once the order is durable.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use futures::future::join_all;
use rdkafka::{Message as _, message::OwnedMessage};

use super::{
    Api,
    api::{Receipt, Source},
    intake_record::{self, KeyAge, RecordOrigin},
    problem::Problem,
    request::{OrderRequest, RecordOrder},
};
use crate::{
    domain::{OrderId, TraceParent},
    kafka::{Blame, DeadLetterReason, Done, Fate, Handler, trace_parent},
    telemetry::{ConsumerTraces, Span},
    wire::{OrderRequestCodec, WireError},
};

/// Places the orders of records. A batch may be placed again without harm.
pub(crate) struct Intake {
    pub(crate) api: Arc<Api>,
    pub(crate) codec: Arc<OrderRequestCodec>,
    /// How long the keys of requests are kept.
    pub(crate) keys_kept: Duration,
    pub(crate) traces: ConsumerTraces,
}

/// The place of a record in its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Position {
    partition: i32,
    offset: i64,
}

/// A record, as far as it could be read.
pub(crate) struct Record {
    position: Position,
    origin: RecordOrigin,
    parsed: Result<Parsed, DeadLetterReason>,
    /// Its schema is being looked up.
    is_pending: bool,
    /// The trace of the record's producer.
    trace: Option<TraceParent>,
}

/// A valid request, and by what it is recognized.
pub(super) struct Parsed {
    identity: RecordIdentity,
    pub(super) request: OrderRequest,
}

enum RecordIdentity {
    OrderId(OrderId),
    Key(String),
    Origin,
}

/// The records of a batch that are dead-lettered although they could be read.
#[derive(Debug, Default)]
pub(crate) struct Refused(HashMap<Position, DeadLetterReason>);

/// Why a batch was not placed. Some of its orders may be placed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    #[error("the broker lags behind, and the outbox is full")]
    OutboxFull,
    /// What an HTTP client would receive.
    #[error("{0}")]
    Unavailable(String),
}

impl Handler for Intake {
    type Decoded = Record;
    type Handled = Refused;
    type Error = IntakeError;

    fn decode(&self, message: &OwnedMessage) -> Record {
        let text = self.codec.json(message.payload().unwrap_or_default());
        Record {
            position: Position { partition: message.partition(), offset: message.offset() },
            origin: RecordOrigin::of(message),
            is_pending: text.as_ref().is_err_and(WireError::is_pending),
            parsed: Parsed::read(text, message, self.api.hold_max_seconds),
            trace: self.traces.process().is_on().then(|| trace_parent(message)).flatten(),
        }
    }

    fn is_pending(&self, record: &Record) -> bool {
        record.is_pending
    }

    /// Places all orders at the same time, so that they share transactions with each other and with
    /// the orders of HTTP clients.
    ///
    /// Fails with `OutboxFull`, or with `Unavailable` if an order may not be saved at present.
    async fn handle(&self, records: &[Record]) -> Result<Done<Refused>, IntakeError> {
        if self.api.is_outbox_full() {
            return Err(IntakeError::OutboxFull);
        }
        let now = Utc::now();
        let placed = join_all(records.iter().map(|record| self.place(record, now))).await;
        let failed = placed.iter().find_map(|placed| match placed {
            Ok(Err(problem)) if is_outage(problem) => Some(problem.text()),
            _ => None,
        });
        // The orders that are placed already come again, as replayed ones.
        let is_counted = |placed: &Result<Receipt, Problem>| failed.is_none() || placed.is_ok();
        for placed in placed.iter().flatten().filter(|placed| is_counted(placed)) {
            self.api.count(placed);
        }
        if let Some(why) = failed {
            return Err(IntakeError::Unavailable(why));
        }
        let refused = records.iter().zip(placed).filter_map(|(record, placed)| match placed {
            Ok(Ok(_)) => None,
            Ok(Err(problem)) => Some((record.position, reason_of(&problem))),
            Err(reason) => Some((record.position, reason)),
        });
        Ok(Done { handled: Refused(refused.collect()), deferred: Vec::new() })
    }

    fn dead_letter_reason(&self, record: &Record, refused: &Refused) -> Option<DeadLetterReason> {
        refused.0.get(&record.position).cloned()
    }

    /// What is wrong with a request is its writer's fault. Other classes may be the fault of this
    /// service: a schema that it lacks, its clock, its database.
    fn blame<'m>(&self, _: &'m Record, reason: &DeadLetterReason) -> Blame<'m> {
        match reason.class {
            "undecodable" | "invalid" => Blame::Writer,
            _ => Blame::Partition,
        }
    }

    /// Nothing is left to publish: the committer publishes the orders.
    async fn publish(&self, _: &Refused) -> Result<(), IntakeError> {
        Ok(())
    }

    fn fate(error: &IntakeError) -> Fate {
        match error {
            IntakeError::OutboxFull => Fate::Retry("kafka"),
            IntakeError::Unavailable(_) => Fate::Retry("order_store"),
        }
    }
}

impl Intake {
    /// Places the order of a record, or finds the one that an earlier delivery has made.
    ///
    /// Fails with the reason to dead-letter a record that is not to be placed.
    async fn place(
        &self,
        record: &Record,
        now: DateTime<Utc>,
    ) -> Result<Result<Receipt, Problem>, DeadLetterReason> {
        let parsed = record.parsed.as_ref().map_err(Clone::clone)?;
        let source = parsed.source(&record.origin, now, self.keys_kept)?;
        let Position { partition, offset } = record.position;
        let mut span = self.traces.record(record.trace.as_ref(), partition, offset);
        let trace = span.as_ref().map(|span| Box::new(span.context().clone()));
        let placed = self.api.place(source, parsed.request.clone(), trace).await;
        if let (Some(span), Err(problem)) = (&mut span, &placed) {
            Span::fail(span, problem.text());
        }
        Ok(placed)
    }
}

impl Parsed {
    /// Reads the JSON of a request, and the headers of its message.
    ///
    /// Fails with the reason to dead-letter the record, whatever the stores have.
    pub(super) fn read(
        text: Result<Cow<'_, [u8]>, WireError>,
        message: &OwnedMessage,
        hold_max_seconds: u32,
    ) -> Result<Self, DeadLetterReason> {
        let text = text
            .map_err(|error| DeadLetterReason { class: error.class(), text: error.to_string() })?;
        let order = RecordOrder::parse(&text, hold_max_seconds);
        let RecordOrder { order_id, request } = order.map_err(|problem| reason_of(&problem))?;
        let key = intake_record::key(message).map_err(|problem| invalid(problem.text()))?;
        let identity = match (order_id, key) {
            (Some(_), Some(_)) => {
                let text = "the order id is the key of a request that has one: send no \
                            Idempotency-Key with it";
                return Err(invalid(text));
            }
            (Some(id), None) => RecordIdentity::OrderId(id),
            (None, Some(key)) => RecordIdentity::Key(key),
            (None, None) => RecordIdentity::Origin,
        };
        Ok(Self { identity, request })
    }

    /// Who makes the id of the order. `keys_kept`: how long the keys of requests are kept.
    ///
    /// Fails with the reason to dead-letter a record that cannot be recognized.
    pub(super) fn source(
        &self,
        origin: &RecordOrigin,
        now: DateTime<Utc>,
        keys_kept: Duration,
    ) -> Result<Source, DeadLetterReason> {
        let no_time = || invalid("the record has no timestamp, by which it would be recognized");
        Ok(match &self.identity {
            RecordIdentity::OrderId(id) => Source::Client(*id),
            RecordIdentity::Origin => Source::Client(origin.order_id().ok_or_else(no_time)?),
            RecordIdentity::Key(key) => {
                let age = origin.key_age(now, keys_kept).ok_or_else(no_time)?;
                if age == KeyAge::FromTheFuture {
                    return Err(invalid("the record is from the future: compare the clocks"));
                }
                let is_expired = age == KeyAge::Forgotten;
                Source::RecordKey { key: key.clone(), is_expired }
            }
        })
    }
}

/// Whether the request may be placed later. After a commit without an answer it may be placed
/// already, and is then found.
fn is_outage(problem: &Problem) -> bool {
    let status = problem.status();
    status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::GATEWAY_TIMEOUT
}

/// Why the record of a request is dead-lettered that an HTTP client would have to mend.
pub(super) fn reason_of(problem: &Problem) -> DeadLetterReason {
    let class = match problem.status() {
        StatusCode::BAD_REQUEST => "undecodable",
        StatusCode::UNPROCESSABLE_ENTITY if problem.is_expired() => "expired",
        StatusCode::UNPROCESSABLE_ENTITY => "invalid",
        _ => "refused",
    };
    DeadLetterReason { class, text: problem.text() }
}

fn invalid(text: impl Into<String>) -> DeadLetterReason {
    DeadLetterReason { class: "invalid", text: text.into() }
}
