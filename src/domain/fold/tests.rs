use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use proptest::prelude::*;

use super::*;
use crate::domain::{Line, Lines};

const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

/// The stock store: what is available and recorded after each batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ledger {
    available: HashMap<ProductId, i64>,
    recorded: HashMap<OrderId, Recorded>,
}

impl Ledger {
    fn with_stock(stock: &[(&str, i64)]) -> Self {
        let available = stock.iter().map(|(id, n)| (product(id), *n)).collect();
        Self { available, recorded: HashMap::new() }
    }

    fn run(&mut self, events: &[OrderEvent]) -> Vec<(OrderId, ReportedStatus)> {
        self.decide(events).into_iter().map(|report| (report.order_id, report.status)).collect()
    }

    fn decide(&mut self, events: &[OrderEvent]) -> Vec<OrderStatus> {
        let decisions = fold(events, &all_orders(), &self.available, &self.recorded, NOW).unwrap();
        self.available.extend(decisions.available);
        self.record(decisions.outcomes);
        for id in decisions.released {
            let Some(Recorded { outcome: Outcome::Completed(held), .. }) =
                self.recorded.remove(&id)
            else {
                panic!("{id} held nothing")
            };
            self.record([(id, Outcome::Released(held))]);
        }
        decisions.statuses
    }

    fn record(&mut self, outcomes: impl IntoIterator<Item = (OrderId, Outcome)>) {
        let recorded = |outcome| Recorded { outcome, decided_at: NOW };
        self.recorded.extend(outcomes.into_iter().map(|(id, outcome)| (id, recorded(outcome))));
    }

    fn held(&self, id: &ProductId) -> i64 {
        let demands = self.recorded.values().filter_map(|recorded| match &recorded.outcome {
            Outcome::Completed(demand) => Some(demand),
            Outcome::Failed(_) | Outcome::Released(_) => None,
        });
        demands.flat_map(Demand::iter).filter(|(product, _)| *product == id).map(|(_, n)| n).sum()
    }
}

/// The ids that [`order_id`] makes.
fn all_orders() -> Range<OrderId> {
    OrderId::first_of(DateTime::UNIX_EPOCH)..OrderId::first_of(DateTime::<Utc>::MAX_UTC)
}

fn order_id(order: u8) -> OrderId {
    OrderId::new(DateTime::UNIX_EPOCH, &[order; 10])
}

fn product(id: &str) -> ProductId {
    ProductId::parse(id).unwrap()
}

fn event(order: u8, kind: EventKind, lines: &[(&str, i64)]) -> OrderEvent {
    let lines = lines.iter().map(|(id, n)| Line::new(product(id), *n).unwrap()).collect();
    OrderEvent {
        order_id: order_id(order),
        kind,
        lines: Lines::new(lines).unwrap(),
        accepted_at: DateTime::UNIX_EPOCH,
        hold_seconds: None,
        reference: None,
    }
}

fn placed(order: u8, lines: &[(&str, i64)]) -> OrderEvent {
    event(order, EventKind::Placed, lines)
}

fn release(order: u8, lines: &[(&str, i64)]) -> OrderEvent {
    event(order, EventKind::Release, lines)
}

#[test]
fn an_order_takes_all_its_lines_or_none() {
    let mut ledger = Ledger::with_stock(&[("a", 5), ("b", 1)]);

    let statuses = ledger.run(&[placed(1, &[("a", 2), ("b", 2)]), placed(2, &[("a", 5)])]);

    assert_eq!(statuses[0].1, ReportedStatus::Failed(Reason::InsufficientStock));
    assert_eq!(statuses[1].1, ReportedStatus::Completed);
    assert_eq!(ledger.available, Ledger::with_stock(&[("a", 0), ("b", 1)]).available);
}

