//! Checks the invariants over both stores, the locks and the topics.
//!
//! | file | checks |
//! | --- | --- |
//! | `ledger` | 1, 2, 4 and 5: one snapshot of the stock store, exactly |
//! | `stores` | 3 and 5: orders against their outcomes; orders in flight are awaited |
//! | `walk` | reads both stores side by side, page by page |
//! | `judge` | 3 and 5: what both stores have of one order; pure |
//! | `releases` | 3: releases that are owed, expired, or lost |
//! | `overdue` | 3: releases, holds and announcements that take too long |
//! | `locks` | 6: keys in Redis, and open transactions |
//! | `events` | 7: committed offsets |
//! | `letters` | reads the dead letters, which explain why an order is not final |
//! | `listed`, `progress` | what the report lists; the progress bar |
//!
//! The memory is bounded, whatever the number of orders: pages, lists that are cut, and up to a
//! million orders in flight. It grows with the number of products.

mod events;
mod judge;
mod ledger;
mod letters;
mod listed;
mod locks;
mod overdue;
mod progress;
mod releases;
mod stores;
mod walk;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

pub(crate) use listed::Listed;
pub(crate) use progress::Progress;
pub(crate) use releases::{LostReleases, find_lost_releases};

use crate::{
    config::{self, Config},
    domain::OrderId,
    store::{OrderStore, StockStore, StoreError},
    wire::{OrderEventCodec, OrderStatusCodec},
};

/// Rows that one statement reads, and events that are checked at once.
const PAGE_ROWS: u32 = 5_000;

/// How often what is in flight is read again.
const SETTLE_INTERVAL: Duration = Duration::from_millis(500);

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Violation {
    /// Its number in the list of invariants.
    pub(crate) invariant: u8,
    /// The product, order, key, session or message.
    pub(crate) subject: String,
    pub(crate) detail: String,
}

/// An order that is not final, and why. JSON has it as an array of two texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OpenOrder {
    pub(crate) order_id: String,
    pub(crate) why: String,
}

impl Serialize for OpenOrder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.order_id, &self.why).serialize(serializer)
    }
}

/// What the checks found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Invariants 3, 5 and 7 are checked of orders that were made from then on. `None`: of all.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) products: usize,
    pub(crate) outcomes: u64,
    pub(crate) orders: u64,
    /// Events before the committed offsets, as far as the topic retains them.
    pub(crate) events: u64,
    pub(crate) violations: Listed<Violation>,
    /// Orders that were still in flight when the time to settle was over.
    pub(crate) unsettled: Listed<OpenOrder>,
    /// Orders that are not final until a person handles their dead letters.
    pub(crate) dead_lettered: Listed<OpenOrder>,
    /// What could not be checked, and why.
    pub(crate) unchecked: Vec<String>,
    /// What the user of a store has no right to see.
    pub(crate) forbidden: Vec<String>,
    /// What the caller or the configuration left out, and why.
    pub(crate) left_out: Vec<String>,
}

impl Report {
    /// Whether each check was made, and each order is final or dead-lettered.
    pub(crate) fn is_complete(&self) -> bool {
        self.unsettled.is_empty() && self.unchecked.is_empty() && self.forbidden.is_empty()
    }

    /// Adds a violation by an order.
    fn violated(&mut self, invariant: u8, order_id: OrderId, detail: impl Into<String>) {
        self.violations.add(Violation {
            invariant,
            subject: format!("order {order_id}"),
            detail: detail.into(),
        });
    }
}

/// What is checked, and how.
pub(crate) struct Checks<'a> {
    pub(crate) orders: &'a OrderStore,
    pub(crate) stock: &'a StockStore,
    pub(crate) config: &'a Config,
    pub(crate) events: Arc<OrderEventCodec>,
    pub(crate) statuses: Arc<OrderStatusCodec>,
    /// The invariants that the caller leaves out: 6, 7 or both.
    pub(crate) without: &'a [u8],
    /// The longest wait for orders in flight.
    pub(crate) settle: Duration,
    /// The age of the oldest orders that invariants 3, 5 and 7 are checked of. `None`: of all.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) progress: Progress,
}

/// What a thread needs that reads the topics.
struct TopicAccess {
    kafka: config::KafkaConfig,
    names: config::TopicsConfig,
    events: Arc<OrderEventCodec>,
    statuses: Arc<OrderStatusCodec>,
}

impl Checks<'_> {
    fn is_without(&self, invariant: u8) -> bool {
        self.without.contains(&invariant)
    }

    /// The lowest id of the orders that are checked. `None` if all are.
    fn first_order(&self) -> Option<OrderId> {
        self.since.map(OrderId::first_of)
    }

    fn topics(&self) -> TopicAccess {
        TopicAccess {
            kafka: self.config.kafka.clone(),
            names: self.config.topics.clone(),
            events: Arc::clone(&self.events),
            statuses: Arc::clone(&self.statuses),
        }
    }
}

/// Checks both stores, the locks, and the events before the committed offsets.
///
/// Fails with [`StoreError`] if a store cannot be read. The report names all else that cannot be
/// read.
pub(crate) async fn verify(checks: &Checks<'_>) -> Result<Report, StoreError> {
    let mut report = if checks.is_without(7) {
        let mut report = stores::check(checks).await?;
        report.left_out.push(
            "invariant 7, the committed offsets, and the dead letters: --without 7".to_owned(),
        );
        report
    } else {
        let (mut report, passed) = tokio::try_join!(stores::check(checks), events::check(checks))?;
        report.events = passed.count;
        report.violations.extend(passed.violations);
        let unchecked = passed.unchecked.into_iter();
        report
            .unchecked
            .extend(unchecked.map(|why| format!("invariant 7, the committed offsets: {why}")));
        report
    };
    if let Some(since) = checks.since {
        let since = since.to_rfc3339_opts(SecondsFormat::Secs, true);
        report.left_out.push(format!("invariants 3, 5 and 7 of orders before {since}: --since"));
    }
    checks.progress.end();
    Ok(report)
}
