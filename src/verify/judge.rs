//! Whether what both stores have of an order agrees. Pure: it reads nothing.

use chrono::{DateTime, TimeDelta, Utc};

use super::{releases, walk::Found};
use crate::{
    domain::{OrderState, fold::Outcome},
    store::OrderContent,
};

/// The longest time for which a hold may be due while a compensator runs.
const MAX_DUE: TimeDelta = TimeDelta::minutes(1);

/// What an order in flight lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InFlight {
    Decision,
    /// A worker decided it, and the order store does not show that yet.
    Status,
    Release,
    /// Its release is owed for longer than workers need.
    OverdueRelease,
    /// Its hold is due for longer than a compensator needs.
    OverdueHold,
}

impl InFlight {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Decision => "not decided yet",
            Self::Status => "decided, and its status has not reached the order store yet",
            Self::Release | Self::OverdueRelease => "its stock is not released yet",
            Self::OverdueHold => "its hold is due and has not ended yet",
        }
    }
}

/// Whether an order and its outcome agree.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Holds,
    InFlight(InFlight),
    Violated { invariant: u8, detail: String },
}

impl Verdict {
    pub(super) fn violated(invariant: u8, detail: impl Into<String>) -> Self {
        Self::Violated { invariant, detail: detail.into() }
    }
}

/// The verdict on an order. A violation counts only if a second read confirms it: the order is read
/// before its outcome, and may change between the two.
pub(super) fn judge(found: &Found<'_>, now: DateTime<Utc>) -> Verdict {
    let order = match found.order {
        Some(Ok(order)) => order,
        Some(Err(corrupt)) => return Verdict::violated(3, corrupt),
        None => return judge_missing(found),
    };
    let of_hold = judge_hold(order.state, found.hold, now);
    let outcome = match found.outcome {
        Some(Ok(outcome)) => Some(outcome),
        // The snapshot of the stock store reports a corrupt outcome.
        Some(Err(_)) => return of_hold.unwrap_or(Verdict::Holds),
        None => None,
    };
    let of_outcome = match outcome {
        None if found.is_outcome_purged => judge_purged(order),
        outcome => judge_outcome(order, outcome),
    };
    let of_release = releases::judge(found, order.state, outcome, now);
    combine(of_outcome, of_hold.or(of_release))
}

/// The verdict on an order, from that on its outcome and that on its hold or its release, if the
/// latter decides anything.
fn combine(of_outcome: Verdict, of_rest: Option<Verdict>) -> Verdict {
    match (of_outcome, of_rest) {
        (Verdict::InFlight(InFlight::Release), None) => Verdict::Holds,
        (violated @ Verdict::Violated { .. }, _) => violated,
        (_, Some(of_rest)) => of_rest,
        (of_outcome, None) => of_outcome,
    }
}

