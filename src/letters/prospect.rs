use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};

use super::{Content, Letter, LetterCodecs};
use crate::{
    deduct::{check_request_age, refusal},
    domain::{
        Cause, Effect, EventKind, OrderEvent, OrderFacts, OrderId, OrderState, OrderStatus,
        adjustment::AdjustmentRequest, fold::Outcome,
    },
    ingest::{IntakePreview, Previewed},
    kafka::DeadLetterReason,
    store::{Adjusted, StoreError},
};

/// What a letter would do if it were replayed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prospect {
    pub(crate) verdict: Verdict,
    pub(crate) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// The message changes something.
    Acts,
    /// The message changes nothing: it is done already.
    Done,
    /// The message is dead-lettered again.
    DeadLetter,
    Unknown,
}

impl Verdict {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Acts => "acts",
            Self::Done => "changes nothing",
            Self::DeadLetter => "dead letter again",
            Self::Unknown => "cannot say",
        }
    }
}

impl Prospect {
    fn new(verdict: Verdict, text: impl Into<String>) -> Self {
        Self { verdict, text: text.into() }
    }

    fn refused(DeadLetterReason { class, text }: &DeadLetterReason) -> Self {
        Self::new(Verdict::DeadLetter, format!("{class}: {text}"))
    }

    /// The verdict could not be found out.
    pub(crate) fn unknown(text: impl Into<String>) -> Self {
        Self::new(Verdict::Unknown, text)
    }
}

/// Asks the stores what letters would do.
pub(crate) struct Prospects<'s> {
    /// Has the stores and the horizon too.
    pub(crate) intake: IntakePreview<'s>,
    pub(crate) codecs: &'s LetterCodecs,
    /// How long the ids of adjustment requests are kept.
    pub(crate) request_ids_kept: Duration,
}

impl Prospects<'_> {
    /// What each of the letters would do, each as if it came alone.
    ///
    /// Fails if a store cannot be read.
    pub(crate) async fn of(
        &self,
        letters: &[&Letter],
        now: DateTime<Utc>,
    ) -> Result<Vec<Prospect>, StoreError> {
        let contents: Vec<_> = letters.iter().map(|letter| self.codecs.decode(letter)).collect();
        let (mut of_events, mut of_statuses) = (Vec::new(), Vec::new());
        for content in &contents {
            match content {
                Content::Event(event) => of_events.push(event.order_id),
                Content::Status(status) => of_statuses.push(status.order_id),
                Content::Tombstone
                | Content::Unreadable(_)
                | Content::OrderRequest
                | Content::Adjustment(_) => {}
            }
        }
        let (mut outcomes, mut facts) = (HashMap::new(), HashMap::new());
        if !of_events.is_empty() {
            outcomes = self.intake.stock.find_outcomes(&of_events).await?;
        }
        if !of_statuses.is_empty() {
            facts = self.intake.orders.find_facts(&of_statuses, now, self.intake.horizon).await?;
        }
        let mut prospects = Vec::with_capacity(letters.len());
        for (letter, content) in letters.iter().zip(&contents) {
            prospects.push(match content {
                Content::Event(event) => self.of_event(event, outcomes.get(&event.order_id), now),
                Content::Status(status) => of_status(status, facts.get(&status.order_id)),
                Content::Tombstone => Prospect::new(Verdict::Done, "it has no value"),
                Content::Unreadable(error) => {
                    Prospect::new(Verdict::DeadLetter, format!("{}: {error}", error.class()))
                }
                Content::OrderRequest => self.of_order_request(letter, now).await?,
                Content::Adjustment(request) => self.of_adjustment(letter, request, now).await?,
            });
        }
        Ok(prospects)
    }

    async fn of_order_request(
        &self,
        letter: &Letter,
        now: DateTime<Utc>,
    ) -> Result<Prospect, StoreError> {
        let Some(origin) = &letter.origin else {
            return Ok(Prospect::unknown("its headers name no record that could be replayed"));
        };
        Ok(match self.intake.of(&letter.as_delivered(origin, now), now).await? {
            Previewed::Places(Some(id)) => {
                Prospect::new(Verdict::Acts, format!("ingest places order {id}"))
            }
            Previewed::Places(None) => Prospect::new(Verdict::Acts, "ingest places a new order"),
            Previewed::Placed(order) => {
                let (id, state) = (order.order_id, order.state);
                Prospect::new(Verdict::Done, format!("order {id} is placed already: {state}"))
            }
            Previewed::Refused(reason) => Prospect::refused(&reason),
        })
    }

    async fn of_adjustment(
        &self,
        letter: &Letter,
        request: &AdjustmentRequest,
        now: DateTime<Utc>,
    ) -> Result<Prospect, StoreError> {
        let (id, products) = (request.request_id(), request.adjustments().len());
        let written_at = letter.first_origin.as_ref().and_then(|origin| origin.timestamp);
        let written_at = written_at.and_then(DateTime::from_timestamp_millis);
        let age = check_request_age(written_at, self.request_ids_kept, now);
        let adjusted = self.intake.stock.preview_adjustment(request).await?;
        Ok(match (age.err().or_else(|| refusal(&adjusted)), adjusted) {
            (Some(reason), _) => Prospect::refused(&reason),
            (None, Adjusted::Done { is_repeated: true, .. }) => {
                Prospect::new(Verdict::Done, format!("request {id} is done already"))
            }
            (None, _) => {
                let text = format!("a worker does request {id}, adjusting {products} products");
                Prospect::new(Verdict::Acts, text)
            }
        })
    }

    fn of_event(
        &self,
        event: &OrderEvent,
        outcome: Option<&Result<Outcome, String>>,
        now: DateTime<Utc>,
    ) -> Prospect {
        let (id, decidable) = (event.order_id, self.intake.horizon.decidable(now));
        if id < decidable.start {
            return Prospect::new(
                Verdict::DeadLetter,
                format!("expired: order {id} is of {}, beyond the horizon", made_at(id)),
            );
        }
        if id >= decidable.end {
            let text = format!("invalid: order {id} is of {}, more than a day ahead", made_at(id));
            return Prospect::new(Verdict::DeadLetter, text);
        }
        match (outcome, event.kind) {
            (None, EventKind::Placed) => {
                Prospect::new(Verdict::Acts, format!("a worker decides order {id}"))
            }
            (None, EventKind::Release) => {
                Prospect::new(Verdict::Acts, format!("order {id} will never be deducted"))
            }
            (Some(Ok(Outcome::Completed(_))), EventKind::Release) => {
                Prospect::new(Verdict::Acts, format!("a worker releases the stock of order {id}"))
            }
            (Some(Ok(outcome)), EventKind::Placed | EventKind::Release) => {
                let reason = match outcome {
                    Outcome::Failed(reason) => format!(" ({})", reason.as_str()),
                    Outcome::Completed(_) | Outcome::Released(_) => String::new(),
                };
                let outcome = outcome.as_str();
                Prospect::new(
                    Verdict::Done,
                    format!("order {id} is decided already: {outcome}{reason}"),
                )
            }
            (Some(Err(error)), EventKind::Placed | EventKind::Release) => {
                Prospect::new(Verdict::DeadLetter, format!("damaged: order {id}: {error}"))
            }
        }
    }
}

