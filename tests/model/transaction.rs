//! The transaction that decides a batch.

use super::{
    protocol::{Mutant, Protocol},
    state::{Batch, DEMANDS, Outcome, PRODUCTS, State, Stock, Stocks, earlier_rivals},
};

/// What the orders of a batch did to each product.
#[derive(Default)]
struct Touched {
    /// Units were deducted.
    deducted: [bool; PRODUCTS],
    /// A deduction or a refusal rests on the quantity that was read.
    rests_on: [bool; PRODUCTS],
}

impl Protocol {
    /// Decides a batch over the stock as it was read, and writes the result over the stock as it
    /// is. Returns `None` if the write is rejected: then nothing of the transaction holds.
    pub(crate) fn commit(
        &self,
        state: &State,
        batch: Batch,
        read: Stocks,
        is_locked: bool,
    ) -> Option<State> {
        let (mut state, mut after, mut touched) = (state.clone(), read, Touched::default());
        for order in batch.orders.iter() {
            if state.outcomes[order].is_some() && !self.is(Mutant::NoOutcomeKey) {
                if is_locked {
                    continue;
                }
                return None;
            }
            let is_alone = batch.orders.iter().count() == 1;
            decide(&mut state, &mut after, &mut touched, order, is_alone);
        }
        self.write(state, read, after, &touched)
    }

    /// Writes each touched product where its version is still the one that was read.
    fn write(
        &self,
        mut state: State,
        read: Stocks,
        after: Stocks,
        touched: &Touched,
    ) -> Option<State> {
        let current = state.stocks;
        for product in (0..PRODUCTS).filter(|&product| touched.rests_on[product]) {
            let is_guarded = !self.is(if touched.deducted[product] {
                Mutant::NoVersionGuard
            } else {
                Mutant::NoGuardOnRefusals
            });
            if is_guarded && current[product].version != read[product].version {
                return None;
            }
            if touched.deducted[product] || is_guarded {
                state.stocks[product] = Stock {
                    available: after[product].available,
                    version: current[product].version + 1,
                };
            }
        }
        Some(state)
    }
}

/// Decides one order over the stock that the orders before it in the batch left.
fn decide(
    state: &mut State,
    after: &mut Stocks,
    touched: &mut Touched,
    order: usize,
    is_alone: bool,
) {
    let demand = DEMANDS[order];
    let short = (0..PRODUCTS).find(|&product| after[product].available < demand[product]);
    if let Some(product) = short {
        touched.rests_on[product] = true;
        state.outcomes[order] = Some(Outcome::Failed);
        let was_available =
            (0..PRODUCTS).all(|product| state.stocks[product].available >= demand[product]);
        state.refused_wrongly |= is_alone && was_available;
    } else {
        for product in (0..PRODUCTS).filter(|&product| demand[product] > 0) {
            after[product].available -= demand[product];
            touched.deducted[product] = true;
            touched.rests_on[product] = true;
        }
        state.outcomes[order] = Some(Outcome::Completed);
        state.deductions[order] += 1;
    }
    state.overtaken |= earlier_rivals(order).any(|earlier| state.outcomes[earlier].is_none());
}
