//! Changes of orders that are in the order store: what a batch of events does to locked orders, as
//! if one by one.

mod draft;

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use prometheus::IntCounterVec;
use sqlx::MySqlConnection;

use self::draft::Draft;
use super::{
    StoreError, announcements, holds,
    orders::OrderSummary,
    releases,
    rows::{expect_rows, json, order_ids},
    statuses::LockedOrder,
};
use crate::{
    domain::{Cause, Effect, Horizon, OrderEvent, OrderId, OrderState, OrderStatus},
    telemetry::order_log,
};

/// A change of an order that a client requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Cancel,
    Confirm,
    /// The hold ends `hold_seconds` from now.
    Extend {
        hold_seconds: u32,
    },
}

/// An event of an order in the order store.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event<'a> {
    Reported(&'a OrderStatus),
    Requested(OrderId, Change),
    HoldDue(OrderId),
}

/// What a batch of events did.
#[derive(Debug, Default)]
pub struct Changed {
    pub(crate) moved: Vec<MovedOrders>,
    /// The events of the releases that are owed now, leased to the caller.
    pub(crate) releases: Vec<OrderEvent>,
    /// The announcements of moves, leased to the caller.
    pub(crate) announcements: Vec<OrderStatus>,
    /// How many holds were closed, and how.
    pub(crate) closed_holds: Vec<ClosedHolds>,
    /// The effect of each event, and its order after it.
    pub(crate) results: Vec<ChangeResult>,
}

impl Changed {
    /// The orders on which an event of the batch had this effect.
    pub(crate) fn orders_with(&self, effect: Effect) -> HashSet<OrderId> {
        let results = self.results.iter().filter(|result| result.effect == effect);
        results.map(|result| result.order_id).collect()
    }

    /// Writes a log line for each event, if these lines are on.
    pub(crate) fn log(&self) {
        if order_log::is_on() {
            for ChangeResult { order_id, effect, order } in &self.results {
                let state = order.as_ref().map(|order| order.state);
                order_log::applied(*order_id, order_log::word(*effect), state);
            }
        }
    }

    /// Adds the closed holds to a counter with the label `how`.
    pub(crate) fn count_closed_holds(&self, counter: &IntCounterVec) {
        for closed in &self.closed_holds {
            counter.with_label_values(&[closed.how.as_str()]).inc_by(closed.count as u64);
        }
    }
}

/// How many orders a batch of events moved to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MovedOrders {
    pub(crate) to: OrderState,
    pub(crate) count: usize,
}

/// How many holds a batch of events closed in a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClosedHolds {
    pub(crate) how: HoldEnd,
    pub(crate) count: usize,
}

/// What became of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HoldEnd {
    Confirmed,
    Cancelled,
    Failed,
    Expired,
}

impl HoldEnd {
    pub(crate) const ALL: [Self; 4] =
        [Self::Confirmed, Self::Cancelled, Self::Failed, Self::Expired];

    /// The value of the label `how`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }
}

/// The effect of an event, and its order after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChangeResult {
    pub(crate) order_id: OrderId,
    pub(crate) effect: Effect,
    /// `None` if the store does not have the order. Its hold is shown if the batch has opened or
    /// extended it.
    pub(crate) order: Option<OrderSummary>,
}

const CHANGE_ORDERS: &str = "
    UPDATE JSON_TABLE(?, '$[*]' COLUMNS (
        order_id  VARCHAR(32) CHARACTER SET ascii PATH '$[0]',
        expected  VARCHAR(16) CHARACTER SET ascii PATH '$[1]',
        next      VARCHAR(16) CHARACTER SET ascii PATH '$[2]',
        reason    VARCHAR(512) CHARACTER SET utf8mb4 PATH '$[3]',
        confirmed INT PATH '$[4]')) AS changed
    STRAIGHT_JOIN orders AS o FORCE INDEX (PRIMARY)
        ON o.order_id = UNHEX(changed.order_id) AND o.status = changed.expected
    SET o.status = changed.next, o.reason = changed.reason,
        o.is_hold_confirmed = changed.confirmed, o.updated_at = ?";

impl Event<'_> {
    fn order_id(&self) -> OrderId {
        match *self {
            Self::Reported(status) => status.order_id,
            Self::Requested(id, _) | Self::HoldDue(id) => id,
        }
    }
}

/// When and where a batch of events changes orders.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    pub(super) now: DateTime<Utc>,
    pub(super) horizon: Horizon,
    /// The source of the announcements.
    pub(super) announcer: &'static str,
    /// How long the caller has to publish the releases and the announcements.
    pub(super) lease: Duration,
}

/// What a batch of events does to locked orders.
pub(super) struct Plan {
    context: Context,
    orders: BTreeMap<OrderId, Draft>,
    results: Vec<ChangeResult>,
    /// Releases that are done, of orders that the store does not have.
    ended: Vec<OrderId>,
}

