//! Each cell of the table in `docs/order-lifecycle.md`, and each pair of its events in both orders
//! of arrival, in the real order store. The document says what is expected.

mod document;
mod events;

use std::collections::BTreeMap;

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use stocklock::{
    domain::{Horizon, OrderId},
    store::{Change, OrderStore},
};

use self::{
    document::{COLUMNS, Column, Row, Seen, rows},
    events::{Place, event, is_message, step},
};
use crate::harness::{World, made_ago, on_each_database};

on_each_database!(
    each_event_does_to_each_order_what_its_cell_says,
    any_two_events_do_the_same_in_one_batch_and_one_by_one,
    an_event_of_an_unknown_order_writes_nothing,
    an_order_too_old_for_a_release_is_neither_failed_nor_reserved,
    no_hold_lasts_until_its_order_is_too_old_for_a_release,
);

/// An order, the events that meet it, and what the document expects of it.
struct Case {
    order_id: OrderId,
    column: &'static Column,
    events: Vec<Row>,
    expected: Seen,
}

impl Case {
    fn new(column: &'static Column, events: Vec<Row>) -> Self {
        let expected = events.iter().fold(column.seen(&events), |seen, row| seen.after(row));
        Self { order_id: OrderId::generate(), column, events, expected }
    }

    fn name(&self) -> String {
        let events: Vec<_> = self.events.iter().map(|row| row.name.clone()).collect();
        format!("{} meets {}", self.column.name, events.join(", then "))
    }
}

/// Writes the orders of the cases, each in the state of its column.
async fn begin(world: &World, cases: &[Case], now: DateTime<Utc>) {
    for chunk in cases.chunks(500) {
        let mut sql = String::new();
        for case in chunk {
            sql += &case.column.insert(case.order_id, now, &case.column.seen(&case.events));
        }
        world.tamper_with_orders(&sql).await;
    }
}

/// Fails the test unless each order is as the document expects it.
async fn check(world: &World, cases: &[Case], now: DateTime<Utc>) {
    let seen = Seen::of_all(world, now).await;
    let wrong: BTreeMap<_, _> = cases
        .iter()
        .filter(|case| seen[&case.order_id] != case.expected)
        .map(|case| (case.name(), (&seen[&case.order_id], &case.expected)))
        .collect();
    assert!(wrong.is_empty(), "(seen, expected) of {} cases: {wrong:#?}", wrong.len());
}

fn place<'a>(world: &'a World, store: &'a OrderStore, now: DateTime<Utc>) -> Place<'a> {
    Place { world, store, horizon: world.config.retention.horizon, now }
}

async fn each_event_does_to_each_order_what_its_cell_says(world: World) {
    let (store, now) = (world.order_store(), Utc::now().trunc_subsecs(3));
    let cases: Vec<_> = COLUMNS
        .iter()
        .flat_map(|column| rows().into_iter().map(move |row| Case::new(column, vec![row])))
        .collect();
    assert_eq!(cases.len(), 6 * 19);
    begin(&world, &cases, now).await;

    let meeting: Vec<_> =
        cases.iter().map(|case| (case.order_id, event(&case.events[0]))).collect();
    step(place(&world, &store, now), &meeting).await;

    check(&world, &cases, now).await;
}

async fn any_two_events_do_the_same_in_one_batch_and_one_by_one(world: World) {
    let (store, now) = (world.order_store(), Utc::now().trunc_subsecs(3));
    let pairs =
        || rows().into_iter().flat_map(|one| rows().into_iter().map(move |two| [one.clone(), two]));
    let cases = |both: fn(&Row) -> bool| {
        let cases = COLUMNS.iter().flat_map(|column| {
            pairs()
                .filter(|pair| pair.iter().all(both))
                .map(move |pair| Case::new(column, pair.to_vec()))
        });
        cases.collect::<Vec<_>>()
    };

    let one_by_one = cases(|_| true);
    begin(&world, &one_by_one, now).await;
    for number in 0..2 {
        let meeting: Vec<_> =
            one_by_one.iter().map(|case| (case.order_id, event(&case.events[number]))).collect();
        step(place(&world, &store, now), &meeting).await;
    }
    check(&world, &one_by_one, now).await;

    // Messages of one batch, and requests of one group, share a transaction.
    for both in [is_message as fn(&Row) -> bool, |row: &Row| row.source == "client"] {
        let in_one_batch = cases(both);
        begin(&world, &in_one_batch, now).await;
        let meeting: Vec<_> = in_one_batch
            .iter()
            .flat_map(|case| case.events.iter().map(|row| (case.order_id, event(row))))
            .collect();
        step(place(&world, &store, now), &meeting).await;
        check(&world, &in_one_batch, now).await;
    }
}

