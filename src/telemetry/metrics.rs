use std::time::Duration;

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Registry, TextEncoder,
};

mod maker;

use super::MeasuredBy;
use maker::Maker;

const FAST_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const ORDER_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];
const BATCH_SIZES: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0];

/// Declares [`Metrics`]. An entry is a field and the call that makes and registers it, so that no
/// metric can be forgotten.
macro_rules! metrics {
    ($($visibility:vis $field:ident: $type:ty = $make:ident($($argument:expr),+ $(,)?);)+) => {
        /// Every metric of the project. Cheap to clone.
        ///
        /// The values of a label are few: the id of an order or of a product is never a label.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            registry: Registry,
            measured_by: MeasuredBy,
            $($visibility $field: $type,)+
        }

        impl Metrics {
            /// Makes all metrics, in a registry of their own. Fails only if two metrics have one
            /// name; a test rules that out.
            pub fn new() -> prometheus::Result<Self> {
                let registry = Registry::new();
                let make = Maker(&registry);
                make.process_metrics()?;
                let metrics = Self {
                    $($field: make.$make($($argument),+)?,)+
                    measured_by: MeasuredBy::ALL,
                    registry: registry.clone(),
                };
                metrics.begin_at_zero();
                Ok(metrics)
            }
        }
    };
}

