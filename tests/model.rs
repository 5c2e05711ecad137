//! An exhaustive check of the protocol by which workers lock, decide, report and store offsets:
//! every interleaving of two workers, four orders and two products, in which a worker may be paused
//! for longer than its locks live, die at any step, be given partitions that another still believes
//! to own, have partitions taken away, get orders again, and leave behind what it cannot lock.
//!
//! A lock is a promise that may be broken at any time, and no worker looks whether its own still
//! holds: what must be true rests on the database alone. The model is that of docs/locking.md, and
//! its steps go by the names they have there.

use stateright::{Checker, HasDiscoveries, Model, Property};

const WORKERS: usize = 2;
const ORDERS: usize = 4;
const PRODUCTS: usize = 2;

/// What each order asks of each product.
const DEMANDS: [[i8; PRODUCTS]; ORDERS] = [[1, 0], [1, 1], [1, 0], [0, 1]];
/// The orders of each partition: from the first to before the last. Batches of different partitions
/// have no order in common, and may have products.
const PARTITIONS: [(usize, usize); 2] = [(0, 3), (3, 4)];
const SUPPLY: [i8; PRODUCTS] = [1, 1];

/// A way to get the protocol wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// Stock is written whatever version it has.
    NoVersionGuard,
    /// A refusal does not depend on the version of the stock that it was read from.
    NoGuardOnRefusals,
    /// A second outcome of an order is accepted.
    NoOutcomeKey,
    /// Offsets are stored before the outcomes are in the database.
    OffsetsFirst,
    /// Offsets are stored as if nothing had been left behind.
    OffsetsPassWhatIsLeft,
    /// Only those orders are left behind whose products are held.
    OthersOvertakeWhatIsLeft,
    /// A partition that is taken away takes along what was left behind of it, and not what was
    /// collected after it.
    RevocationForgetsWhatIsLeft,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Completed,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stock {
    available: i8,
    version: u8,
}

type Stocks = [Stock; PRODUCTS];

/// A set of orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Orders([bool; ORDERS]);

impl Orders {
    fn range(first: usize, end: usize) -> Self {
        Self(std::array::from_fn(|order| (first..end).contains(&order)))
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        (0..ORDERS).filter(move |&order| self.0[order])
    }

    fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn and(self, others: Self) -> Self {
        Self(std::array::from_fn(|order| self.0[order] || others.0[order]))
    }

    fn without(self, others: Self) -> Self {
        Self(std::array::from_fn(|order| self.0[order] && !others.0[order]))
    }

    fn demand(self, product: usize) -> bool {
        self.iter().any(|order| DEMANDS[order][product] > 0)
    }
}

/// Orders of a partition, all before a certain one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Batch {
    partition: usize,
    end: usize,
    orders: Orders,
    /// Those of them that an earlier batch left behind, until they are locked.
    again: Orders,
    left_behind: Orders,
}

impl Batch {
    /// Leaves behind what wants products that are held, and what shares products with one left
    /// behind before it.
    fn without(self, is_held: impl Fn(usize) -> bool, others_overtake: bool) -> Self {
        let mut batch = Self { orders: Orders::default(), ..self };
        for order in self.orders.iter() {
            let shares = |product: usize| batch.left_behind.demand(product) && !others_overtake;
            let is_left = (0..PRODUCTS).any(|product| {
                DEMANDS[order][product] > 0 && (is_held(product) || shares(product))
            });
            if is_left { batch.left_behind.0[order] = true } else { batch.orders.0[order] = true }
        }
        batch
    }
}

/// How far a worker is with its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    Delivered(Batch),
    Locked(Batch),
    /// It has read the stock without locking it.
    Read(Batch, Stocks),
    /// A write was rejected: the transaction runs again, with its rows locked.
    Rejected(Batch),
    Committed(Batch),
    Reported(Batch),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    stocks: Stocks,
    outcomes: [Option<Outcome>; ORDERS],
    /// How often each order's units were taken.
    deductions: [u8; ORDERS],
    reported: [bool; ORDERS],
    /// Of each partition everything before it is done with, as far as the broker knows.
    committed_offsets: [usize; PARTITIONS.len()],
    locks: [Option<usize>; PRODUCTS],
    workers: [Step; WORKERS],
    /// One more unit of the first product has come in.
    is_restocked: bool,
    /// Whether an order was refused, alone, whose demand was there when that was committed.
    refused_wrongly: bool,
    /// Whether an order was decided before an earlier one of its partition with the same product.
    overtaken: bool,
}