async fn an_event_of_an_unknown_order_writes_nothing(world: World) {
    let (store, now) = (world.order_store(), Utc::now().trunc_subsecs(3));
    let meeting: Vec<_> = rows().iter().map(|row| (OrderId::generate(), event(row))).collect();

    step(place(&world, &store, now), &meeting).await;

    assert_eq!(Seen::of_all(&world, now).await, BTreeMap::new());
    for table in ["holds", "owed_releases", "announcements"] {
        assert_eq!(events::count(&world, table).await, 0, "{table}");
    }
}

async fn an_order_too_old_for_a_release_is_neither_failed_nor_reserved(world: World) {
    let (store, now) = (world.order_store(), Utc::now().trunc_subsecs(3));
    let too_old = TimeDelta::days(29) + TimeDelta::hours(1);
    let cases = |column: &str, names: &[&str]| {
        let column = COLUMNS.iter().find(|each| each.name == column).unwrap();
        let rows = rows().into_iter().filter(|row| names.contains(&row.name.as_str()));
        let cases = rows.map(|row| {
            let order_id = made_ago(too_old);
            Case { order_id, ..Case::new(column, vec![row]) }
        });
        cases.collect::<Vec<_>>()
    };
    let late =
        ["FAILED of others", "CANCELLED of others", "CANCELLED of ingest", "cancel of client"];
    let mut completed = cases("`COMPLETED`", &late);
    let mut to_reserve = cases("`PENDING`, hold", &["COMPLETED of worker", "RESERVED of worker"]);
    assert_eq!((completed.len(), to_reserve.len()), (4, 2));
    for case in &mut completed {
        case.expected = case.column.seen(&case.events);
    }
    for case in &mut to_reserve {
        case.expected = Seen::expired(case.column.seen(&case.events));
    }
    completed.append(&mut to_reserve);
    begin(&world, &completed, now).await;

    let meeting: Vec<_> =
        completed.iter().map(|case| (case.order_id, event(&case.events[0]))).collect();
    step(place(&world, &store, now), &meeting).await;

    check(&world, &completed, now).await;
}

async fn no_hold_lasts_until_its_order_is_too_old_for_a_release(world: World) {
    let (store, now) = (world.order_store(), Utc::now().trunc_subsecs(3));
    // A release is in time until 29 days after the order. The hold asked for is an hour.
    let deadline = now + TimeDelta::minutes(10);
    let order_id = OrderId::new(deadline - TimeDelta::days(29), &[7; 10]);
    let column = COLUMNS.iter().find(|each| each.name == "`PENDING`, hold").unwrap();
    let reserved = rows().into_iter().find(|row| row.name == "RESERVED of worker").unwrap();
    let case = Case { order_id, ..Case::new(column, vec![reserved]) };
    begin(&world, std::slice::from_ref(&case), now).await;

    step(place(&world, &store, now), &[(order_id, event(&case.events[0]))]).await;
    let capped = Seen::of_all(&world, now).await[&order_id].hold_ends_in;
    let extend = |hold_seconds| [(order_id, Change::Extend { hold_seconds })];
    let horizon: Horizon = world.config.retention.horizon;
    store.change(&extend(601), now, horizon, events::LEASE).await.unwrap();
    let too_long = Seen::of_all(&world, now).await[&order_id].hold_ends_in;
    store.change(&extend(300), now, horizon, events::LEASE).await.unwrap();
    let shortened = Seen::of_all(&world, now).await[&order_id].hold_ends_in;

    assert_eq!((capped, too_long, shortened), (Some(600), Some(600), Some(300)));
}
