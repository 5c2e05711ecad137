//! What each role needs of the dependencies.

use clap::ValueEnum;

use crate::{
    config::{Config, LockStrategy},
    kafka::{GroupNeed, TopicNeed, topic_names},
    store::{StoreLook, StoreName, StoreUse},
};

/// The role whose dependencies are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LookedRole {
    Setup,
    Ingest,
    Worker,
    Compensator,
}

impl LookedRole {
    pub(super) const ALL: [Self; 4] = [Self::Setup, Self::Ingest, Self::Worker, Self::Compensator];
}

/// The needs of some roles together.
pub(super) struct Needs<'a> {
    config: &'a Config,
    roles: &'a [LookedRole],
}

impl<'a> Needs<'a> {
    pub(super) fn new(config: &'a Config, roles: &'a [LookedRole]) -> Self {
        Self { config, roles }
    }

    fn has(&self, role: LookedRole) -> bool {
        self.roles.contains(&role)
    }

    /// Whether the roles use Redis: workers for their locks and leases, compensators for the lease
    /// of retention, without which no old order is deleted.
    pub(super) fn redis(&self) -> bool {
        let uses = self.has(LookedRole::Worker) || self.has(LookedRole::Compensator);
        uses && self.config.lock.strategy == LockStrategy::Redlock
    }

    /// Whether the role serves the HTTP API.
    pub(super) fn http(&self) -> bool {
        self.has(LookedRole::Ingest)
    }

    /// The stores that the roles use.
    pub(super) fn stores(&self) -> Vec<StoreLook<'a>> {
        let orders = [
            (LookedRole::Ingest, Some(StoreUse::Place)),
            (LookedRole::Compensator, Some(StoreUse::Compensate)),
        ];
        let deducting = match self.config.topics.stock_adjustments {
            Some(_) => StoreUse::DeductAndAdjust,
            None => StoreUse::Deduct,
        };
        let levels = self.config.topics.stock_levels.as_ref().map(|_| StoreUse::PublishLevels);
        let stock = [
            (LookedRole::Ingest, Some(StoreUse::Read)),
            (LookedRole::Worker, Some(deducting)),
            (LookedRole::Worker, levels),
        ];
        let looks =
            [self.store(StoreName::OrderStore, &orders), self.store(StoreName::StockStore, &stock)];
        looks.into_iter().flatten().collect()
    }

    fn store(
        &self,
        store: StoreName,
        uses: &[(LookedRole, Option<StoreUse>)],
    ) -> Option<StoreLook<'a>> {
        let (config, other) = match store {
            StoreName::OrderStore => (&self.config.order_store, &self.config.stock_store),
            StoreName::StockStore => (&self.config.stock_store, &self.config.order_store),
        };
        let needed = uses.iter().filter(|(role, _)| self.has(*role));
        let uses: Vec<_> = needed.filter_map(|(_, used)| *used).collect();
        let is_migrated = self.has(LookedRole::Setup);
        // A process of each role that uses this store, and of those that use the other one if both
        // are on one server: two roles use each store.
        let shared = if config.server() == other.server() { 2 * other.pool_max } else { 0 };
        (is_migrated || !uses.is_empty()).then(|| StoreLook {
            store,
            config,
            lock_limit: self.config.lock.ttl,
            uses,
            is_migrated,
            is_verified: LookedRole::ALL.iter().all(|role| self.has(*role)),
            connections: 2 * config.pool_max + shared,
        })
    }

    /// The topics that the roles read and write. `setup` describes all of them.
    pub(super) fn topics(&self) -> Vec<TopicNeed> {
        let names = topic_names(&self.config.topics);
        let needs = names.into_iter().map(|name| TopicNeed {
            topic: name.to_owned(),
            is_read: self.consumed().iter().any(|group| group.topic == name),
            is_written: self.written().contains(&name),
        });
        let is_setup = self.has(LookedRole::Setup);
        needs.filter(|need| is_setup || need.is_read || need.is_written).collect()
    }

    fn written(&self) -> Vec<&'a str> {
        let topics = &self.config.topics;
        let mut written = Vec::new();
        if self.has(LookedRole::Ingest) {
            written.extend([&*topics.orders, &*topics.order_status]);
            written.extend(topics.order_requests.as_ref().map(|topic| &*topic.dead_letters));
        }
        if self.has(LookedRole::Worker) {
            written.extend([&*topics.order_status, &*topics.orders_dlq]);
            written.extend(topics.stock_adjustments.as_ref().map(|topic| &*topic.dead_letters));
            written.extend(topics.stock_levels.as_deref());
        }
        if self.has(LookedRole::Compensator) {
            written.extend([&*topics.orders, &*topics.order_status, &*topics.order_status_dlq]);
        }
        written
    }

    /// The consumer groups of the roles, each with its topic.
    pub(super) fn consumed(&self) -> Vec<GroupNeed> {
        let Config { kafka, topics, compensator, ingest, .. } = self.config;
        let group = |group_id: &str, topic: &str| GroupNeed {
            group_id: group_id.to_owned(),
            topic: topic.to_owned(),
        };
        let mut groups = Vec::new();
        if self.has(LookedRole::Worker) {
            groups.push(group(&kafka.group_id, &topics.orders));
            let adjustments = topics.stock_adjustments.as_ref();
            groups.extend(
                adjustments.map(|topic| group(&kafka.adjusters_group_id(), &topic.requests)),
            );
        }
        if self.has(LookedRole::Compensator) {
            groups.push(group(&compensator.group_id, &topics.order_status));
        }
        if self.has(LookedRole::Ingest) {
            let requests = topics.order_requests.as_ref();
            groups.extend(requests.map(|topic| group(&ingest.group_id, &topic.requests)));
        }
        groups
    }
}
