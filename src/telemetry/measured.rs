/// The roles of a process. A role exposes no metric that only other roles measure: its zero would
/// look like a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a process may have any of them")]
pub(crate) struct MeasuredBy {
    pub(crate) ingest: bool,
    /// Ingest consumes the topic of order requests, too.
    pub(crate) intake: bool,
    pub(crate) worker: bool,
    pub(crate) compensator: bool,
}

// Prefixes of names. A metric with another prefix belongs to every role.
const OF_INGEST: [&str; 6] = [
    "stocklock_orders_ingested_",
    "stocklock_outbox_",
    "stocklock_pending_",
    "stocklock_http_",
    "stocklock_releases_owed",
    "stocklock_owed_releases_",
];
const OF_WORKER: [&str; 7] = [
    "stocklock_level",
    "stocklock_orders_decided_",
    "stocklock_order_latency_",
    "stocklock_batch_",
    "stocklock_lock_",
    "stocklock_stale_writes_",
    "stocklock_redis_",
];
const OF_COMPENSATOR: [&str; 4] = [
    "stocklock_compensations_",
    "stocklock_holds_open",
    "stocklock_hold_expiry_",
    "stocklock_confirmations_too_late_",
];
const OF_ORDER_CHANGERS: [&str; 1] = ["stocklock_holds_closed_"];
const OF_PURGERS: [&str; 1] = ["stocklock_retention_"];
const OF_CONSUMERS: [&str; 5] = [
    "stocklock_rebalances_",
    "stocklock_consumer_recreations_",
    "stocklock_poll_errors_",
    "stocklock_dead_letters_",
    "stocklock_lanes_stopped",
];

impl MeasuredBy {
    pub(crate) const ALL: Self =
        Self { ingest: true, intake: true, worker: true, compensator: true };

    /// Whether one of these roles measures the metric of this name.
    pub(crate) fn measures(self, name: &str) -> bool {
        let lists: [(&[&str], bool); 6] = [
            (&OF_INGEST, self.ingest),
            (&OF_WORKER, self.worker),
            (&OF_COMPENSATOR, self.compensator),
            (&OF_ORDER_CHANGERS, self.ingest || self.compensator),
            (&OF_PURGERS, self.worker || self.compensator),
            (&OF_CONSUMERS, self.intake || self.worker || self.compensator),
        ];
        let mut owners =
            lists.iter().filter(|(names, _)| names.iter().any(|begin| name.starts_with(begin)));
        owners.next().is_none_or(|(_, is_measured)| *is_measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_exposed_by_the_roles_that_measure_it() {
        let none = MeasuredBy { ingest: false, intake: false, worker: false, compensator: false };
        let ingest = MeasuredBy { ingest: true, ..none };
        let with_intake = MeasuredBy { intake: true, ..ingest };
        let worker = MeasuredBy { worker: true, ..none };

        for (name, by_roles) in [
            ("stocklock_outbox_pending", [true, true, false]),
            ("stocklock_releases_owed", [true, true, false]),
            ("stocklock_stale_writes_rejected_total", [false, false, true]),
            ("stocklock_compensations_total", [false, false, false]),
            ("stocklock_dead_letters_total", [false, true, true]),
            ("stocklock_retention_deleted_total", [false, false, true]),
            ("stocklock_retries_total", [true, true, true]),
            ("process_cpu_seconds_total", [true, true, true]),
        ] {
            assert_eq!(
                [ingest, with_intake, worker].map(|by| by.measures(name)),
                by_roles,
                "{name}"
            );
            assert!(MeasuredBy::ALL.measures(name), "{name}");
        }
    }
}