/// The verdict on an order's hold. `None` if the hold decides nothing: there is none, or it is open
/// as it should be.
fn judge_hold(
    state: OrderState,
    expires_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Option<Verdict> {
    match (state, expires_at) {
        (OrderState::Reserved, None) => {
            Some(Verdict::violated(3, "is RESERVED, and has no open hold"))
        }
        (OrderState::Reserved, Some(expires_at)) => {
            (now - expires_at > MAX_DUE).then_some(Verdict::InFlight(InFlight::OverdueHold))
        }
        (_, None) => None,
        (
            OrderState::Pending
            | OrderState::Completed
            | OrderState::Failed
            | OrderState::Cancelled,
            Some(_),
        ) => Some(Verdict::violated(3, format!("is {state}, and has an open hold"))),
    }
}

/// Judges an order that the order store does not have.
fn judge_missing(found: &Found<'_>) -> Verdict {
    if found.owed.is_some() {
        return Verdict::violated(3, "owes a release, and the order store does not have it");
    }
    if found.hold.is_some() {
        return Verdict::violated(3, "has an open hold, and the order store does not have it");
    }
    match found.outcome {
        _ if found.is_order_purged => Verdict::Holds,
        Some(_) => Verdict::violated(3, "was decided, and the order store does not have it"),
        None => Verdict::violated(3, "has vanished from the order store"),
    }
}

fn judge_outcome(order: &OrderContent, outcome: Option<&Outcome>) -> Verdict {
    match (order.state, outcome) {
        (_, Some(Outcome::Completed(held))) if *held != order.lines.demand() => {
            Verdict::violated(5, format!("asks for {:?}, holds {held:?}", order.lines.demand()))
        }
        // A release that comes before the order releases nothing.
        (_, Some(Outcome::Released(released)))
            if released.iter().next().is_some() && *released != order.lines.demand() =>
        {
            let demand = order.lines.demand();
            Verdict::violated(5, format!("asks for {demand:?}, released {released:?}"))
        }
        (OrderState::Pending, None) => Verdict::InFlight(InFlight::Decision),
        (OrderState::Pending, Some(_)) => Verdict::InFlight(InFlight::Status),
        (OrderState::Completed | OrderState::Reserved, Some(Outcome::Completed(_)))
        | (
            OrderState::Failed | OrderState::Cancelled,
            Some(Outcome::Failed(_) | Outcome::Released(_)),
        ) => Verdict::Holds,
        (state @ (OrderState::Completed | OrderState::Reserved), Some(Outcome::Released(_))) => {
            Verdict::violated(3, format!("is {state}, and its stock was released"))
        }
        (state @ (OrderState::Completed | OrderState::Reserved), Some(Outcome::Failed(reason))) => {
            let reason = reason.as_str();
            Verdict::violated(3, format!("is {state}, and the worker refused it: {reason}"))
        }
        (state @ (OrderState::Completed | OrderState::Reserved), None) => {
            Verdict::violated(3, format!("is {state}, and no worker decided it"))
        }
        (OrderState::Failed | OrderState::Cancelled, Some(Outcome::Completed(_)) | None) => {
            Verdict::InFlight(InFlight::Release)
        }
    }
}

/// Judges an order without an outcome, whose outcome may be purged: no worker decides it any more.
fn judge_purged(order: &OrderContent) -> Verdict {
    match order.state {
        OrderState::Pending => {
            Verdict::violated(3, "is PENDING, and too old to be decided any more")
        }
        OrderState::Reserved
        | OrderState::Completed
        | OrderState::Failed
        | OrderState::Cancelled => Verdict::Holds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Demand, Reason};

    fn order(state: OrderState) -> OrderContent {
        OrderContent { state, lines: serde_json::from_str(r#"[["a",1],["a",1]]"#).unwrap() }
    }

    fn demand(json: &str) -> Demand {
        serde_json::from_str(json).unwrap()
    }

    fn is_violation(verdict: &Verdict, of: u8) -> bool {
        matches!(verdict, Verdict::Violated { invariant, .. } if *invariant == of)
    }

    #[test]
    fn a_completed_order_holds_exactly_its_demand() {
        let completed = order(OrderState::Completed);
        let full = Outcome::Completed(demand(r#"[["a",2]]"#));
        let part = Outcome::Completed(demand(r#"[["a",1]]"#));
        let refused = Outcome::Failed(Reason::InsufficientStock);

        assert_eq!(judge_outcome(&completed, Some(&full)), Verdict::Holds);
        assert!(is_violation(&judge_outcome(&completed, Some(&part)), 5));
        assert!(is_violation(&judge_outcome(&completed, None), 3));
        assert!(is_violation(&judge_outcome(&completed, Some(&refused)), 3));
    }

    #[test]
    fn a_failed_order_holds_nothing_in_the_end() {
        let failed = order(OrderState::Failed);
        let held = Outcome::Completed(demand(r#"[["a",2]]"#));
        let released = Outcome::Released(Demand::default());

        assert!(matches!(judge_outcome(&failed, Some(&held)), Verdict::InFlight(_)));
        assert!(matches!(judge_outcome(&failed, None), Verdict::InFlight(_)));
        assert_eq!(judge_outcome(&failed, Some(&released)), Verdict::Holds);
    }

    #[test]
    fn a_release_returns_all_units_of_the_order_or_none() {
        let failed = order(OrderState::Failed);
        let all = Outcome::Released(demand(r#"[["a",2]]"#));
        let part = Outcome::Released(demand(r#"[["a",1]]"#));

        assert_eq!(judge_outcome(&failed, Some(&all)), Verdict::Holds);
        assert!(is_violation(&judge_outcome(&failed, Some(&part)), 5));
    }

    #[test]
    fn an_order_whose_outcome_was_purged_is_final() {
        assert_eq!(judge_purged(&order(OrderState::Completed)), Verdict::Holds);
        assert_eq!(judge_purged(&order(OrderState::Failed)), Verdict::Holds);
        assert!(is_violation(&judge_purged(&order(OrderState::Pending)), 3));
    }
}
