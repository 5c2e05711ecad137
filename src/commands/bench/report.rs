use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{super::Output, role::Usage};

/// What one run gave.
#[derive(Debug, Default, Serialize)]
pub struct Run {
    pub(crate) mode: &'static str,
    pub(crate) identity: &'static str,
    pub(crate) via: &'static str,
    pub(crate) workload: String,
    pub(crate) strategy: &'static str,
    pub(crate) orders: usize,
    pub(crate) lines: usize,
    pub(crate) batch_max: usize,
    pub(crate) workers: usize,
    pub(crate) seconds: f64,
    pub orders_per_s: f64,
    pub(crate) lines_per_s: f64,
    pub(crate) batches_per_s: f64,
    pub(crate) mean_batch: f64,
    /// Of the workers that were there at the end: how many batches, and how many orders in them.
    #[serde(skip)]
    pub(crate) batches: f64,
    #[serde(skip)]
    pub(crate) batched: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub p99_ms: f64,
    pub(crate) max_ms: f64,
    /// Of the process that had the highest.
    pub(crate) peak_rss_mib: f64,
    pub(crate) peak_rss_mib_by_role: BTreeMap<&'static str, f64>,
    pub(crate) cpu_seconds_per_1000_orders: BTreeMap<&'static str, f64>,
    /// Of other programs on this machine, the servers among them, by name.
    pub(crate) cpu_seconds_per_1000_orders_of_others: BTreeMap<String, f64>,
    pub verified: bool,
}

impl Run {
    /// Takes the seconds that all orders took, and the CPU seconds that other programs used in
    /// them.
    #[expect(clippy::cast_precision_loss, reason = "counts of a bench")]
    pub(super) fn set_rates(&mut self, seconds: f64, others: BTreeMap<String, f64>) {
        let orders = self.orders as f64;
        self.seconds = round(seconds, 3);
        self.orders_per_s = round(orders / seconds, 1);
        self.lines_per_s = round(self.lines as f64 / seconds, 1);
        self.batches_per_s = round(self.batches / seconds, 1);
        self.mean_batch = round(self.batched / self.batches.max(1.0), 1);
        self.cpu_seconds_per_1000_orders_of_others = others;
        let ours = self.cpu_seconds_per_1000_orders.values_mut();
        for cpu in ours.chain(self.cpu_seconds_per_1000_orders_of_others.values_mut()) {
            *cpu = round(*cpu / orders * 1000.0, 4);
        }
    }

    /// Adds what a process of a role has used; the CPU seconds until [`Run::set_rates`] are those
    /// of all orders.
    pub(super) fn add_usage(&mut self, role: &'static str, usage: Usage) {
        let peak = self.peak_rss_mib_by_role.entry(role).or_default();
        *peak = round(peak.max(usage.peak_rss_mib), 1);
        self.peak_rss_mib = self.peak_rss_mib.max(*peak);
        *self.cpu_seconds_per_1000_orders.entry(role).or_default() += usage.cpu_seconds;
    }

    /// Takes the orders' times from acceptance to their final status, microseconds.
    pub(super) fn set_latencies(&mut self, micros: &Histogram<u64>) {
        self.p50_ms = millis(micros.value_at_quantile(0.5));
        self.p95_ms = millis(micros.value_at_quantile(0.95));
        self.p99_ms = millis(micros.value_at_quantile(0.99));
        self.max_ms = millis(micros.max());
    }

    pub(super) fn print(&self, output: Output) {
        match output {
            Output::Json => match serde_json::to_string(self) {
                Ok(line) => println!("{line}"),
                Err(error) => tracing::error!(%error, "the run does not serialize"),
            },
            Output::Text => self.print_table(),
        }
    }

    fn print_table(&self) {
        println!("{} under {}: {}", self.mode, self.strategy, self.workload);
        println!("  {:>10} orders, {} lines, in {} s", self.orders, self.lines, self.seconds);
        println!("  {:>10} orders/s, {} lines/s", self.orders_per_s, self.lines_per_s);
        println!("  {:>10} batches/s of {} orders", self.batches_per_s, self.mean_batch);
        println!(
            "  {:>10} ms p50, {} p95, {} p99, {} max",
            self.p50_ms, self.p95_ms, self.p99_ms, self.max_ms
        );
        for (role, cpu) in &self.cpu_seconds_per_1000_orders {
            let peak = self.peak_rss_mib_by_role.get(role).copied().unwrap_or_default();
            println!("  {cpu:>10} CPU seconds a thousand orders, {peak} MiB at most: {role}");
        }
        for (program, cpu) in &self.cpu_seconds_per_1000_orders_of_others {
            println!("  {cpu:>10} CPU seconds a thousand orders: {program}");
        }
        println!("  {}", if self.verified { "verified" } else { "NOT VERIFIED" });
    }
}

pub fn millis(micros: u64) -> f64 {
    round(f64::from(u32::try_from(micros).unwrap_or(u32::MAX)) / 1000.0, 2)
}

pub fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}