metrics! {
    pub(crate) orders_ingested: IntCounterVec = counters(
        "stocklock_orders_ingested_total",
        "Requests to place an order: accepted, replayed (an earlier request made the order), \
         invalid (422), rejected (other errors), or abandoned (the client disconnected before its \
         transaction began).",
        &["result"],
    );
    pub(crate) orders_decided: IntCounterVec = counters(
        "stocklock_orders_decided_total",
        "Orders decided by the worker, and releases done.",
        &["outcome", "strategy"],
    );
    pub(crate) order_latency: Histogram = histogram(
        "stocklock_order_latency_seconds",
        "Time from the acceptance of an order to its decision.",
        ORDER_SECONDS,
    );
    pub(crate) batch_orders: Histogram = histogram(
        "stocklock_batch_orders",
        "Order events of a batch.",
        BATCH_SIZES,
    );
    pub(crate) batch_seconds: HistogramVec = histograms(
        "stocklock_batch_seconds",
        "Time that a batch takes in a stage: lock, transaction, unlock or publish.",
        &["stage"],
    );
    pub(crate) lock_wait: HistogramVec = histograms(
        "stocklock_lock_wait_seconds",
        "Time until a batch holds its locks.",
        &["strategy"],
    );
    pub(crate) lock_hold: HistogramVec = histograms(
        "stocklock_lock_hold_seconds",
        "Time that a batch holds its locks.",
        &["strategy"],
    );
    pub lock_failures: IntCounterVec = counters(
        "stocklock_lock_failures_total",
        "Locks that a batch could not acquire (contended, unavailable) or that it lost.",
        &["cause"],
    );
    pub(crate) lock_fallback: IntGauge = gauge(
        "stocklock_lock_fallback",
        "Lanes that use row locks, because no majority of the Redis masters answers.",
    );
    pub stale_writes_rejected: IntCounter = counter(
        "stocklock_stale_writes_rejected_total",
        "Writes of products that were refused, because the version had changed.",
    );
    pub levels_published: IntCounter = counter(
        "stocklock_levels_published_total",
        "Levels of products that the broker has acknowledged.",
    );
    pub level_notes: IntGauge = gauge(
        "stocklock_level_notes",
        "Products whose noted level waits to be published.",
    );
    pub(crate) consumer_lag: IntGaugeVec = gauges(
        "stocklock_consumer_lag",
        "Messages of a partition that are not handled yet.",
        &["topic", "partition"],
    );
    pub(crate) consumer_lag_seconds: GaugeVec = float_gauges(
        "stocklock_consumer_lag_seconds",
        "Age of the oldest message of a partition that is not handled yet.",
        &["topic", "partition"],
    );
    pub(crate) dependency_up: IntGaugeVec = gauges(
        "stocklock_dependency_up",
        "1 if the role can use the dependency as it needs to, else 0.",
        &["dependency"],
    );
    pub(super) ready: IntGauge = gauge(
        "stocklock_ready",
        "1 if the process is ready, as /readyz answers, else 0.",
    );
    pub(crate) redis_master_up: IntGaugeVec = gauges(
        "stocklock_redis_master_up",
        "1 if the Redis master locks keys, else 0.",
        &["master"],
    );
    pub rebalances: IntCounterVec = counters(
        "stocklock_rebalances_total",
        "Rebalances that assigned or revoked partitions, or in which they were lost.",
        &["kind"],
    );
    pub(crate) consumer_recreations: IntCounterVec = counters(
        "stocklock_consumer_recreations_total",
        "Consumers that were replaced: a partition stalled, the topic was created anew, or \
        the client could not continue.",
        &["topic"],
    );
    pub(crate) poll_errors: IntCounterVec = counters(
        "stocklock_poll_errors_total",
        "Polls of a topic that failed.",
        &["topic"],
    );
    pub(crate) dead_letters: IntCounterVec = counters(
        "stocklock_dead_letters_total",
        "Messages that were dead-lettered, by class.",
        &["topic", "class"],
    );
    pub(crate) lanes_stopped: IntGaugeVec = gauges(
        "stocklock_lanes_stopped",
        "Lanes that are halted, because too many of their messages would be dead-lettered.",
        &["topic"],
    );
    pub(crate) outbox_pending: IntGauge = gauge(
        "stocklock_outbox_pending",
        "Events committed and not published yet.",
    );
    pub(crate) outbox_max: IntGauge = gauge(
        "stocklock_outbox_max",
        "Pending events beyond which ingest answers 503 (ingest.outbox_max).",
    );
    pub(crate) outbox_oldest: Gauge = float_gauge(
        "stocklock_outbox_oldest_seconds",
        "Age of the oldest event that is not published yet.",
    );
    pub pending_oldest: Gauge = float_gauge(
        "stocklock_pending_oldest_seconds",
        "Age of the oldest pending order that can still be decided; 0 if there is none.",
    );
    pub pending_orders: IntCounterVec = counters(
        "stocklock_pending_orders_total",
        "Orders that were pending for too long: produced again, or expired.",
        &["result"],
    );
    pub releases_owed: IntGauge = gauge(
        "stocklock_releases_owed",
        "Releases that are owed: no worker has reported them as done. Without expired ones.",
    );
    pub releases_owed_oldest: Gauge = float_gauge(
        "stocklock_releases_owed_oldest_seconds",
        "How long the oldest owed release has been owed; 0 if none is owed. Without expired ones.",
    );
    pub owed_releases: IntCounterVec = counters(
        "stocklock_owed_releases_total",
        "Owed releases that ingest published (produced), or gave up as too old (expired).",
        &["result"],
    );
    pub holds_open: IntGauge = gauge(
        "stocklock_holds_open",
        "Orders that hold their stock and wait for a confirmation.",
    );
    pub(crate) holds_closed: IntCounterVec = counters(
        "stocklock_holds_closed_total",
        "Holds that were confirmed, cancelled, failed or expired.",
        &["how"],
    );
    pub hold_expiry_lag: Gauge = float_gauge(
        "stocklock_hold_expiry_lag_seconds",
        "How long the oldest due hold has been due; 0 if none is due.",
    );
    pub confirmations_too_late: IntCounter = counter(
        "stocklock_confirmations_too_late_total",
        "Reported confirmations that met a failed or cancelled order, and changed nothing.",
    );
    pub(crate) compensations: IntCounterVec = counters(
        "stocklock_compensations_total",
        "What the compensator did: orders moved (completed, reserved, failed, cancelled), releases \
        owed (released) and done (release_done), tombstones ignored (tombstone).",
        &["kind"],
    );
    pub(crate) retention_deleted: IntCounterVec = counters(
        "stocklock_retention_deleted_total",
        "Rows that retention deleted.",
        &["table"],
    );
    pub(crate) retention_passes: IntCounterVec = counters(
        "stocklock_retention_passes_total",
        "Passes of retention: complete (no old row is left), partial (more rows are left), failed.",
        &["store", "result"],
    );
    pub retries: IntCounterVec = counters(
        "stocklock_retries_total",
        "Attempts that were repeated after a failure of the dependency.",
        &["dependency"],
    );
    pub(crate) trace_spans: IntCounterVec = counters(
        "stocklock_trace_spans_total",
        "Spans by what became of them: exported, failed (the collector did not take them), or \
         dropped (too many waited).",
        &["result"],
    );
    pub(crate) transaction_seconds: HistogramVec = histograms(
        "stocklock_transaction_seconds",
        "Time of a database transaction, with the wait for a connection and all attempts.",
        &["name"],
    );
    pub(crate) pool_connections: IntGaugeVec = gauges(
        "stocklock_pool_connections",
        "Connections of this process to a store, idle or used.",
        &["store", "state"],
    );
    pub(crate) http_requests: IntCounterVec = counters(
        "stocklock_http_requests_total",
        "HTTP requests that were answered.",
        &["route", "status"],
    );
    pub(crate) http_refusals: IntCounterVec = counters(
        "stocklock_http_refusals_total",
        "Requests that were refused before their handler, and failed handshakes of TLS, by reason.",
        &["reason"],
    );
    pub(crate) http_reloads: IntCounterVec = counters(
        "stocklock_http_reloads_total",
        "Readings of tokens, of the provider's keys or of the certificate: ok, or failed (the last \
         good ones stay in use).",
        &["what", "result"],
    );
    pub(crate) http_outdated: IntGaugeVec = gauges(
        "stocklock_http_outdated",
        "1 if the last reading failed, so that older tokens, keys or certificates are in use.",
        &["what"],
    );
    pub(crate) http_request_seconds: HistogramVec = histograms(
        "stocklock_http_request_seconds",
        "Time until an HTTP request was answered.",
        &["route"],
    );
}

