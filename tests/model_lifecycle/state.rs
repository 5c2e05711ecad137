//! What the model knows at a moment: the order store, the ledger, the topics, and what each process
//! has begun.

use stocklock::domain::OrderState;

/// A message of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    /// On `orders`: the order, and whether it holds its stock once it is deducted.
    Placed,
    PlacedWithHold,
    Release,
    /// On `order-status`: reports of the worker.
    Completed,
    Reserved,
    Refused,
    Released,
    /// Announcements of ingest and the compensator.
    AnnouncedCompleted,
    AnnouncedCancelled,
    /// Messages of another system. It may send each of them at any time, so no state has them.
    Failure,
    Cancellation,
    Confirmation,
}

impl Message {
    /// The messages that are on a topic or not.
    pub(crate) const OURS: [Self; 9] = [
        Self::Placed,
        Self::PlacedWithHold,
        Self::Release,
        Self::Completed,
        Self::Reserved,
        Self::Refused,
        Self::Released,
        Self::AnnouncedCompleted,
        Self::AnnouncedCancelled,
    ];
    pub(crate) const OF_OTHERS: [Self; 3] = [Self::Failure, Self::Cancellation, Self::Confirmation];

    pub(crate) fn is_event(self) -> bool {
        matches!(self, Self::Placed | Self::PlacedWithHold | Self::Release)
    }

    /// The state of the order that the message names.
    pub(crate) fn names(self) -> Option<OrderState> {
        match self {
            Self::Completed | Self::AnnouncedCompleted => Some(OrderState::Completed),
            Self::Reserved => Some(OrderState::Reserved),
            Self::Refused | Self::Failure => Some(OrderState::Failed),
            Self::AnnouncedCancelled | Self::Cancellation => Some(OrderState::Cancelled),
            Self::Placed
            | Self::PlacedWithHold
            | Self::Release
            | Self::Released
            | Self::Confirmation => None,
        }
    }
}

/// A set of messages, or of states of an order. Its bits are their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Numbers(u16);

impl Numbers {
    pub(crate) fn has(self, number: usize) -> bool {
        self.0 & (1 << number) != 0
    }

    pub(crate) fn insert(&mut self, number: usize) {
        self.0 |= 1 << number;
    }

    pub(crate) fn remove(&mut self, number: usize) {
        self.0 &= !(1 << number);
    }
}

/// A row of the table `holds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Hold {
    Running,
    Due,
}

/// A row of the table `announcements`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Announcement {
    Written,
    /// The broker has acknowledged it, and the row is not deleted yet.
    Published,
}

/// What the order store holds of the order.
#[expect(clippy::struct_excessive_bools, reason = "each is a column or a row of the order store")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) state: OrderState,
    /// The order is cancelled because nobody confirmed it in time.
    pub(crate) is_expired: bool,
    /// The order was placed with a hold.
    pub(crate) has_hold: bool,
    /// The order was confirmed while it was pending.
    pub(crate) is_hold_confirmed: bool,
    pub(crate) hold: Option<Hold>,
    /// The row of the outbox: the broker has not acknowledged the order yet.
    pub(crate) is_in_outbox: bool,
    pub(crate) is_owed: bool,
    /// That the order is completed.
    pub(crate) completion: Option<Announcement>,
    /// That the order is cancelled.
    pub(crate) cancellation: Option<Announcement>,
}

impl Store {
    pub(crate) fn wants_hold(&self) -> bool {
        self.has_hold && !self.is_hold_confirmed
    }

    pub(crate) fn is_final(&self) -> bool {
        matches!(self.state, OrderState::Failed | OrderState::Cancelled)
    }

    /// The row of an announcement.
    pub(crate) fn announcement(&mut self, message: Message) -> &mut Option<Announcement> {
        if message == Message::AnnouncedCompleted {
            &mut self.completion
        } else {
            &mut self.cancellation
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Completed,
    Failed,
    Released,
}

/// What the stock store holds of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Ledger {
    pub(crate) outcome: Option<Outcome>,
    /// How often the order's units were deducted, and returned.
    pub(crate) deducted: u8,
    pub(crate) returned: u8,
}

impl Ledger {
    pub(crate) fn holds_units(self) -> bool {
        self.deducted > self.returned
    }

