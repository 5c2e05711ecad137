//! What must hold in every state, and what must be reachable.

use stateright::Property;

use super::{
    protocol::Protocol,
    state::{DEMANDS, ORDERS, Outcome, PARTITIONS, PRODUCTS, State, Step, WORKERS},
};

pub(crate) const NO_OVERSELL: &str = "no oversell";
pub(crate) const NOTHING_TWICE: &str = "no order is applied twice";
pub(crate) const NO_WRONG_REFUSAL: &str = "no order is refused whose demand is available";
pub(crate) const NO_LOST_ORDER: &str = "no offset passes an order that is not decided and reported";
pub(crate) const NO_OVERTAKING: &str = "no order overtakes another on a product";

pub(crate) fn properties() -> Vec<Property<Protocol>> {
    vec![
        Property::always(NO_OVERSELL, |_, state| (0..PRODUCTS).all(|p| is_not_oversold(state, p))),
        Property::always(NOTHING_TWICE, |_, state: &State| {
            state.deductions.iter().all(|deductions| *deductions <= 1)
        }),
        Property::always("the available units are the units not sold", |_, state| {
            (0..PRODUCTS).all(|product| is_explained(state, product))
        }),
        Property::always(NO_WRONG_REFUSAL, |_, state: &State| !state.refused_wrongly),
        Property::always(NO_LOST_ORDER, |_, state| is_done_below_the_offsets(state)),
        Property::always(NO_OVERTAKING, |_, state: &State| !state.overtaken),
        Property::sometimes("an order is deferred", |_, state: &State| {
            let defers = |step: &Step| match step {
                Step::Committed(batch) => !batch.deferred.is_empty(),
                _ => false,
            };
            state.workers.iter().any(defers)
        }),
        Property::sometimes("deferred orders come again with later ones", |_, state: &State| {
            let has_both = |step: &Step| match step {
                Step::Delivered(batch) => {
                    !batch.deferred_before.is_empty() && batch.deferred_before != batch.orders
                }
                _ => false,
            };
            state.workers.iter().any(has_both)
        }),
        Property::sometimes("all orders are decided and reported", |_, state: &State| {
            state.committed_offsets == PARTITIONS.map(|(_, last)| last)
                && state.workers == [Step::Idle; WORKERS]
        }),
        Property::sometimes("a write under lost locks is rejected", |_, state: &State| {
            let is_rejected = |worker: usize| matches!(state.workers[worker], Step::Rejected(_));
            (0..WORKERS).any(|worker| is_rejected(worker) && !state.holds_locks(worker))
        }),
    ]
}

fn is_not_oversold(state: &State, product: usize) -> bool {
    let deducted = (0..ORDERS).map(|order| {
        let times = i8::try_from(state.deductions[order]).unwrap_or(i8::MAX);
        DEMANDS[order][product] * times
    });
    deducted.sum::<i8>() <= state.supply(product)
}

fn is_explained(state: &State, product: usize) -> bool {
    let is_sold = |order: &usize| state.outcomes[*order] == Some(Outcome::Completed);
    let sold: i8 = (0..ORDERS).filter(is_sold).map(|order| DEMANDS[order][product]).sum();
    state.stocks[product].available == state.supply(product) - sold
}

fn is_done_below_the_offsets(state: &State) -> bool {
    let is_done = |order: usize| state.outcomes[order].is_some() && state.reported[order];
    let committed = PARTITIONS.iter().zip(state.committed_offsets);
    committed.flat_map(|((first, _), committed)| *first..committed).all(is_done)
}
