use chrono::{DateTime, Utc};

use super::{Change, Context, Event, HoldEnd, seconds};
use crate::{
    domain::{Effect, OrderFacts, OrderId, OrderState, OrderStatus, Reason, ReportedStatus},
    store::{orders::OrderSummary, rows::hex, statuses::LockedOrder},
};

/// An order, and what the events so far do to it.
pub(super) struct Draft {
    pub(super) before: LockedOrder,
    pub(super) state: OrderState,
    reason: Option<Reason>,
    is_hold_confirmed: bool,
    /// When the hold ends that the batch opened or extended.
    expires_at: Option<DateTime<Utc>>,
    pub(super) closed: Option<HoldEnd>,
    /// Whether the release is owed, or done.
    pub(super) is_owed: Option<bool>,
    pub(super) announcements: Vec<OrderStatus>,
}

impl Draft {
    pub(super) fn new(order: LockedOrder) -> Self {
        Self {
            state: order.state,
            reason: order.reason.as_deref().map(Reason::parse),
            is_hold_confirmed: order.is_hold_confirmed,
            before: order,
            expires_at: None,
            closed: None,
            is_owed: None,
            announcements: Vec::new(),
        }
    }

    pub(super) fn facts(&self, context: &Context) -> OrderFacts {
        OrderFacts {
            state: self.state,
            wants_hold: self.before.hold_seconds.is_some() && !self.is_hold_confirmed,
            is_releasable: self.before.order_id >= context.horizon.releasable_from(context.now),
        }
    }

    pub(super) fn change(&mut self, effect: Effect, event: Event<'_>, context: &Context) {
        match effect {
            Effect::Move { to, owes_release, is_announced } => {
                let reason = match event {
                    Event::Reported(status) => status.status.reason().cloned(),
                    Event::Requested(..) | Event::HoldDue(_) => None,
                };
                self.move_to(to, reason.filter(|_| to.is_final()));
                if let (OrderState::Reserved, Event::Reported(status)) = (to, event) {
                    self.expires_at = Some(self.hold_end(status, context));
                }
                if owes_release {
                    self.is_owed = Some(true);
                }
                if is_announced {
                    self.announce(context);
                }
            }
            Effect::Expire => {
                self.move_to(OrderState::Cancelled, Some(Reason::Expired));
                self.is_owed = Some(true);
                self.announce(context);
            }
            Effect::ConfirmHold => self.is_hold_confirmed = true,
            Effect::ExtendHold => {
                if let Event::Requested(_, Change::Extend { hold_seconds }) = event {
                    self.expires_at = Some(self.extended_by(hold_seconds));
                }
            }
            Effect::OweRelease => self.is_owed = Some(true),
            Effect::EndRelease => self.is_owed = Some(false),
            Effect::Nothing | Effect::TooOld | Effect::Refused | Effect::UnknownOrder => {}
        }
    }

    fn move_to(&mut self, to: OrderState, reason: Option<Reason>) {
        if self.state == OrderState::Reserved {
            self.closed = Some(match (to, &reason) {
                (OrderState::Failed, _) => HoldEnd::Failed,
                (OrderState::Cancelled, Some(Reason::Expired)) => HoldEnd::Expired,
                (OrderState::Cancelled, _) => HoldEnd::Cancelled,
                (OrderState::Completed | OrderState::Reserved | OrderState::Pending, _) => {
                    HoldEnd::Confirmed
                }
            });
            self.expires_at = None;
        }
        (self.state, self.reason) = (to, reason);
    }

    /// When an extension of the hold ends: counted from now, by the clock of the server.
    pub(super) fn extended_by(&self, hold_seconds: u32) -> DateTime<Utc> {
        self.before.read_at + seconds(hold_seconds)
    }

    /// When the hold ends that a worker's report begins: counted from the decision, but never so
    /// late that its release would be too late.
    ///
    /// The worker's clock may be wrong. So a decision is assumed to lie between the placing of the
    /// order and now.
    fn hold_end(&self, decision: &OrderStatus, context: &Context) -> DateTime<Utc> {
        let length = seconds(self.before.hold_seconds.unwrap_or_default());
        let LockedOrder { created_at, read_at, .. } = self.before;
        let begun_at = decision.occurred_at.max(created_at).min(read_at);
        let deadline = context.horizon.release_deadline(self.before.order_id);
        begun_at.checked_add_signed(length).unwrap_or(deadline).min(deadline)
    }

    fn announce(&mut self, context: &Context) {
        let status = match self.state {
            OrderState::Completed => ReportedStatus::Completed,
            OrderState::Cancelled => ReportedStatus::Cancelled(self.reason.clone()),
            // The message that causes such a move names it.
            OrderState::Pending | OrderState::Reserved | OrderState::Failed => return,
        };
        self.announcements.push(OrderStatus {
            order_id: self.before.order_id,
            status,
            source: context.announcer.to_owned(),
            occurred_at: context.now,
            reference: self.before.reference.clone(),
        });
    }

    /// The row to write, if the batch changes it.
    pub(super) fn row(&self) -> Option<(String, &'static str, &'static str, Option<&str>, u8)> {
        let LockedOrder { order_id, state, is_hold_confirmed, .. } = self.before;
        let is_changed = self.state != state || self.is_hold_confirmed != is_hold_confirmed;
        is_changed.then(|| {
            let (reason, confirmed) = (self.reason.as_ref(), u8::from(self.is_hold_confirmed));
            let (before, after) = (state.as_str(), self.state.as_str());
            (hex(order_id), before, after, reason.map(Reason::as_str), confirmed)
        })
    }

    pub(super) fn open_hold(&self) -> Option<(OrderId, DateTime<Utc>)> {
        Some((self.before.order_id, self.expires_at?))
    }

    /// A hold that the batch itself opened has no row.
    pub(super) fn closed_hold(&self) -> Option<OrderId> {
        let had_hold = self.before.state == OrderState::Reserved;
        (self.closed.is_some() && had_hold).then_some(self.before.order_id)
    }

    pub(super) fn after(&self) -> OrderSummary {
        OrderSummary {
            order_id: self.before.order_id,
            state: self.state,
            reason: self.reason.as_ref().map(|reason| reason.as_str().to_owned()),
            expires_at: self.expires_at,
        }
    }
}