#[test]
fn a_repeated_product_is_one_demand() {
    let mut ledger = Ledger::with_stock(&[("a", 3)]);

    let statuses = ledger.run(&[placed(1, &[("a", 2), ("a", 2)])]);

    assert_eq!(statuses[0].1, ReportedStatus::Failed(Reason::InsufficientStock));
}

#[test]
fn an_unknown_product_fails_the_order_even_if_another_is_short() {
    let mut ledger = Ledger::with_stock(&[("a", 0)]);

    let statuses = ledger.run(&[placed(1, &[("a", 1), ("zz", 1)])]);

    assert_eq!(statuses[0].1, ReportedStatus::Failed(Reason::UnknownProduct));
}

#[test]
fn a_refusal_rests_on_the_product_that_was_short() {
    let stock = Ledger::with_stock(&[("a", 0)]).available;

    let decisions = fold(&[placed(1, &[("a", 1)])], &all_orders(), &stock, &HashMap::new(), NOW);

    assert_eq!(decisions.unwrap().available, BTreeMap::from([(product("a"), 0)]));
}

#[test]
fn a_repeated_event_only_repeats_the_status() {
    let mut ledger = Ledger::with_stock(&[("a", 3)]);
    let order = placed(1, &[("a", 2)]);

    let in_batch = ledger.run(&[order.clone(), order.clone()]);
    let after_batch = ledger.clone();
    let later = ledger.run(&[order]);

    assert_eq!((in_batch.len(), &in_batch[0], &in_batch[1]), (2, &later[0], &later[0]));
    assert_eq!(ledger, after_batch);
}

#[test]
fn a_release_returns_the_units_of_the_ledger_once() {
    let mut ledger = Ledger::with_stock(&[("a", 3)]);
    ledger.run(&[placed(1, &[("a", 2)])]);

    ledger.run(&[release(1, &[("a", 2)]), release(1, &[("a", 2)])]);
    ledger.run(&[release(1, &[("a", 2)])]);

    assert_eq!(ledger.available[&product("a")], 3);
}

#[test]
fn after_its_release_an_order_deducts_nothing() {
    let mut ledger = Ledger::with_stock(&[("a", 3)]);

    let of_release = ledger.run(&[release(1, &[("a", 2)])]);
    let of_order = ledger.run(&[placed(1, &[("a", 2)])]);

    let released = [(order_id(1), ReportedStatus::Released)];
    assert_eq!(of_release, released);
    assert_eq!(of_order, released, "the order's own event repeats its outcome");
    assert_eq!(ledger.available[&product("a")], 3);
}

#[test]
fn every_release_is_reported_whatever_the_outcome_of_its_order() {
    let mut ledger = Ledger::with_stock(&[("a", 3)]);
    ledger.run(&[placed(1, &[("a", 2)]), placed(2, &[("a", 2)])]);
    // Completed, refused, never seen.
    let releases = [1, 2, 3].map(|order| release(order, &[("a", 2)]));

    let (first, second) = (ledger.run(&releases), ledger.run(&releases));

    let reported = [1, 2, 3].map(|order| (order_id(order), ReportedStatus::Released));
    assert_eq!((&first[..], &second[..]), (&reported[..], &reported[..]));
    assert_eq!(ledger.available[&product("a")], 3);
}