impl Plan {
    /// Applies the events in their order. `locked` are the orders among theirs that exist.
    pub(super) fn new<'a>(
        events: impl IntoIterator<Item = Event<'a>>,
        locked: Vec<LockedOrder>,
        context: Context,
    ) -> Self {
        let orders = locked.into_iter().map(|order| (order.order_id, Draft::new(order)));
        let orders = orders.collect();
        let mut plan = Self { context, orders, results: Vec::new(), ended: Vec::new() };
        for event in events {
            plan.apply(event);
        }
        plan
    }

    fn apply(&mut self, event: Event<'_>) {
        let (order_id, context) = (event.order_id(), self.context);
        let draft = self.orders.get_mut(&order_id);
        let facts = draft.as_ref().map(|draft| draft.facts(&context));
        let effect = context.cause(event, draft.as_deref()).effect_on(facts);
        if let Some(draft) = draft {
            draft.change(effect, event, &context);
        } else if effect == Effect::EndRelease {
            self.ended.push(order_id);
        }
        let order = self.orders.get(&order_id).map(Draft::after);
        self.results.push(ChangeResult { order_id, effect, order });
    }

    /// Writes the changes.
    ///
    /// Fails with [`StoreError::Conflict`] unless each order is in the state that was read.
    pub(super) async fn write(self, conn: &mut MySqlConnection) -> Result<Changed, StoreError> {
        let Context { now, lease, .. } = self.context;
        self.write_orders(conn).await?;
        let drafts = || self.orders.values();
        let closed: Vec<_> = drafts().filter_map(Draft::closed_hold).collect();
        if !closed.is_empty() {
            holds::close(conn, closed).await?;
        }
        let opened: Vec<_> = drafts().filter_map(Draft::open_hold).collect();
        if !opened.is_empty() {
            holds::open(conn, &opened).await?;
        }
        let done = drafts().filter(|draft| draft.is_owed == Some(false));
        let done = done.map(|draft| draft.before.order_id).chain(self.ended.iter().copied());
        let done: Vec<_> = done.collect();
        if !done.is_empty() {
            releases::end(conn, &order_ids(done)?).await?;
        }
        let owed = drafts().filter(|draft| draft.is_owed == Some(true));
        let owed: Vec<_> = owed.map(|draft| draft.before.order_id).collect();
        let mut events = Vec::new();
        if !owed.is_empty() {
            releases::owe(conn, owed.iter().copied(), now, now + lease).await?;
            events = releases::read_events(conn, &order_ids(owed)?).await?;
        }
        let announced: Vec<_> =
            drafts().flat_map(|draft| draft.announcements.iter().cloned()).collect();
        if !announced.is_empty() {
            announcements::insert(conn, &announced, now, lease).await?;
        }
        Ok(Changed {
            moved: self.count_moves(),
            closed_holds: self.count_closed_holds(),
            releases: events,
            announcements: announced,
            results: self.results,
        })
    }

    async fn write_orders(&self, conn: &mut MySqlConnection) -> Result<(), StoreError> {
        let changed: Vec<_> = self.orders.values().filter_map(Draft::row).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let query = sqlx::query(CHANGE_ORDERS).bind(json(&changed)?).bind(self.context.now);
        let written = query.execute(conn).await?;
        expect_rows("orders changed", changed.len(), written.rows_affected())
    }

    fn count_moves(&self) -> Vec<MovedOrders> {
        let moved = || self.orders.values().filter(|draft| draft.state != draft.before.state);
        let count = |to| moved().filter(|draft| draft.state == to).count();
        let counts = OrderState::ALL.into_iter().map(|to| MovedOrders { to, count: count(to) });
        counts.filter(|moved| moved.count > 0).collect()
    }

    fn count_closed_holds(&self) -> Vec<ClosedHolds> {
        let count = |how| self.orders.values().filter(|draft| draft.closed == Some(how)).count();
        let counts = HoldEnd::ALL.into_iter().map(|how| ClosedHolds { how, count: count(how) });
        counts.filter(|closed| closed.count > 0).collect()
    }
}

impl Context {
    fn cause<'e>(self, event: Event<'e>, draft: Option<&Draft>) -> Cause<'e> {
        match event {
            Event::Reported(status) => Cause::Reported(status),
            Event::HoldDue(_) => Cause::HoldDue,
            Event::Requested(_, Change::Cancel) => Cause::Cancel,
            Event::Requested(_, Change::Confirm) => Cause::Confirm,
            Event::Requested(id, Change::Extend { hold_seconds }) => {
                let expires_at = draft.map(|draft| draft.extended_by(hold_seconds));
                let deadline = self.horizon.release_deadline(id);
                Cause::Extend { is_in_time: expires_at.is_some_and(|end| end <= deadline) }
            }
        }
    }
}

fn seconds(seconds: u32) -> TimeDelta {
    TimeDelta::seconds(seconds.into())
}
