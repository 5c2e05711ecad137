//! What a process needs, tried from its start and again while it is idle.

use std::sync::Arc;

use super::roles::{Role, Shared};
use crate::{
    config::{LockFallback, LockStrategy},
    kafka::{BacklogWatch, KafkaProbe},
    lock::MastersProbe,
    store::{OrderStore, StockStore, Work},
    telemetry::{Dependency, Need},
};

impl Shared {
    /// Tries what all roles of the process share. Fails where a configuration is refused.
    pub(super) fn watch_servers(&self) -> anyhow::Result<()> {
        self.watch_kafka()?;
        if self.runs(Role::Worker) && self.config.lock.strategy == LockStrategy::Redlock {
            self.watch_redis()?;
        }
        let (kafka, topics) = (&self.config.kafka, &self.config.topics);
        for (consumer, group_id, topic) in [
            (Role::Worker, &kafka.group_id, &topics.orders),
            (Role::Compensator, &self.config.compensator.group_id, &topics.order_status),
        ] {
            if !self.runs(consumer) {
                let watch = BacklogWatch::new(kafka, group_id, topic, self.metrics.clone())?;
                tokio::spawn(watch.run(self.shutdown.clone()));
            }
        }
        Ok(())
    }

    /// Tries the order store as the roles of the process work with it. Only the first of them does.
    pub(super) fn watch_order_store(&self, role: Role, store: &OrderStore) {
        let work = [(Role::Ingest, Work::Place), (Role::Compensator, Work::Compensate)];
        let Some(work) = self.work_at_store(role, work) else { return };
        let (store, dependency) = (store.clone(), self.dependency("order_store", Need::Always));
        let attempt = move || {
            let (store, work) = (store.clone(), Arc::clone(&work));
            async move {
                let tried = store.probe(&work).await;
                store.database().observe_pool();
                tried
            }
        };
        tokio::spawn(dependency.watch(attempt, self.shutdown.clone()));
    }

    /// The same of the stock store, which ingest can do without.
    pub(super) fn watch_stock_store(&self, role: Role, store: &StockStore) {
        let work = [(Role::Ingest, Work::Read), (Role::Worker, Work::Deduct)];
        let Some(work) = self.work_at_store(role, work) else { return };
        let need = if self.runs(Role::Worker) { Need::Always } else { Need::Rollout };
        let (store, dependency) = (store.clone(), self.dependency("stock_store", need));
        let attempt = move || {
            let (store, work) = (store.clone(), Arc::clone(&work));
            async move {
                let tried = store.probe(&work).await;
                store.database().observe_pool();
                tried
            }
        };
        tokio::spawn(dependency.watch(attempt, self.shutdown.clone()));
    }

    /// What the roles of the process do with a store; `None` where an earlier role tries all of it.
    fn work_at_store(&self, role: Role, work: [(Role, Work); 2]) -> Option<Arc<[Work]>> {
        let running: Vec<_> = work.into_iter().filter(|(role, _)| self.runs(*role)).collect();
        let is_first = running.first().is_some_and(|(first, _)| *first == role);
        is_first.then(|| running.into_iter().map(|(_, work)| work).collect())
    }

    /// Asks the brokers for the topics that the roles read or write. Ingest alone can do without
    /// brokers: the outbox keeps its events.
    fn watch_kafka(&self) -> anyhow::Result<()> {
        let topics = &self.config.topics;
        let mut wanted = vec![topics.orders.clone()];
        for (role, dead_letters) in
            [(Role::Worker, &topics.orders_dlq), (Role::Compensator, &topics.order_status_dlq)]
        {
            if self.runs(role) {
                wanted.extend([topics.order_status.clone(), dead_letters.clone()]);
            }
        }
        let need = if wanted.len() > 1 { Need::Always } else { Need::Rollout };
        let probe = KafkaProbe::new(&self.config.kafka, &self.config.kafka.group_id)?;
        let wanted: Arc<[String]> = wanted.into();
        let attempt = move || {
            let (probe, wanted) = (probe.clone(), Arc::clone(&wanted));
            async move { probe.find(&wanted).await }
        };
        tokio::spawn(self.dependency("kafka", need).watch(attempt, self.shutdown.clone()));
        Ok(())
    }

    /// Tries the Redis masters. Where row locks take over, they are not missed.
    fn watch_redis(&self) -> anyhow::Result<()> {
        let config = &self.config;
        let need =
            if config.lock.fallback == LockFallback::Row { Need::Rollout } else { Need::Always };
        let probe = Arc::new(MastersProbe::new(&config.lock, &config.redis, &self.metrics)?);
        let attempt = move || {
            let probe = Arc::clone(&probe);
            async move { probe.attempt().await }
        };
        tokio::spawn(self.dependency("redis", need).watch(attempt, self.shutdown.clone()));
        Ok(())
    }

    fn dependency(&self, name: &'static str, need: Need) -> Dependency {
        let up = self.metrics.dependency_up.with_label_values(&[name]);
        Dependency::new(self.health.register(name), need, up)
    }
}