#[test]
fn a_release_of_products_that_were_not_read_asks_for_them() {
    let held = serde_json::from_str(r#"[["b",1]]"#).unwrap();
    let event = release(1, &[("a", 1)]);
    let recorded = HashMap::from([(
        event.order_id,
        Recorded { outcome: Outcome::Completed(held), decided_at: NOW },
    )]);
    let stock = Ledger::with_stock(&[("a", 1)]).available;

    let folded = fold(&[event], &all_orders(), &stock, &recorded, NOW);

    assert_eq!(folded, Err(StockNotRead(BTreeSet::from([product("b")]))));
}

#[test]
fn orders_that_are_not_decidable_are_named_and_not_decided() {
    let stock = Ledger::with_stock(&[("a", 9)]).available;
    let events = [
        placed(1, &[("a", 1)]),
        placed(2, &[("a", 1)]),
        release(1, &[("a", 1)]),
        placed(3, &[("a", 1)]),
    ];

    let decisions =
        fold(&events, &(order_id(2)..order_id(3)), &stock, &HashMap::new(), NOW).unwrap();

    assert_eq!(decisions.expired, BTreeSet::from([order_id(1)]));
    assert_eq!(decisions.from_future, BTreeSet::from([order_id(3)]));
    assert_eq!(
        decisions.statuses.iter().map(|report| report.order_id).collect::<Vec<_>>(),
        [order_id(2)]
    );
    assert_eq!((decisions.outcomes.len(), &decisions.available[&product("a")]), (1, &8));
}

#[test]
fn an_order_with_a_hold_is_reserved_and_keeps_its_reference() {
    let mut ledger = Ledger::with_stock(&[("a", 3)]);
    let order = OrderEvent {
        hold_seconds: Some(60),
        reference: Some("r-1".into()),
        ..placed(1, &[("a", 2)])
    };
    let confirmed = OrderEvent { hold_seconds: None, ..order.clone() };

    let reports = ledger.decide(&[order.clone(), confirmed, release(1, &[("a", 2)]), order]);

    let statuses: Vec<_> = reports.iter().map(|report| report.status.as_str()).collect();
    assert_eq!(statuses, ["RESERVED", "COMPLETED", "RELEASED", "RELEASED"]);
    assert_eq!(reports[0].reference.as_deref(), Some("r-1"));
}

#[test]
fn a_repeated_decision_is_reported_with_the_time_of_the_decision() {
    let decided_at = NOW + chrono::TimeDelta::hours(1);
    let order = placed(1, &[("a", 1)]);
    let outcome = Outcome::Failed(Reason::UnknownProduct);
    let recorded = HashMap::from([(order.order_id, Recorded { outcome, decided_at })]);

    let now = NOW + chrono::TimeDelta::hours(2);
    let stock = HashMap::new();
    let events = [order, placed(2, &[("a", 1)])];
    let decisions = fold(&events, &all_orders(), &stock, &recorded, now).unwrap();

    let times: Vec<_> = decisions.statuses.iter().map(|report| report.occurred_at).collect();
    assert_eq!(times, [decided_at, now]);
}

/// Few orders and products, so that repeated events, releases and shortages meet.
fn any_event() -> impl Strategy<Value = OrderEvent> {
    let lines = |order: u8| {
        let all = [
            [("a", 1), ("b", 2)],
            [("b", 1), ("b", 1)],
            [("c", 3), ("a", 1)],
            [("a", 4), ("zz", 1)],
        ];
        all[usize::from(order) % all.len()]
    };
    (0u8..12, prop::bool::weighted(0.25)).prop_map(move |(order, is_release)| {
        let kind = if is_release { EventKind::Release } else { EventKind::Placed };
        event(order, kind, &lines(order))
    })
}

proptest! {
    #[test]
    fn a_batch_decides_exactly_as_its_orders_one_by_one(
        batches in prop::collection::vec(prop::collection::vec(any_event(), 0..20), 1..5),
        stock in prop::array::uniform3(0i64..8),
    ) {
        let initial = [("a", stock[0]), ("b", stock[1]), ("c", stock[2])];
        let mut batched = Ledger::with_stock(&initial);
        let mut single = batched.clone();
        for batch in &batches {
            let statuses = batched.run(batch);
            let one_by_one: Vec<_> = batch.chunks(1).flat_map(|event| single.run(event)).collect();
            prop_assert_eq!(statuses, one_by_one);
            prop_assert_eq!(&batched, &single);
        }
        for (id, n) in initial {
            let id = product(id);
            prop_assert!(batched.available[&id] >= 0);
            prop_assert_eq!(batched.available[&id] + batched.held(&id), n);
        }
    }
}
