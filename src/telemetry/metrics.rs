use std::time::Duration;

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
    process_collector::ProcessCollector,
};

use super::MeasuredBy;

const FAST_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const ORDER_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];
const BATCH_SIZES: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0];

/// Every metric of the project. Cheap to clone; labels are bounded, and never an order's or a product's id.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    measured_by: MeasuredBy,
    pub(crate) orders_ingested: IntCounterVec,
    pub(crate) orders_decided: IntCounterVec,
    pub(crate) order_latency: Histogram,
    pub(crate) batch_orders: Histogram,
    pub(crate) batch_seconds: HistogramVec,
    pub(crate) lock_wait: HistogramVec,
    pub(crate) lock_hold: HistogramVec,
    pub lock_failures: IntCounterVec,
    pub(crate) lock_fallback: IntGauge,
    pub stale_writes_rejected: IntCounter,
    pub(crate) consumer_lag: IntGaugeVec,
    pub(crate) consumer_lag_seconds: GaugeVec,
    pub(crate) dependency_up: IntGaugeVec,
    pub(crate) redis_master_up: IntGaugeVec,
    pub rebalances: IntCounterVec,
    pub(crate) consumer_recreations: IntCounterVec,
    pub(crate) poll_errors: IntCounterVec,
    pub(crate) dead_letters: IntCounterVec,
    pub(crate) lanes_stopped: IntGaugeVec,
    pub(crate) outbox_pending: IntGauge,
    pub(crate) outbox_oldest: Gauge,
    pub pending_oldest: Gauge,
    pub pending_orders: IntCounterVec,
    pub releases_owed: IntGauge,
    pub owed_releases: IntCounterVec,
    pub(crate) compensations: IntCounterVec,
    pub(crate) retention_deleted: IntCounterVec,
    pub retries: IntCounterVec,
    pub(crate) pool_connections: IntGaugeVec,
    pub(crate) http_requests: IntCounterVec,
    pub(crate) http_request_seconds: HistogramVec,
}

impl Metrics {
    /// A registry of its own. Fails only where two metrics bear one name, which a test rules out.
    #[expect(clippy::too_many_lines, reason = "it is the list of all metrics")]
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let make = Maker(&registry);
        let build = make.gauges(
            "stocklock_build_info",
            "What is running; the value is always 1.",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            orders_ingested: make.counters(
                "stocklock_orders_ingested_total",
                "Orders asked for, by result.",
                &["result"],
            )?,
            orders_decided: make.counters(
                "stocklock_orders_decided_total",
                "Orders decided.",
                &["outcome", "strategy"],
            )?,
            order_latency: make.histogram(
                "stocklock_order_latency_seconds",
                "From an order's acceptance to its decision.",
                ORDER_SECONDS,
            )?,
            batch_orders: make.histogram(
                "stocklock_batch_orders",
                "Order events in a batch.",
                BATCH_SIZES,
            )?,
            batch_seconds: make.histograms(
                "stocklock_batch_seconds",
                "Time of a batch's stages.",
                &["stage"],
            )?,
            lock_wait: make.histograms(
                "stocklock_lock_wait_seconds",
                "Time to get a batch's locks.",
                &["strategy"],
            )?,
            lock_hold: make.histograms(
                "stocklock_lock_hold_seconds",
                "Time a batch's locks are held.",
                &["strategy"],
            )?,
            lock_failures: make.counters(
                "stocklock_lock_failures_total",
                "Locks not had, or lost.",
                &["cause"],
            )?,
            lock_fallback: make.gauge(
                "stocklock_lock_fallback",
                "Lanes that take row locks, as no majority of the Redis masters answers.",
            )?,
            stale_writes_rejected: make.counter(
                "stocklock_stale_writes_rejected_total",
                "Writes that the version guard refused, as another had written meanwhile.",
            )?,
            consumer_lag: make.gauges(
                "stocklock_consumer_lag",
                "Messages not yet handled.",
                &["topic", "partition"],
            )?,
            consumer_lag_seconds: make.float_gauges(
                "stocklock_consumer_lag_seconds",
                "Age of the oldest message not yet handled.",
                &["topic", "partition"],
            )?,
            dependency_up: make.gauges(
                "stocklock_dependency_up",
                "Whether the dependency can be used as the role needs it: 1 or 0.",
                &["dependency"],
            )?,
            redis_master_up: make.gauges(
                "stocklock_redis_master_up",
                "Whether the Redis master locks keys: 1 or 0.",
                &["master"],
            )?,
            rebalances: make.counters(
                "stocklock_rebalances_total",
                "Partitions assigned or revoked.",
                &["kind"],
            )?,
            consumer_recreations: make.counters(
                "stocklock_consumer_recreations_total",
                "Consumers replaced, as they made no progress or their topic was another one.",
                &["topic"],
            )?,
            poll_errors: make.counters(
                "stocklock_poll_errors_total",
                "Polls of a topic that failed.",
                &["topic"],
            )?,
            dead_letters: make.counters(
                "stocklock_dead_letters_total",
                "Messages dead-lettered.",
                &["topic", "class"],
            )?,
            lanes_stopped: make.gauges(
                "stocklock_lanes_stopped",
                "Lanes that stand still, as too many of their messages would be dead letters.",
                &["topic"],
            )?,
            outbox_pending: make
                .gauge("stocklock_outbox_pending", "Events committed and not yet published.")?,
            outbox_oldest: make.float_gauge(
                "stocklock_outbox_oldest_seconds",
                "Age of the oldest unpublished event.",
            )?,
            pending_oldest: make.float_gauge(
                "stocklock_pending_oldest_seconds",
                "Age of the oldest pending order.",
            )?,
            pending_orders: make.counters(
                "stocklock_pending_orders_total",
                "Orders pending for too long: produced again, or too old for it.",
                &["result"],
            )?,
            releases_owed: make.gauge(
                "stocklock_releases_owed",
                "Failed and cancelled orders whose release no worker has reported as done.",
            )?,
            owed_releases: make.counters(
                "stocklock_owed_releases_total",
                "Releases owed for too long: produced again, or too old for it.",
                &["result"],
            )?,
            compensations: make.counters(
                "stocklock_compensations_total",
                "Orders moved by the compensator, and tombstones passed over.",
                &["kind"],
            )?,
            retention_deleted: make.counters(
                "stocklock_retention_deleted_total",
                "Old rows deleted.",
                &["table"],
            )?,
            retries: make.counters(
                "stocklock_retries_total",
                "Attempts repeated after a failure.",
                &["dependency"],
            )?,
            pool_connections: make.gauges(
                "stocklock_pool_connections",
                "Database connections.",
                &["store", "state"],
            )?,
            http_requests: make.counters(
                "stocklock_http_requests_total",
                "HTTP requests.",
                &["route", "status"],
            )?,
            http_request_seconds: make.histograms(
                "stocklock_http_request_seconds",
                "Time to answer.",
                &["route"],
            )?,
            registry: registry.clone(),
            measured_by: MeasuredBy::ALL,
        };
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// The same metrics, of which only what these roles measure is exposed.
    #[must_use]
    pub(crate) fn measured_by(self, measured_by: MeasuredBy) -> Self {
        Self { measured_by, ..self }
    }

