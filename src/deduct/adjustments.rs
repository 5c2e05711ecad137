//! Takes requests to adjust stock from their topic.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use rdkafka::{Message as _, message::OwnedMessage};

use crate::{
    crash_point::crash_point,
    domain::adjustment::{AdjustmentRefusal, AdjustmentRequest, MAX_ADJUSTMENTS, RefusalCause},
    ingest::RecordOrigin,
    kafka::{Blame, DeadLetterReason, Done, Fate, Handler},
    store::{Adjusted, StockStore, StoreError},
    wire::{StockAdjustmentCodec, WireError},
};

/// The most adjustments of a transaction, unless one request has more.
const MAX_PER_TRANSACTION: usize = 2 * MAX_ADJUSTMENTS;
/// A record further ahead than this comes from a wrong clock.
const MAX_AHEAD: TimeDelta = TimeDelta::days(1);
/// The most refusals that the text of a letter names.
const MAX_SHOWN: usize = 3;

/// Does the requests of a topic, each once, however often its record is delivered.
pub(crate) struct Adjuster {
    pub(crate) store: StockStore,
    pub(crate) codec: Arc<StockAdjustmentCodec>,
    /// How long the ids of requests are kept.
    pub(crate) kept: Duration,
}

/// The place of a record in its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RecordPlace {
    partition: i32,
    offset: i64,
}

/// A record with a valid request.
#[derive(Debug)]
pub(crate) struct ArrivedRequest {
    place: RecordPlace,
    written_at: Option<DateTime<Utc>>,
    request: AdjustmentRequest,
}

/// The records that were handled and are dead-lettered.
type Unadjusted = HashMap<RecordPlace, DeadLetterReason>;

impl Handler for Adjuster {
    type Decoded = Result<ArrivedRequest, WireError>;
    type Handled = Unadjusted;
    type Error = StoreError;

    fn decode(&self, message: &OwnedMessage) -> Self::Decoded {
        let place = RecordPlace { partition: message.partition(), offset: message.offset() };
        // A replayed letter is as old as its first message: its id may be forgotten.
        let written_at = RecordOrigin::of(message).produced_at;
        let request = self.codec.decode(message.payload().unwrap_or_default());
        Ok(ArrivedRequest { place, written_at, request: request? })
    }

    fn is_pending(&self, message: &Self::Decoded) -> bool {
        message.as_ref().is_err_and(WireError::is_pending)
    }

    /// Does the requests in order, as many in a transaction as fit. If it fails, the transactions
    /// before are committed, and their requests are not done a second time.
    ///
    /// Fails as [`StockStore::adjust`] does.
    async fn handle(&self, messages: &[Self::Decoded]) -> Result<Done<Unadjusted>, StoreError> {
        let (mut arrived, mut unadjusted) = (Vec::new(), Unadjusted::new());
        let now = Utc::now();
        for message in messages.iter().flatten() {
            match check_request_age(message.written_at, self.kept, now) {
                Ok(()) => arrived.push(message),
                Err(reason) => drop(unadjusted.insert(message.place, reason)),
            }
        }
        let mut rest = &arrived[..];
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(fitting(rest));
            let requests: Vec<_> = batch.iter().map(|arrived| &arrived.request).collect();
            let adjusted = self.store.adjust(&requests, now).await?;
            crash_point("adjust.committed");
            let reasons = batch.iter().zip(&adjusted);
            unadjusted.extend(
                reasons.filter_map(|(arrived, adjusted)| Some((arrived.place, refusal(adjusted)?))),
            );
            rest = later;
        }
        self.store.database().observe_pool();
        Ok(Done { handled: unadjusted, deferred: Vec::new() })
    }

    fn dead_letter_reason(
        &self,
        message: &Self::Decoded,
        unadjusted: &Unadjusted,
    ) -> Option<DeadLetterReason> {
        match message {
            Err(error) => Some(DeadLetterReason { class: error.class(), text: error.to_string() }),
            Ok(arrived) => unadjusted.get(&arrived.place).cloned(),
        }
    }

    /// Requests that the stock does not allow are no fault of stocklock.
    fn blame<'m>(&self, _: &'m Self::Decoded, reason: &DeadLetterReason) -> Blame<'m> {
        match reason.class {
            "undecodable" | "invalid" | "conflict" => Blame::Writer,
            _ => Blame::Partition,
        }
    }

    /// A request has no outcome to publish.
    async fn publish(&self, _: &Unadjusted) -> Result<(), StoreError> {
        Ok(())
    }

    fn fate(error: &StoreError) -> Fate {
        match error {
            StoreError::Refused(_) | StoreError::Unencodable(_) => Fate::Reject("refused"),
            StoreError::Corrupt(_) => Fate::Reject("damaged"),
            StoreError::Conflict(_)
            | StoreError::Duplicate(_)
            | StoreError::Unavailable(_)
            | StoreError::CommitUnknown(_)
            | StoreError::LocksLost
            | StoreError::Unsupported(_)
            | StoreError::Migration(_) => Fate::Retry("stock_store"),
        }
    }
}

