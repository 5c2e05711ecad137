//! What the reference of metrics is written from; part of the tests alone.

use std::cell::RefCell;

use prometheus::{core::Collector, proto::MetricType};

/// A metric that was registered.
#[derive(Debug, Clone)]
pub(crate) struct MadeMetric {
    pub(crate) name: String,
    pub(crate) help: String,
    pub(crate) labels: Vec<String>,
    pub(crate) kind: MetricType,
}

thread_local! {
    static MADE: RefCell<Vec<MadeMetric>> = const { RefCell::new(Vec::new()) };
}

/// Notes a metric that is registered: a registry does not list metrics that have no series yet.
pub(super) fn note(metric: &impl Collector) {
    let families = metric.collect();
    let made = metric.desc().into_iter().zip(families).map(|(desc, family)| MadeMetric {
        name: desc.fq_name.clone(),
        help: desc.help.clone(),
        labels: desc.variable_labels.clone(),
        kind: family.get_field_type(),
    });
    MADE.with_borrow_mut(|all| all.extend(made));
}

/// The metrics that this thread has registered, by name, each once.
pub(crate) fn made_metrics() -> Vec<MadeMetric> {
    let mut made = MADE.with_borrow(Clone::clone);
    made.sort_by(|a, b| a.name.cmp(&b.name));
    made.dedup_by(|a, b| a.name == b.name);
    made
}