    pub(crate) fn is_decided_without_units(self) -> bool {
        self.outcome.is_some() && !self.holds_units()
    }
}

/// What somebody knows and relies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Promise {
    /// A client that confirmed the order was answered that it is completed.
    Completed,
    /// A client that confirmed the pending order was answered that it will be completed, if it is
    /// not refused. Or the offset of a `CONFIRMED` was stored.
    Confirmed,
    /// A client was answered that the order is cancelled.
    Cancelled,
    /// The offset of a `FAILED` or `CANCELLED` of another system was stored, and the message was
    /// not dead-lettered.
    Ended,
}

/// What must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Wrongs {
    /// The order left a final state.
    pub(crate) left_final: bool,
    /// A hold was ended that was not due.
    pub(crate) ended_early: bool,
    /// An announcement was published of a state that the order had not reached.
    pub(crate) announced_wrongly: bool,
    /// How many releases began because a hold ended. Counts up to 2.
    pub(crate) hold_releases: u8,
}

/// Which faults occur, beside crashes, repeated messages and messages read late or out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Faults {
    /// The broker loses messages that it has acknowledged.
    Broker,
    /// The order store loses its last commit, once.
    OrderStore,
    /// The stock store loses the outcome of an order that holds no units, once.
    StockStore,
}

/// What a failover may still take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Failover {
    Never,
    /// The order store returns to this.
    OrderStoreTo(Store),
    StockStore,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) ledger: Ledger,
    /// The messages that the broker has.
    pub(crate) topics: Numbers,
    /// The states that a message on `order-status` has named, whether it is lost by now or not.
    pub(crate) named: Numbers,
    /// The order is too old for a release.
    pub(crate) is_old: bool,
    /// Ingest has committed a request, and not answered it yet.
    pub(crate) ingest: Option<Promise>,
    /// The compensator has committed a message of another system, and not stored its offset yet.
    /// The offsets of our own messages do not count: no state relies on them.
    pub(crate) compensator: Option<Promise>,
    /// The sweeps that have found the hold due, and not locked its order yet.
    pub(crate) sweeps: u8,
    pub(crate) promises: Numbers,
    pub(crate) wrongs: Wrongs,
    pub(crate) failover: Failover,
}

impl State {
    pub(crate) fn initial(has_hold: bool, faults: Faults) -> Self {
        let store = Store {
            state: OrderState::Pending,
            is_expired: false,
            has_hold,
            is_hold_confirmed: false,
            hold: None,
            is_in_outbox: true,
            is_owed: false,
            completion: None,
            cancellation: None,
        };
        let failover = match faults {
            Faults::Broker => Failover::Never,
            Faults::OrderStore => Failover::OrderStoreTo(store),
            Faults::StockStore => Failover::StockStore,
        };
        Self {
            store,
            ledger: Ledger::default(),
            topics: Numbers::default(),
            named: Numbers::default(),
            is_old: false,
            ingest: None,
            compensator: None,
            sweeps: 0,
            promises: Numbers::default(),
            wrongs: Wrongs::default(),
            failover,
        }
    }

    pub(crate) fn has(&self, message: Message) -> bool {
        self.topics.has(message as usize)
    }

    pub(crate) fn has_named(&self, state: OrderState) -> bool {
        self.named.has(state as usize)
    }

    pub(crate) fn has_promised(&self, promise: Promise) -> bool {
        self.promises.has(promise as usize)
    }

    /// The broker acknowledges the message.
    pub(crate) fn publish(&mut self, message: Message) {
        if Message::OURS.contains(&message) {
            self.topics.insert(message as usize);
        }
        if let Some(state) = message.names() {
            self.named.insert(state as usize);
        }
    }

    pub(crate) fn promise(&mut self, promise: Promise) {
        self.promises.insert(promise as usize);
    }
}
