//! What a run gave, beside the bounds.

use serde::Serialize;
use stocklock::commands::bench::{Run, millis, round};

use crate::{Bounds, churn::Counts};

/// What is in the stores before a run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Before {
    /// Refused orders.
    pub(crate) history: u32,
    pub(crate) open_holds: u32,
}

/// A run of `stocklock bench`, and what only the laboratory knows of it.
#[derive(Debug, Serialize)]
pub(crate) struct LabRun {
    #[serde(flatten)]
    run: Run,
    #[serde(flatten)]
    before: Before,
    joined: usize,
    killed: usize,
    ceiling_orders_per_s: Option<f64>,
    ratio_to_ceiling: Option<f64>,
    /// What the commits and the Kafka hops take without stocklock at the same rate.
    bare_p50_ms: Option<f64>,
    bare_p99_ms: Option<f64>,
    ratio_to_bare_p99: Option<f64>,
}

impl LabRun {
    pub(crate) fn new(run: Run, before: Before, counts: Counts, bounds: &Bounds) -> Self {
        let ceiling = bounds.ceiling_orders_per_s;
        let bare =
            |quantile| Some(millis(bounds.bare_micros.as_ref()?.value_at_quantile(quantile)));
        let bare_p99_ms = bare(0.99);
        Self {
            before,
            joined: counts.joined,
            killed: counts.killed,
            ceiling_orders_per_s: ceiling.map(|ceiling| round(ceiling, 1)),
            ratio_to_ceiling: ceiling.map(|ceiling| round(run.orders_per_s / ceiling, 3)),
            bare_p50_ms: bare(0.5),
            bare_p99_ms,
            ratio_to_bare_p99: bare_p99_ms.map(|bare| round(run.p99_ms / bare, 2)),
            run,
        }
    }

    pub(crate) fn is_verified(&self) -> bool {
        self.run.verified
    }
}
