//! The steps of the protocol, and ways to get them wrong.

use stateright::{Model, Property};

use super::{
    properties::properties,
    state::{Batch, Orders, PARTITIONS, State, Step, WORKERS},
};

/// A way to get the protocol wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Stock is written whatever version it has.
    NoVersionGuard,
    /// A refusal does not depend on the version of the stock that it was read from.
    NoGuardOnRefusals,
    /// A second outcome of an order is accepted.
    NoOutcomeKey,
    /// Offsets are stored before the outcomes are in the database.
    OffsetsFirst,
    /// Offsets are stored as if no order had been deferred.
    OffsetsPassDeferred,
    /// Only the orders whose products are held are deferred. Later orders overtake them.
    OthersOvertakeDeferred,
    /// A revocation drops the deferred orders of the partition, but not the orders collected after
    /// them.
    RevocationForgetsDeferred,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// A worker believes that it owns the partition, and gets its orders from the committed offset
    /// up to `end`.
    Deliver {
        worker: usize,
        partition: usize,
        end: usize,
    },
    /// The worker locks all products of its batch.
    Lock(usize),
    /// The worker locks the products that are free, and defers the other orders.
    LockFree(usize),
    /// The TTL of a worker's locks ends, whether the worker is alive, paused or dead.
    Expire(usize),
    Read(usize),
    /// The guarded write and the outcomes, in one transaction.
    Commit(usize),
    /// The same with the rows locked from the read on.
    CommitLocked(usize),
    Report(usize),
    /// The deferred orders come again, together with the orders collected meanwhile, up to `end`.
    StoreOffset {
        worker: usize,
        end: usize,
    },
    /// The partition is revoked. The worker notices it before it handles a batch with deferred
    /// orders.
    Revoke(usize),
    Die(usize),
    Restock,
}

pub(crate) struct Protocol(pub(crate) Option<Mutant>);

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::initial()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.is_restocked {
            actions.push(Action::Restock);
        }
        for worker in 0..WORKERS {
            add_next_steps(state, worker, actions);
            let step = state.workers[worker];
            if matches!(step, Step::Delivered(batch) if !batch.deferred_before.is_empty()) {
                actions.push(Action::Revoke(worker));
            }
            if step != Step::Idle {
                actions.push(Action::Die(worker));
            }
            if state.holds_locks(worker) {
                actions.push(Action::Expire(worker));
            }
        }
    }

    /// Returns `None` if the action is impossible in this state.
    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Deliver { worker, partition, end } => {
                let orders = Orders::range(state.committed_offsets[partition], end);
                state.workers[worker] = Step::Delivered(Batch::new(partition, orders, end));
            }
            Action::Lock(worker) => {
                let Step::Delivered(batch) = state.workers[worker] else { return None };
                return state.lock(worker, batch);
            }
            Action::LockFree(worker) => return self.lock_free(state, worker),
            Action::Expire(worker) => state.unlock(worker),
            Action::Read(worker) => {
                let Step::Locked(batch) = state.workers[worker] else { return None };
                state.workers[worker] = Step::Read(batch, state.stocks);
            }
            Action::Commit(worker) => return self.commit_guarded(state, worker),
            Action::CommitLocked(worker) => {
                let Step::Rejected(batch) = state.workers[worker] else { return None };
                state = self.commit(&state, batch, state.stocks, true)?;
                state.workers[worker] = Step::Committed(batch);
                state.unlock(worker);
            }
            Action::Report(worker) => {
                let Step::Committed(batch) = state.workers[worker] else { return None };
                batch.orders.iter().for_each(|order| state.reported[order] = true);
                state.workers[worker] = Step::Reported(batch);
            }
            Action::StoreOffset { worker, end } => return self.store_offset(state, worker, end),
            Action::Revoke(worker) => return self.revoke(state, worker),
            Action::Die(worker) => state.workers[worker] = Step::Idle,
            Action::Restock => {
                state.is_restocked = true;
                state.stocks[0].available += 1;
                state.stocks[0].version += 1;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties()
    }
}

/// Adds the actions by which a worker goes on with its batch.
fn add_next_steps(state: &State, worker: usize, actions: &mut Vec<Action>) {
    match state.workers[worker] {
        Step::Idle => {
            for (partition, (_, last)) in PARTITIONS.into_iter().enumerate() {
                let undone = state.committed_offsets[partition] + 1..=last;
                actions.extend(undone.map(|end| Action::Deliver { worker, partition, end }));
            }
        }
        Step::Delivered(_) if !state.holds_locks(worker) => {
            actions.extend([Action::Lock(worker), Action::LockFree(worker)]);
        }
        // A worker that was started again waits until its own earlier locks have expired.
        Step::Delivered(_) => {}
        Step::Locked(_) => actions.push(Action::Read(worker)),
        Step::Read(..) => actions.push(Action::Commit(worker)),
        Step::Rejected(_) => actions.push(Action::CommitLocked(worker)),
        Step::Committed(_) => actions.push(Action::Report(worker)),
        Step::Reported(batch) => {
            let (_, last) = PARTITIONS[batch.partition];
            let collected = if batch.deferred.is_empty() { batch.end } else { last };
            actions.extend((batch.end..=collected).map(|end| Action::StoreOffset { worker, end }));
        }
    }
}

impl Protocol {
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.0 == Some(mutant)
    }

    fn lock_free(&self, state: State, worker: usize) -> Option<State> {
        let Step::Delivered(batch) = state.workers[worker] else { return None };
        let is_held = |product: usize| state.locks[product].is_some();
        let part = batch.deferring(is_held, self.is(Mutant::OthersOvertakeDeferred));
        if part.orders.is_empty() || part.orders == batch.orders {
            return None;
        }
        state.lock(worker, part)
    }

    fn commit_guarded(&self, mut state: State, worker: usize) -> Option<State> {
        let Step::Read(batch, read) = state.workers[worker] else { return None };
        if self.is(Mutant::OffsetsFirst) {
            state.committed_offsets[batch.partition] = batch.end;
        }
        let Some(mut committed) = self.commit(&state, batch, read, false) else {
            state.workers[worker] = Step::Rejected(batch);
            return Some(state);
        };
        committed.workers[worker] = Step::Committed(batch);
        committed.unlock(worker);
        Some(committed)
    }

    fn store_offset(&self, mut state: State, worker: usize, end: usize) -> Option<State> {
        let Step::Reported(batch) = state.workers[worker] else { return None };
        let first_deferred =
            batch.deferred.iter().next().filter(|_| !self.is(Mutant::OffsetsPassDeferred));
        state.committed_offsets[batch.partition] = first_deferred.unwrap_or(batch.end);
        state.workers[worker] = if batch.deferred.is_empty() {
            Step::Idle
        } else {
            let orders = batch.deferred.and(Orders::range(batch.end, end));
            let next = Batch::new(batch.partition, orders, end);
            Step::Delivered(Batch { deferred_before: batch.deferred, ..next })
        };
        Some(state)
    }

    fn revoke(&self, mut state: State, worker: usize) -> Option<State> {
        let Step::Delivered(batch) = state.workers[worker] else { return None };
        let kept = if self.is(Mutant::RevocationForgetsDeferred) {
            batch.orders.without(batch.deferred_before)
        } else {
            Orders::default()
        };
        state.workers[worker] = if kept.is_empty() {
            Step::Idle
        } else {
            let deferred_before = Orders::default();
            Step::Delivered(Batch { orders: kept, deferred_before, ..batch })
        };
        Some(state)
    }
}
