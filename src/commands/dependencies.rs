//! The dependencies of a process. It tries each from its start, also while it has no work.

use std::sync::Arc;

use super::roles::{Role, SharedParts};
use crate::{
    config::{IntakeTopic, LockFallback, LockStrategy},
    kafka::{BacklogWatch, KafkaProbe},
    lock::MastersProbe,
    store::{OrderStore, StockStore, StoreUse},
    telemetry::{Dependency, Need},
};

impl SharedParts {
    /// Tries the servers that all roles of the process share. Fails if a client refuses its
    /// settings.
    pub(super) fn watch_servers(&self) -> anyhow::Result<()> {
        self.watch_kafka()?;
        self.watch_registry();
        match self.config.lock.strategy {
            LockStrategy::Redlock if self.runs(Role::Worker) => self.watch_redis()?,
            LockStrategy::Redlock | LockStrategy::Row => {}
        }
        let (kafka, topics) = (&self.config.kafka, &self.config.topics);
        let requests = topics.order_requests.as_ref();
        let intake =
            requests.map(|topic| (Role::Ingest, &self.config.ingest.group_id, &topic.requests));
        let consumed = [
            (Role::Worker, &kafka.group_id, &topics.orders),
            (Role::Compensator, &self.config.compensator.group_id, &topics.order_status),
        ];
        for (consumer, group_id, topic) in consumed.into_iter().chain(intake) {
            if !self.runs(consumer) {
                let watch = BacklogWatch::new(kafka, group_id, topic, self.metrics.clone())?;
                tokio::spawn(watch.run(self.shutdown.clone()));
            }
        }
        Ok(())
    }

    /// Tries the order store with the statements of all roles of the process. Only the first of
    /// these roles starts it.
    pub(super) fn watch_order_store(&self, role: Role, store: &OrderStore) {
        let work = [(Role::Ingest, StoreUse::Place), (Role::Compensator, StoreUse::Compensate)];
        let Some(work) = self.work_at_store(role, &work) else { return };
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

    /// Tries the stock store in the same way. Ingest is ready without it.
    pub(super) fn watch_stock_store(&self, role: Role, store: &StockStore) {
        let worker = match self.config.topics.stock_adjustments {
            Some(_) => StoreUse::DeductAndAdjust,
            None => StoreUse::Deduct,
        };
        let mut work = vec![(Role::Ingest, StoreUse::Read), (Role::Worker, worker)];
        if self.config.topics.stock_levels.is_some() {
            work.push((Role::Worker, StoreUse::PublishLevels));
        }
        let Some(work) = self.work_at_store(role, &work) else { return };
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

    /// The work of all roles of the process at a store. `None` if an earlier role tries it.
    fn work_at_store(&self, role: Role, work: &[(Role, StoreUse)]) -> Option<Arc<[StoreUse]>> {
        let running: Vec<_> = work.iter().filter(|(role, _)| self.runs(*role)).collect();
        let is_first = running.first().is_some_and(|(first, _)| *first == role);
        is_first.then(|| running.into_iter().map(|(_, work)| *work).collect())
    }

    /// Asks the brokers for the topics that the roles read or write. Ingest alone is ready without
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
        if let Some(topic) = topics.stock_adjustments.as_ref().filter(|_| self.runs(Role::Worker)) {
            wanted.extend([topic.requests.clone(), topic.dead_letters.clone()]);
        }
        if self.runs(Role::Worker) {
            wanted.extend(topics.stock_levels.clone());
        }
        let need = if wanted.len() > 1 { Need::Always } else { Need::Rollout };
        if self.runs(Role::Ingest)
            && let Some(IntakeTopic { requests, dead_letters }) = &topics.order_requests
        {
            wanted.extend([requests.clone(), dead_letters.clone()]);
        }
        let probe = KafkaProbe::new(&self.config.kafka, &self.config.kafka.group_id)?;
        let wanted: Arc<[String]> = wanted.into();
        let attempt = move || {
            let (probe, wanted) = (probe.clone(), Arc::clone(&wanted));
            async move { probe.find(&wanted).await }
        };
        tokio::spawn(self.dependency("kafka", need).watch(attempt, self.shutdown.clone()));
        Ok(())
    }

    /// Asks the schema registry for a subject. The roles are ready without it once they know the
    /// ids of their schemas.
    fn watch_registry(&self) {
        let Some(registry) = self.registry.clone() else { return };
        let attempt = move || {
            let registry = registry.clone();
            async move { registry.client.probe().await }
        };
        let dependency = self.dependency("schema_registry", Need::Rollout);
        tokio::spawn(dependency.watch(attempt, self.shutdown.clone()));
    }

    /// Tries the Redis masters. With the fallback to row locks, a worker is ready without them.
    fn watch_redis(&self) -> anyhow::Result<()> {
        let config = &self.config;
        let need = match config.lock.fallback {
            LockFallback::Row => Need::Rollout,
            LockFallback::None => Need::Always,
        };
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