fn of_status(status: &OrderStatus, facts: Option<&Result<OrderFacts, String>>) -> Prospect {
    let id = status.order_id;
    let facts = match facts {
        None => None,
        Some(Ok(facts)) => Some(*facts),
        Some(Err(error)) => {
            return Prospect::new(Verdict::DeadLetter, format!("damaged: order {id}: {error}"));
        }
    };
    let state = facts.map_or("unknown", |facts| facts.state.as_str());
    let (verdict, text) = match Cause::Reported(status).effect_on(facts) {
        Effect::Nothing => (Verdict::Done, format!("order {id} is {state}")),
        Effect::Move { to, owes_release, .. } => {
            (Verdict::Acts, moved(id, state, to, owes_release))
        }
        Effect::Expire => (Verdict::Acts, moved(id, state, OrderState::Cancelled, true)),
        Effect::ConfirmHold => {
            (Verdict::Acts, format!("order {id} is {state}, and keeps its stock once decided"))
        }
        Effect::ExtendHold => (Verdict::Acts, format!("the hold of order {id} is extended")),
        Effect::OweRelease => {
            (Verdict::Acts, format!("order {id} is {state}, and its stock is released"))
        }
        Effect::EndRelease => {
            (Verdict::Acts, format!("order {id} is {state}, and owes no release any more"))
        }
        Effect::TooOld => (
            Verdict::DeadLetter,
            format!("expired: order {id} is {state}, and too old for a release"),
        ),
        Effect::Refused => (Verdict::Done, format!("too late: order {id} is {state}")),
        Effect::UnknownOrder => {
            (Verdict::DeadLetter, format!("unknown_order: no order has the id {id}"))
        }
    };
    Prospect { verdict, text }
}

fn moved(id: OrderId, from: &str, to: OrderState, owes_release: bool) -> String {
    let release = if owes_release { ", and releases its stock" } else { "" };
    format!("moves order {id} from {from} to {to}{release}")
}

fn made_at(id: OrderId) -> String {
    id.made_at().to_rfc3339_opts(SecondsFormat::Millis, true)
}
