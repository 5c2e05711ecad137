use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector, process_collector::ProcessCollector,
};

const FAST_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const ORDER_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0];

/// Every metric of the project. Cheap to clone; labels are bounded, and never an order's or a product's id.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    pub orders_ingested: IntCounterVec,
    pub orders_decided: IntCounterVec,
    pub order_latency: Histogram,
    pub batch_orders: Histogram,
    pub batch_seconds: HistogramVec,
    pub lock_wait: HistogramVec,
    pub lock_hold: HistogramVec,
    pub lock_failures: IntCounterVec,
    pub lock_fallback: IntGauge,
    pub stale_writes_rejected: IntCounter,
    pub consumer_lag: IntGaugeVec,
    pub rebalances: IntCounterVec,
    pub consumer_recreations: IntCounterVec,
    pub dead_letters: IntCounterVec,
    pub lanes_stopped: IntGaugeVec,
    pub outbox_pending: IntGauge,
    pub outbox_oldest: Gauge,
    pub pending_oldest: Gauge,
    pub pending_orders: IntCounterVec,
    pub compensations: IntCounterVec,
    pub retention_deleted: IntCounterVec,
    pub retries: IntCounterVec,
    pub pool_connections: IntGaugeVec,
    pub http_requests: IntCounterVec,
    pub http_request_seconds: HistogramVec,
}

impl Metrics {
    /// A registry of its own. Fails only where two metrics bear one name, which a test rules out.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let build = gauge_vec("stocklock_build_info", "What is running; the value is always 1.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        let metrics = Self {
            orders_ingested: counters("stocklock_orders_ingested_total", "Orders asked for, by result.", &["result"])?,
            orders_decided: counters("stocklock_orders_decided_total", "Orders decided.", &["outcome", "strategy"])?,
            order_latency: histogram(
                "stocklock_order_latency_seconds",
                "From an order's acceptance to its decision.",
                ORDER_SECONDS,
            )?,
            batch_orders: histogram("stocklock_batch_orders", "Order events in a batch.", BATCH_SIZES)?,
            batch_seconds: histograms("stocklock_batch_seconds", "Time of a batch's stages.", &["stage"])?,
            lock_wait: histograms("stocklock_lock_wait_seconds", "Time to get a batch's locks.", &["strategy"])?,
            lock_hold: histograms("stocklock_lock_hold_seconds", "Time a batch's locks are held.", &["strategy"])?,
            lock_failures: counters("stocklock_lock_failures_total", "Locks not had, or lost.", &["cause"])?,
            lock_fallback: IntGauge::new(
                "stocklock_lock_fallback",
                "Lanes that take row locks, as no majority of the Redis masters answers.",
            )?,
            stale_writes_rejected: IntCounter::new(
                "stocklock_stale_writes_rejected_total",
                "Writes that the version guard refused, as another had written meanwhile.",
            )?,
            consumer_lag: gauge_vec("stocklock_consumer_lag", "Messages not yet handled.", &["topic", "partition"])?,
            rebalances: counters("stocklock_rebalances_total", "Partitions assigned or taken away.", &["kind"])?,
            consumer_recreations: counters(
                "stocklock_consumer_recreations_total",
                "Consumers replaced, as one of their partitions had stalled.",
                &["topic"],
            )?,
            dead_letters: counters("stocklock_dead_letters_total", "Messages set aside.", &["topic", "class"])?,
            lanes_stopped: gauge_vec(
                "stocklock_lanes_stopped",
                "Lanes that stand still, as too many of their messages would be dead letters.",
                &["topic"],
            )?,
            outbox_pending: IntGauge::new("stocklock_outbox_pending", "Events committed and not yet published.")?,
            outbox_oldest: Gauge::new("stocklock_outbox_oldest_seconds", "Age of the oldest unpublished event.")?,
            pending_oldest: Gauge::new("stocklock_pending_oldest_seconds", "Age of the oldest pending order.")?,
            pending_orders: counters(
                "stocklock_pending_orders_total",
                "Orders pending for too long: produced again, or too old for it.",
                &["result"],
            )?,
            compensations: counters("stocklock_compensations_total", "Orders moved by the compensator.", &["kind"])?,
            retention_deleted: counters("stocklock_retention_deleted_total", "Old rows deleted.", &["table"])?,
            retries: counters("stocklock_retries_total", "Attempts repeated after a failure.", &["dependency"])?,
            pool_connections: gauge_vec("stocklock_pool_connections", "Database connections.", &["store", "state"])?,
            http_requests: counters("stocklock_http_requests_total", "HTTP requests.", &["route", "status"])?,
            http_request_seconds: histograms("stocklock_http_request_seconds", "Time to answer.", &["route"])?,
            registry,
        };
        metrics.register()?;
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// A rate needs a first value: what may happen is shown before it does.
    fn begin_at_zero(&self) {
        let known: [(_, &[_]); _] = [
            (&self.orders_ingested, &["accepted", "invalid", "rejected"]),
            (&self.lock_failures, &["contended", "unavailable", "lost"]),
            (&self.rebalances, &["assign", "revoke", "lost"]),
            (&self.compensations, &["completed", "failed", "released"]),
            (&self.pending_orders, &["produced", "expired"]),
            (&self.retention_deleted, &["order_outcomes", "stock_movements", "orders", "idempotency_keys"]),
        ];
        for (counter, values) in known {
            for value in values {
                counter.with_label_values(&[*value]);
            }
        }
    }

    /// The text format that Prometheus scrapes.
    pub fn exposition(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics do not encode");
        }
        text
    }

    fn register(&self) -> prometheus::Result<()> {
        let all: [Box<dyn Collector>; 25] = [
            Box::new(self.orders_ingested.clone()),
            Box::new(self.orders_decided.clone()),
            Box::new(self.order_latency.clone()),
            Box::new(self.batch_orders.clone()),
            Box::new(self.batch_seconds.clone()),
            Box::new(self.lock_wait.clone()),
            Box::new(self.lock_hold.clone()),
            Box::new(self.lock_failures.clone()),
            Box::new(self.lock_fallback.clone()),
            Box::new(self.stale_writes_rejected.clone()),
            Box::new(self.consumer_lag.clone()),
            Box::new(self.rebalances.clone()),
            Box::new(self.consumer_recreations.clone()),
            Box::new(self.dead_letters.clone()),
            Box::new(self.lanes_stopped.clone()),
            Box::new(self.outbox_pending.clone()),
            Box::new(self.outbox_oldest.clone()),
            Box::new(self.pending_oldest.clone()),
            Box::new(self.pending_orders.clone()),
            Box::new(self.compensations.clone()),
            Box::new(self.retention_deleted.clone()),
            Box::new(self.retries.clone()),
            Box::new(self.pool_connections.clone()),
            Box::new(self.http_requests.clone()),
            Box::new(self.http_request_seconds.clone()),
        ];
        all.into_iter().try_for_each(|collector| self.registry.register(collector))
    }
}

fn counters(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauge_vec(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
}

fn histograms(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<HistogramVec> {
    HistogramVec::new(HistogramOpts::new(name, help).buckets(FAST_SECONDS.to_vec()), labels)
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