/// Fails if the id of a request of this age may be forgotten: the request could be done twice.
///
/// The margin is a tenth, an hour at most. It covers the difference of the clocks.
pub(crate) fn check_request_age(
    written_at: Option<DateTime<Utc>>,
    kept: Duration,
    now: DateTime<Utc>,
) -> Result<(), DeadLetterReason> {
    let refused = |class, text: String| Err(DeadLetterReason { class, text });
    let Some(written_at) = written_at else {
        return refused("invalid", "the record has no timestamp".to_owned());
    };
    if written_at > now + MAX_AHEAD {
        return refused("invalid", format!("the record is of {written_at}, more than a day ahead"));
    }
    let kept = TimeDelta::from_std(kept).unwrap_or(TimeDelta::MAX);
    let age = kept - (kept / 10).min(TimeDelta::hours(1));
    if now.checked_sub_signed(age).is_some_and(|oldest| written_at < oldest) {
        let text = format!(
            "the record is of {written_at}, and retention.movements keeps no request ids as old \
             as that"
        );
        return refused("expired", text);
    }
    Ok(())
}

/// How many of the requests fit into a transaction, at least 1.
fn fitting(requests: &[&ArrivedRequest]) -> usize {
    let mut adjustments = 0;
    let fits = |arrived: &&&ArrivedRequest| {
        adjustments += arrived.request.adjustments().len();
        adjustments <= MAX_PER_TRANSACTION
    };
    requests.iter().take_while(fits).count().max(1)
}

/// Why a request is dead-lettered, or `None` if it is done.
pub(crate) fn refusal(adjusted: &Adjusted) -> Option<DeadLetterReason> {
    match adjusted {
        Adjusted::Done { .. } => None,
        Adjusted::OtherContent => {
            let text = "another request with this id was done before".to_owned();
            Some(DeadLetterReason { class: "invalid", text })
        }
        Adjusted::Refused(refusals) => {
            let is_unknown =
                |refusal: &AdjustmentRefusal| refusal.cause == RefusalCause::UnknownProduct;
            let class = if refusals.iter().any(is_unknown) { "invalid" } else { "conflict" };
            let shown = refusals.iter().take(MAX_SHOWN).map(|refusal| refusal.detail.as_str());
            let mut text = shown.collect::<Vec<_>>().join("; ");
            if refusals.len() > MAX_SHOWN {
                text = format!("{text}; and {} more", refusals.len() - MAX_SHOWN);
            }
            Some(DeadLetterReason { class, text })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_older_than_the_ids_of_requests_has_expired() {
        let now = DateTime::from_timestamp_millis(1_800_000_000_000).unwrap();
        let kept = Duration::from_secs(90 * 86_400);
        let class =
            |written_at| check_request_age(written_at, kept, now).map_err(|reason| reason.class);

        assert_eq!(class(Some(now)), Ok(()));
        assert_eq!(class(Some(now - TimeDelta::days(89))), Ok(()));
        assert_eq!(class(Some(now - TimeDelta::days(90))), Err("expired"));
        assert_eq!(class(Some(now + TimeDelta::hours(23))), Ok(()));
        assert_eq!(class(Some(now + TimeDelta::hours(25))), Err("invalid"));
        assert_eq!(class(None), Err("invalid"));
    }
}