impl State {
    fn supply(&self, product: usize) -> i8 {
        SUPPLY[product] + i8::from(self.is_restocked && product == 0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    /// A worker believes that the partition is its own and is given what comes after the committed
    /// offset, up to a certain order.
    Deliver(usize, usize, usize),
    Lock(usize),
    /// Locks what is free, and leaves the other orders behind.
    LockLess(usize),
    /// The TTL of a worker's locks runs out, whether it is alive, paused or dead.
    Expire(usize),
    Read(usize),
    /// The guarded write and the outcomes, in one transaction.
    Commit(usize),
    /// The same with the rows locked from the reading on.
    CommitLocked(usize),
    Report(usize),
    /// What the batch left behind is done again, together with what was collected meanwhile, up to
    /// a certain order.
    StoreOffset(usize, usize),
    /// A worker learns, before it handles a batch with orders left behind, that the partition is
    /// another's.
    Revoke(usize),
    Die(usize),
    Restock,
}

/// Has a worker lock all products of its batch, or none.
fn lock(state: &mut State, worker: usize, batch: Batch) -> Option<()> {
    for product in (0..PRODUCTS).filter(|product| batch.orders.demand(*product)) {
        if state.locks[product].is_some() {
            return None;
        }
        state.locks[product] = Some(worker);
    }
    state.workers[worker] = Step::Locked(Batch { again: Orders::default(), ..batch });
    Some(())
}

/// Those of the same partition that came before an order and want one of its products.
fn those_before(order: usize) -> impl Iterator<Item = usize> {
    let (first, _) = PARTITIONS
        .into_iter()
        .find(|(first, end)| (*first..*end).contains(&order))
        .unwrap_or_default();
    let share = |one: usize, other: usize| {
        (0..PRODUCTS).any(|product| DEMANDS[one][product] > 0 && DEMANDS[other][product] > 0)
    };
    (first..order).filter(move |earlier| share(*earlier, order))
}

struct Protocol(Option<Mutant>);

impl Protocol {
    fn is(&self, mutant: Mutant) -> bool {
        self.0 == Some(mutant)
    }

    /// Decides a batch over the stock as it was read, and writes what it came to over the stock as
    /// it is. `None` where the write is rejected, and nothing of it holds.
    fn commit(
        &self,
        state: &State,
        Batch { orders, .. }: Batch,
        read: Stocks,
        is_locked: bool,
    ) -> Option<State> {
        let (mut state, current) = (state.clone(), state.stocks);
        let mut after = read;
        let (mut deducted, mut rests_on) = ([false; PRODUCTS], [false; PRODUCTS]);
        for order in orders.iter() {
            let demand = DEMANDS[order];
            if state.outcomes[order].is_some() && !self.is(Mutant::NoOutcomeKey) {
                if is_locked {
                    continue;
                }
                return None;
            }
            let short = (0..PRODUCTS).find(|&product| after[product].available < demand[product]);
            if let Some(product) = short {
                rests_on[product] = true;
                state.outcomes[order] = Some(Outcome::Failed);
                let was_there =
                    (0..PRODUCTS).all(|product| current[product].available >= demand[product]);
                state.refused_wrongly |= orders.iter().count() == 1 && was_there;
            } else {
                for product in (0..PRODUCTS).filter(|&product| demand[product] > 0) {
                    after[product].available -= demand[product];
                    deducted[product] = true;
                    rests_on[product] = true;
                }
                state.outcomes[order] = Some(Outcome::Completed);
                state.deductions[order] += 1;
            }
            state.overtaken |= those_before(order).any(|earlier| state.outcomes[earlier].is_none());
        }
        for product in (0..PRODUCTS).filter(|&product| rests_on[product]) {
            let is_guarded = !self.is(if deducted[product] {
                Mutant::NoVersionGuard
            } else {
                Mutant::NoGuardOnRefusals
            });
            if is_guarded && current[product].version != read[product].version {
                return None;
            }
            if deducted[product] || is_guarded {
                state.stocks[product] = Stock {
                    available: after[product].available,
                    version: current[product].version + 1,
                };
            }
        }
        Some(state)
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            stocks: SUPPLY.map(|available| Stock { available, version: 0 }),
            outcomes: [None; ORDERS],
            deductions: [0; ORDERS],
            reported: [false; ORDERS],
            committed_offsets: PARTITIONS.map(|(first, _)| first),
            locks: [None; PRODUCTS],
            workers: [Step::Idle; WORKERS],
            is_restocked: false,
            refused_wrongly: false,
            overtaken: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.is_restocked {
            actions.push(Action::Restock);
        }
        for worker in 0..WORKERS {
            let holds = state.locks.contains(&Some(worker));
            match state.workers[worker] {
                Step::Idle => {
                    for (partition, (_, last)) in PARTITIONS.into_iter().enumerate() {
                        let undone = state.committed_offsets[partition] + 1..=last;
                        actions.extend(undone.map(|end| Action::Deliver(worker, partition, end)));
                    }
                }
                Step::Delivered(_) if !holds => {
                    actions.extend([Action::Lock(worker), Action::LockLess(worker)]);
                }
                // A worker that began anew waits until its own locks of before have expired, as any
                // other.
                Step::Delivered(_) => {}
                Step::Locked(_) => actions.push(Action::Read(worker)),
                Step::Read(..) => actions.push(Action::Commit(worker)),
                Step::Rejected(_) => actions.push(Action::CommitLocked(worker)),
                Step::Committed(_) => actions.push(Action::Report(worker)),
                Step::Reported(batch) => {
                    let (_, last) = PARTITIONS[batch.partition];
                    let collected = if batch.left_behind.is_empty() { batch.end } else { last };
                    actions.extend(
                        (batch.end..=collected).map(|end| Action::StoreOffset(worker, end)),
                    );
                }
            }
            if matches!(state.workers[worker], Step::Delivered(batch) if !batch.again.is_empty()) {
                actions.push(Action::Revoke(worker));
            }
            if state.workers[worker] != Step::Idle {
                actions.push(Action::Die(worker));
            }
            if holds {
                actions.push(Action::Expire(worker));
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm an action")]
    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let unlock = |state: &mut State, worker| {
            for lock in state.locks.iter_mut().filter(|lock| **lock == Some(worker)) {
                *lock = None;
            }
        };
        match action {
            Action::Deliver(worker, partition, end) => {
                let orders = Orders::range(state.committed_offsets[partition], end);
                let none = Orders::default();
                state.workers[worker] = Step::Delivered(Batch {
                    partition,
                    end,
                    orders,
                    again: none,
                    left_behind: none,
                });
            }
            Action::Lock(worker) => {
                let Step::Delivered(batch) = state.workers[worker] else { return None };
                lock(&mut state, worker, batch)?;
            }
            Action::LockLess(worker) => {
                let Step::Delivered(batch) = state.workers[worker] else { return None };
                let less = batch.without(
                    |product| last.locks[product].is_some(),
                    self.is(Mutant::OthersOvertakeWhatIsLeft),
                );
                if less.orders.is_empty() || less.orders == batch.orders {
                    return None;
                }
                lock(&mut state, worker, less)?;
            }
            Action::Expire(worker) => unlock(&mut state, worker),
            Action::Read(worker) => {
                let Step::Locked(batch) = state.workers[worker] else { return None };
                state.workers[worker] = Step::Read(batch, state.stocks);
            }
            Action::Commit(worker) => {
                let Step::Read(batch, read) = state.workers[worker] else { return None };
                if self.is(Mutant::OffsetsFirst) {
                    state.committed_offsets[batch.partition] = batch.end;
                }
                match self.commit(&state, batch, read, false) {
                    Some(committed) => {
                        state = committed;
                        state.workers[worker] = Step::Committed(batch);
                        unlock(&mut state, worker);
                    }
                    None => state.workers[worker] = Step::Rejected(batch),
                }
            }
            Action::CommitLocked(worker) => {
                let Step::Rejected(batch) = state.workers[worker] else { return None };
                state = self.commit(&state, batch, state.stocks, true)?;
                state.workers[worker] = Step::Committed(batch);
                unlock(&mut state, worker);
            }
            Action::Report(worker) => {
                let Step::Committed(batch) = state.workers[worker] else { return None };
                batch.orders.iter().for_each(|order| state.reported[order] = true);
                state.workers[worker] = Step::Reported(batch);
            }
            Action::StoreOffset(worker, collected) => {
                let Step::Reported(batch) = state.workers[worker] else { return None };
                let first_left = batch
                    .left_behind
                    .iter()
                    .next()
                    .filter(|_| !self.is(Mutant::OffsetsPassWhatIsLeft));
                state.committed_offsets[batch.partition] = first_left.unwrap_or(batch.end);
                let again = batch.left_behind;
                state.workers[worker] = if again.is_empty() {
                    Step::Idle
                } else {
                    let orders = again.and(Orders::range(batch.end, collected));
                    let left_behind = Orders::default();
                    Step::Delivered(Batch { end: collected, orders, again, left_behind, ..batch })
                };
            }
            Action::Revoke(worker) => {
                let Step::Delivered(batch) = state.workers[worker] else { return None };
                let kept = if self.is(Mutant::RevocationForgetsWhatIsLeft) {
                    batch.orders.without(batch.again)
                } else {
                    Orders::default()
                };
                state.workers[worker] = if kept.is_empty() {
                    Step::Idle
                } else {
                    Step::Delivered(Batch { orders: kept, again: Orders::default(), ..batch })
                };
            }
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
        vec![
            Property::always("no oversell", |_, state: &State| {
                (0..PRODUCTS).all(|product| {
                    let sold = (0..ORDERS).map(|order| {
                        let times = i8::try_from(state.deductions[order]).unwrap_or(i8::MAX);
                        DEMANDS[order][product] * times
                    });
                    sold.sum::<i8>() <= state.supply(product)
                })
            }),
            Property::always("nothing applied twice", |_, state: &State| {
                state.deductions.iter().all(|deductions| *deductions <= 1)
            }),
            Property::always("what is available is what was not sold", |_, state: &State| {
                (0..PRODUCTS).all(|product| {
                    let is_sold =
                        |order: &usize| state.outcomes[*order] == Some(Outcome::Completed);
                    let sold: i8 =
                        (0..ORDERS).filter(is_sold).map(|order| DEMANDS[order][product]).sum();
                    state.stocks[product].available == state.supply(product) - sold
                })
            }),
            Property::always("no order is refused whose demand is there", |_, state: &State| {
                !state.refused_wrongly
            }),
            Property::always(
                "no offset passes an order that is not decided and reported",
                |_, state: &State| {
                    let is_done =
                        |order: usize| state.outcomes[order].is_some() && state.reported[order];
                    let committed = PARTITIONS.iter().zip(state.committed_offsets);
                    committed.flat_map(|((first, _), committed)| *first..committed).all(is_done)
                },
            ),
            Property::always("no order overtakes another on a product", |_, state: &State| {
                !state.overtaken
            }),
            Property::sometimes("an order is left behind", |_, state: &State| {
                let left = |step: &Step| matches!(step, Step::Committed(batch) if !batch.left_behind.is_empty());
                state.workers.iter().any(left)
            }),
            Property::sometimes(
                "what was left behind comes again with what came after it",
                |_, state: &State| {
                    let is_both = |step: &Step| matches!(step, Step::Delivered(batch) if !batch.again.is_empty() && batch.again != batch.orders);
                    state.workers.iter().any(is_both)
                },
            ),
            Property::sometimes("all are decided and reported", |_, state: &State| {
                state.committed_offsets == PARTITIONS.map(|(_, last)| last)
                    && state.workers == [Step::Idle; WORKERS]
            }),
            Property::sometimes("a write under lost locks is rejected", |_, state: &State| {
                let is_rejected =
                    |worker: &usize| matches!(state.workers[*worker], Step::Rejected(_));
                (0..WORKERS)
                    .any(|worker| is_rejected(&worker) && !state.locks.contains(&Some(worker)))
            }),
        ]
    }
}

/// Which of the properties a mutant breaks first.
fn found(mutant: Mutant, property: &'static str) {
    let names = std::collections::BTreeSet::from([property]);
    let checker = Protocol(Some(mutant))
        .checker()
        .finish_when(HasDiscoveries::AnyOf(names))
        .spawn_bfs()
        .join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{mutant:?} goes unnoticed"));
    println!("{mutant:?}: {property}: {:?}", path.into_actions());
}

#[test]
fn the_protocol_holds_in_all_reachable_states() {
    let checker = Protocol(None).checker().spawn_bfs().join();
    println!("{} states, {} of them unique", checker.state_count(), checker.unique_state_count());
    assert!(
        checker.is_done() && checker.unique_state_count() > 10_000,
        "{} states",
        checker.unique_state_count()
    );
    checker.assert_properties();
}

#[test]
fn without_the_version_guard_more_is_sold_than_there_is() {
    found(Mutant::NoVersionGuard, "no oversell");
}

#[test]
fn without_the_guard_on_refusals_orders_are_refused_whose_demand_is_there() {
    found(Mutant::NoGuardOnRefusals, "no order is refused whose demand is there");
}

#[test]
fn without_the_key_of_the_outcomes_an_order_is_deducted_twice() {
    found(Mutant::NoOutcomeKey, "nothing applied twice");
}

#[test]
fn with_offsets_stored_first_an_order_is_lost() {
    found(Mutant::OffsetsFirst, "no offset passes an order that is not decided and reported");
}

#[test]
fn with_offsets_stored_past_what_is_left_behind_an_order_is_lost() {
    found(
        Mutant::OffsetsPassWhatIsLeft,
        "no offset passes an order that is not decided and reported",
    );
}

#[test]
fn with_what_was_left_behind_forgotten_when_its_partition_is_taken_away_an_order_is_lost() {
    found(
        Mutant::RevocationForgetsWhatIsLeft,
        "no offset passes an order that is not decided and reported",
    );
}

#[test]
fn with_orders_left_behind_one_by_one_another_overtakes() {
    found(Mutant::OthersOvertakeWhatIsLeft, "no order overtakes another on a product");
}
