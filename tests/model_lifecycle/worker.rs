//! What the worker does with a message: the real function, `domain::fold::fold`.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Days, Utc};
use stocklock::domain::{
    EventKind, Line, Lines, OrderEvent, OrderId, ProductId, Reason, ReportedStatus,
    fold::{self, Recorded, fold},
};

use super::state::{Message, Outcome};

/// What a transaction of the worker does, and what the worker reports then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handled {
    pub(crate) outcome: Option<Outcome>,
    /// How often the order's units are deducted, and returned.
    pub(crate) deducted: u8,
    pub(crate) returned: u8,
    pub(crate) report: Message,
}

const OUTCOMES: [Option<Outcome>; 4] =
    [None, Some(Outcome::Completed), Some(Outcome::Failed), Some(Outcome::Released)];

/// What [`handle`] returns for all arguments.
pub(crate) struct Worker(Vec<Handled>);

impl Worker {
    pub(crate) fn new() -> Self {
        let events = [Message::Placed, Message::PlacedWithHold, Message::Release];
        let arguments = events.into_iter().flat_map(|event| OUTCOMES.map(|before| (event, before)));
        let handled = arguments.flat_map(|(event, before)| {
            [false, true].map(|has_stock| handle(event, before, has_stock))
        });
        Self(handled.collect())
    }

    pub(crate) fn handle(
        &self,
        event: Message,
        recorded: Option<Outcome>,
        has_stock: bool,
    ) -> Handled {
        let outcome = recorded.map_or(0, |outcome| outcome as usize + 1);
        self.0[(event as usize * OUTCOMES.len() + outcome) * 2 + usize::from(has_stock)]
    }
}

/// Decides an event of an order that asks for one unit, as `fold` does. `recorded` is the outcome
/// before.
fn handle(event: Message, recorded: Option<Outcome>, has_stock: bool) -> Handled {
    let product = ProductId::parse("sku-1").expect("a product id");
    let line = Line::new(product.clone(), 1).expect("a line");
    let event = order_event(event, Lines::new(vec![line]).expect("lines"));
    let demand = event.lines.demand();
    let recorded_before = recorded.map(|outcome| Recorded {
        outcome: match outcome {
            Outcome::Completed => fold::Outcome::Completed(demand.clone()),
            Outcome::Failed => fold::Outcome::Failed(Reason::InsufficientStock),
            Outcome::Released => fold::Outcome::Released(demand.clone()),
        },
        decided_at: DateTime::UNIX_EPOCH,
    });
    let recorded_before = recorded_before.map(|before| (event.order_id, before));
    let decidable = OrderId::first_of(DateTime::UNIX_EPOCH)..OrderId::first_of(day(2));
    let before = i64::from(has_stock);

    let decisions = fold(
        [&event],
        &decidable,
        &HashMap::from([(product.clone(), before)]),
        &recorded_before.into_iter().collect(),
        DateTime::UNIX_EPOCH,
    )
    .expect("the stock is read");

    assert_eq!(decisions.expired, BTreeSet::new());
    let after = decisions.available.get(&product).copied().unwrap_or(before);
    let outcome = match decisions.outcomes.get(&event.order_id) {
        Some(fold::Outcome::Completed(_)) => Some(Outcome::Completed),
        Some(fold::Outcome::Failed(_)) => Some(Outcome::Failed),
        Some(fold::Outcome::Released(_)) => Some(Outcome::Released),
        None if decisions.released.contains(&event.order_id) => Some(Outcome::Released),
        None => recorded,
    };
    Handled {
        outcome,
        deducted: u8::from(after < before),
        returned: u8::from(after > before),
        report: report(&decisions),
    }
}

fn order_event(message: Message, lines: Lines) -> OrderEvent {
    OrderEvent {
        order_id: OrderId::first_of(day(1)),
        kind: if message == Message::Release { EventKind::Release } else { EventKind::Placed },
        lines,
        accepted_at: day(1),
        hold_seconds: (message == Message::PlacedWithHold).then_some(60),
        reference: None,
    }
}

fn report(decisions: &fold::Decisions) -> Message {
    let [status] = decisions.statuses.as_slice() else { panic!("{decisions:?}") };
    match status.status {
        ReportedStatus::Completed => Message::Completed,
        ReportedStatus::Reserved => Message::Reserved,
        ReportedStatus::Failed(_) => Message::Refused,
        ReportedStatus::Released => Message::Released,
        ReportedStatus::Cancelled(_) | ReportedStatus::Confirmed => panic!("{decisions:?}"),
    }
}

fn day(number: u64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + Days::new(number)
}
