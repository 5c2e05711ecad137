//! What the model knows at a moment: the database, the broker, the locks and the workers.

/// Two workers, four orders in two partitions, and two products.
pub(crate) const WORKERS: usize = 2;
pub(crate) const ORDERS: usize = 4;
pub(crate) const PRODUCTS: usize = 2;

/// The units of each product that each order asks for.
pub(crate) const DEMANDS: [[i8; PRODUCTS]; ORDERS] = [[1, 0], [1, 1], [1, 0], [0, 1]];
/// The orders of each partition, as a half-open range. Two partitions share no order, and may share
/// products.
pub(crate) const PARTITIONS: [(usize, usize); 2] = [(0, 3), (3, 4)];
/// The units of each product at the beginning.
pub(crate) const SUPPLY: [i8; PRODUCTS] = [1, 1];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Completed,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stock {
    pub(crate) available: i8,
    pub(crate) version: u8,
}

pub(crate) type Stocks = [Stock; PRODUCTS];

/// A set of orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Orders([bool; ORDERS]);

impl Orders {
    pub(crate) fn range(first: usize, end: usize) -> Self {
        Self(std::array::from_fn(|order| (first..end).contains(&order)))
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..ORDERS).filter(move |&order| self.0[order])
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(crate) fn and(self, others: Self) -> Self {
        Self(std::array::from_fn(|order| self.0[order] || others.0[order]))
    }

    pub(crate) fn without(self, others: Self) -> Self {
        Self(std::array::from_fn(|order| self.0[order] && !others.0[order]))
    }

    pub(crate) fn insert(&mut self, order: usize) {
        self.0[order] = true;
    }

    /// Whether one of the orders asks for the product.
    pub(crate) fn demand(self, product: usize) -> bool {
        self.iter().any(|order| DEMANDS[order][product] > 0)
    }
}

/// Orders that a worker does together: some of a partition, all below `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Batch {
    pub(crate) partition: usize,
    pub(crate) end: usize,
    pub(crate) orders: Orders,
    /// Those of `orders` that an earlier batch deferred. Empty once the batch holds its locks.
    pub(crate) deferred_before: Orders,
    /// Orders of the partition that this batch defers. They are not in `orders`.
    pub(crate) deferred: Orders,
}

impl Batch {
    pub(crate) fn new(partition: usize, orders: Orders, end: usize) -> Self {
        let (deferred_before, deferred) = (Orders::default(), Orders::default());
        Self { partition, end, orders, deferred_before, deferred }
    }

    /// Defers each order that asks for a held product, and each order that shares a product with an
    /// order deferred before it. With `others_overtake` it defers only the former.
    pub(crate) fn deferring(self, is_held: impl Fn(usize) -> bool, others_overtake: bool) -> Self {
        let mut batch = Self { orders: Orders::default(), ..self };
        for order in self.orders.iter() {
            let shares = |product: usize| batch.deferred.demand(product) && !others_overtake;
            let is_deferred = (0..PRODUCTS).any(|product| {
                DEMANDS[order][product] > 0 && (is_held(product) || shares(product))
            });
            if is_deferred { batch.deferred.insert(order) } else { batch.orders.insert(order) }
        }
        batch
    }
}

/// How far a worker is with its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Idle,
    Delivered(Batch),
    Locked(Batch),
    /// The worker has read the stock, without row locks.
    Read(Batch, Stocks),
    /// A write was rejected. The transaction runs again, with its rows locked.
    Rejected(Batch),
    Committed(Batch),
    Reported(Batch),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) stocks: Stocks,
    pub(crate) outcomes: [Option<Outcome>; ORDERS],
    /// How often the units of each order were deducted.
    pub(crate) deductions: [u8; ORDERS],
    pub(crate) reported: [bool; ORDERS],
    /// For each partition: every order below it is done, as far as the broker knows.
    pub(crate) committed_offsets: [usize; PARTITIONS.len()],
    /// The worker that holds the lock of each product.
    pub(crate) locks: [Option<usize>; PRODUCTS],
    pub(crate) workers: [Step; WORKERS],
    /// Whether one more unit of the first product has come in.
    pub(crate) is_restocked: bool,
    /// Whether an order in a batch of its own was refused although its demand was available at the
    /// commit.
    pub(crate) refused_wrongly: bool,
    /// Whether an order was decided before an earlier order of its partition with the same product.
    pub(crate) overtaken: bool,
}

impl State {
    pub(crate) fn initial() -> Self {
        Self {
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
        }
    }

    /// All units of a product that were ever there.
    pub(crate) fn supply(&self, product: usize) -> i8 {
        SUPPLY[product] + i8::from(self.is_restocked && product == 0)
    }

    pub(crate) fn holds_locks(&self, worker: usize) -> bool {
        self.locks.contains(&Some(worker))
    }

    /// Has a worker lock all products of its batch. Returns `None` if another holds one of them.
    pub(crate) fn lock(mut self, worker: usize, batch: Batch) -> Option<Self> {
        for product in (0..PRODUCTS).filter(|product| batch.orders.demand(*product)) {
            if self.locks[product].is_some() {
                return None;
            }
            self.locks[product] = Some(worker);
        }
        let deferred_before = Orders::default();
        self.workers[worker] = Step::Locked(Batch { deferred_before, ..batch });
        Some(self)
    }

    pub(crate) fn unlock(&mut self, worker: usize) {
        for lock in self.locks.iter_mut().filter(|lock| **lock == Some(worker)) {
            *lock = None;
        }
    }
}

/// The earlier orders of the same partition that share a product with an order.
pub(crate) fn earlier_rivals(order: usize) -> impl Iterator<Item = usize> {
    let (first, _) = PARTITIONS
        .into_iter()
        .find(|(first, end)| (*first..*end).contains(&order))
        .unwrap_or_default();
    let share = |one: usize, other: usize| {
        (0..PRODUCTS).any(|product| DEMANDS[one][product] > 0 && DEMANDS[other][product] > 0)
    };
    (first..order).filter(move |earlier| share(*earlier, order))
}