impl Metrics {
    /// Exposes only the metrics that these roles measure.
    #[must_use]
    pub(crate) fn measured_by(self, measured_by: MeasuredBy) -> Self {
        Self { measured_by, ..self }
    }

    /// Creates every series at 0 whose labels do not depend on the configuration, so that `rate()`
    /// sees the first increment. [`super::zeros`] creates those that do.
    fn begin_at_zero(&self) {
        let known: [(_, &[_]); _] = [
            (&self.orders_ingested, &["accepted", "replayed", "invalid", "rejected", "abandoned"]),
            (&self.lock_failures, &["contended", "unavailable", "lost"]),
            (&self.rebalances, &["assign", "revoke", "lost"]),
            (
                &self.compensations,
                &[
                    "completed",
                    "reserved",
                    "failed",
                    "cancelled",
                    "released",
                    "release_done",
                    "tombstone",
                ],
            ),
            (&self.holds_closed, &["confirmed", "cancelled", "failed", "expired"]),
            (&self.pending_orders, &["produced", "expired"]),
            (&self.owed_releases, &["produced", "expired"]),
        ];
        for (counter, values) in known {
            for value in values {
                counter.with_label_values(&[*value]);
            }
        }
    }

    /// Sets the lag of a partition, in messages and, if it is known, as an age in ms.
    pub(crate) fn set_lag(&self, topic: &str, partition: i32, messages: i64, age_ms: Option<i64>) {
        let labels = [topic, &partition.to_string()];
        self.consumer_lag.with_label_values(&labels).set(messages);
        if let Some(age) = age_ms.and_then(|age| u64::try_from(age).ok()) {
            self.consumer_lag_seconds
                .with_label_values(&labels)
                .set(Duration::from_millis(age).as_secs_f64());
        }
    }

    /// Removes the lag of a partition that this process no longer measures.
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

    /// The metrics of this process's roles in the text format of Prometheus.
    pub(crate) fn exposition(&self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut families = self.registry.gather();
        families.retain(|family| self.measured_by.measures(family.name()));
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics not encoded");
        }
        text
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