    /// Creates every series at 0 whose labels do not depend on the configuration, so that `rate()`
    /// sees the first increment. [`super::zeros`] creates those that do.
    fn begin_at_zero(&self) {
        let known: [(_, &[_]); _] = [
            (&self.orders_ingested, &["accepted", "invalid", "rejected", "abandoned"]),
            (&self.lock_failures, &["contended", "unavailable", "lost"]),
            (&self.rebalances, &["assign", "revoke", "lost"]),
            (
                &self.compensations,
                &["completed", "failed", "cancelled", "released", "release_done", "tombstone"],
            ),
            (&self.pending_orders, &["produced", "expired"]),
            (&self.owed_releases, &["produced", "expired"]),
        ];
        for (counter, values) in known {
            for value in values {
                counter.with_label_values(&[*value]);
            }
        }
    }

    /// Shows a partition's lag in messages, and in ms where it is known.
    pub(crate) fn set_lag(&self, topic: &str, partition: i32, messages: i64, age_ms: Option<i64>) {
        let labels = [topic, &partition.to_string()];
        self.consumer_lag.with_label_values(&labels).set(messages);
        if let Some(age) = age_ms.and_then(|age| u64::try_from(age).ok()) {
            self.consumer_lag_seconds
                .with_label_values(&labels)
                .set(Duration::from_millis(age).as_secs_f64());
        }
    }

    /// Shows no lag of a partition that is not measured any more.
    pub(crate) fn forget_lag(&self, topic: &str, partition: i32) {
        let labels = [topic, &partition.to_string()];
        let _absent = self.consumer_lag.remove_label_values(&labels);
        let _absent = self.consumer_lag_seconds.remove_label_values(&labels);
    }

    /// All series that there are, of whatever role.
    #[cfg(test)]
    pub(crate) fn families(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.registry.gather()
    }

    /// The text format that Prometheus scrapes, of what the process measures.
    pub(crate) fn exposition(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut families = self.registry.gather();
        families.retain(|family| self.measured_by.measures(family.name()));
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics do not encode");
        }
        text
    }
}

/// Makes metrics and registers each at once, so that none is forgotten.
struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(name, help)?)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<IntCounterVec> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register(IntGauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn float_gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<GaugeVec> {
        self.register(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn float_gauge(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.register(Gauge::new(name, help)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        self.register(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        )?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::Result<HistogramVec> {
        self.register(HistogramVec::new(
            HistogramOpts::new(name, help).buckets(FAST_SECONDS.to_vec()),
            labels,
        )?)
    }

    fn register<C: Collector + Clone + 'static>(&self, metric: C) -> prometheus::Result<C> {
        self.0.register(Box::new(metric.clone()))?;
        #[cfg(test)]
        super::made::note(&metric);
        Ok(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_register_and_are_exposed() {
        let metrics = Metrics::new().unwrap();
        metrics.orders_decided.with_label_values(&["COMPLETED", "row"]).inc();
        let text = String::from_utf8(metrics.exposition()).unwrap();
        for expected in [
            "stocklock_orders_decided_total{outcome=\"COMPLETED\",strategy=\"row\"} 1",
            "stocklock_stale_writes_rejected_total 0",
            "stocklock_lock_failures_total{cause=\"lost\"} 0",
            "stocklock_build_info",
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(expected), "{expected} is missing from:\n{text}");
        }
    }
}
