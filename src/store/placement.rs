//! Orders to place, and what became of them. Pure: no statement is run here.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    idempotency::{BoundKeys, IdempotencyKey, KeyedRequest},
    orders::OrderSummary,
    rows::json,
};
use crate::domain::{EventKind, Lines, OrderEvent, OrderId, OrderState, TraceContext};

/// An id that was made longer than this before or after its order was placed has a row of
/// `unscanned_orders`, unless the caller says otherwise.
pub(crate) const MAX_ID_SKEW: Duration = Duration::from_secs(30);

/// An order that a client placed.
#[derive(Debug, Clone)]
pub struct NewOrder {
    pub order_id: OrderId,
    pub reference: Option<String>,
    pub customer_id: Option<String>,
    /// How long the order holds its stock, unless it is confirmed.
    pub hold_seconds: Option<u32>,
    pub lines: Lines,
    /// The store keeps milliseconds.
    pub accepted_at: DateTime<Utc>,
}

/// An order to place, and by what a repetition of its request is recognized.
#[derive(Debug, Clone)]
pub struct Placement {
    pub order: NewOrder,
    /// `None`: each request makes an order of its own.
    pub identity: Option<Identity>,
    /// The trace of the request, if it is sampled.
    pub trace: Option<Box<TraceContext>>,
}

/// By what a repetition of a request is recognized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The id of the order, which the caller made.
    OrderId,
    Key(Box<KeyedRequest>),
}

/// How orders are placed.
#[derive(Debug, Clone, Copy)]
pub struct PlaceTerms {
    /// How long the caller has to publish the events.
    pub lease: Duration,
    /// The scan of pending orders finds an order whose id was made this long before or after it was
    /// placed.
    pub max_id_skew: Duration,
    /// An earlier attempt at these placements may be committed. Its orders count as new.
    pub is_repeated: bool,
}

/// What became of a placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// Its order is written, by this attempt or by an earlier one.
    New,
    /// An earlier equal request made this order. This is its present state.
    Replayed(Box<OrderSummary>),
    /// Its key or its id stands for another request. Nothing was written.
    OtherRequest,
}

/// An order of the store, whose id a caller sends again, and the content of its request.
#[derive(Debug)]
pub(super) struct PresentOrder {
    pub(super) summary: OrderSummary,
    pub(super) reference: Option<String>,
    pub(super) customer_id: Option<String>,
    pub(super) hold_seconds: Option<u32>,
    /// As JSON. It may be corrupt, and then equals no request.
    pub(super) lines: String,
    pub(super) accepted_at: DateTime<Utc>,
}

/// What the store holds of the placements of a group.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) keys: BoundKeys,
    pub(super) orders: HashMap<OrderId, PresentOrder>,
}

impl NewOrder {
    /// The event that places the order.
    pub fn into_event(self) -> OrderEvent {
        OrderEvent {
            order_id: self.order_id,
            kind: EventKind::Placed,
            lines: self.lines,
            accepted_at: self.accepted_at,
            hold_seconds: self.hold_seconds,
            reference: self.reference,
        }
    }

    /// Whether both orders come from equal requests.
    fn has_content_of(&self, other: &Self) -> bool {
        self.reference == other.reference
            && self.customer_id == other.customer_id
            && self.hold_seconds == other.hold_seconds
            && self.lines == other.lines
    }

    /// Whether the scan of pending orders would pass over the order.
    pub(super) fn is_unscanned(&self, max_id_skew: Duration) -> bool {
        let skew = (self.accepted_at - self.order_id.made_at()).abs();
        TimeDelta::from_std(max_id_skew).is_ok_and(|max| skew > max)
    }
}

/// For each placement, the number of the first one with the same identity: its own, if no earlier
/// one has it.
pub(crate) fn leaders<'p>(group: &[&'p Placement]) -> Vec<usize> {
    let mut by_key: HashMap<&IdempotencyKey, usize> = HashMap::new();
    let mut by_id: HashMap<OrderId, usize> = HashMap::new();
    let leader = |(at, placement): (usize, &'p Placement)| match &placement.identity {
        None => at,
        Some(Identity::OrderId) => *by_id.entry(placement.order.order_id).or_insert(at),
        Some(Identity::Key(request)) => *by_key.entry(&request.key).or_insert(at),
    };
    group.iter().copied().enumerate().map(leader).collect()
}

impl PresentOrder {
    /// Whether the order comes from an equal request.
    fn has_content_of(&self, order: &NewOrder) -> bool {
        self.reference == order.reference
            && self.customer_id == order.customer_id
            && self.hold_seconds == order.hold_seconds
            && json(&order.lines).is_ok_and(|lines| lines == self.lines)
    }
}

impl Found {
    pub(super) fn has(&self, placement: &Placement) -> bool {
        let is_bound = match &placement.identity {
            Some(Identity::Key(request)) => self.keys.contains_key(&request.key),
            Some(Identity::OrderId) | None => false,
        };
        is_bound || self.orders.contains_key(&placement.order.order_id)
    }

    /// What became of a placement. `leader` is an earlier one of its group with the same identity.
    pub(super) fn outcome(
        &self,
        placement: &Placement,
        leader: Option<&Placement>,
        terms: PlaceTerms,
    ) -> Placed {
        match &placement.identity {
            None => Placed::New,
            Some(Identity::Key(request)) => self.outcome_of_key(placement, request, leader),
            Some(Identity::OrderId) => self.outcome_of_id(&placement.order, leader, terms),
        }
    }

    fn outcome_of_key(
        &self,
        placement: &Placement,
        request: &KeyedRequest,
        leader: Option<&Placement>,
    ) -> Placed {
        match (self.keys.get(&request.key), leader) {
            // An earlier attempt at this placement has bound the key.
            (Some(bound), _) if bound.order.order_id == placement.order.order_id => Placed::New,
            (Some(bound), _) if bound.sha256 == request.sha256 => {
                Placed::Replayed(Box::new(bound.order.clone()))
            }
            (Some(_), _) => Placed::OtherRequest,
            (None, None) => Placed::New,
            (None, Some(leader)) => match &leader.identity {
                Some(Identity::Key(first)) if first.sha256 == request.sha256 => {
                    Placed::replayed_in_group(leader)
                }
                Some(Identity::Key(_) | Identity::OrderId) | None => Placed::OtherRequest,
            },
        }
    }

    fn outcome_of_id(
        &self,
        order: &NewOrder,
        leader: Option<&Placement>,
        terms: PlaceTerms,
    ) -> Placed {
        match (self.orders.get(&order.order_id), leader) {
            (Some(present), _) if !present.has_content_of(order) => Placed::OtherRequest,
            // An earlier attempt at this placement has written the order.
            (Some(present), None)
                if terms.is_repeated && present.accepted_at == order.accepted_at =>
            {
                Placed::New
            }
            (Some(present), _) => Placed::Replayed(Box::new(present.summary.clone())),
            (None, None) => Placed::New,
            (None, Some(leader)) if leader.order.has_content_of(order) => {
                Placed::replayed_in_group(leader)
            }
            (None, Some(_)) => Placed::OtherRequest,
        }
    }
}

impl Placed {
    /// The order of an earlier placement of the same group, which is not decided yet.
    fn replayed_in_group(leader: &Placement) -> Self {
        Self::Replayed(Box::new(OrderSummary {
            order_id: leader.order.order_id,
            state: OrderState::Pending,
            reason: None,
            expires_at: None,
        }))
    }
}
