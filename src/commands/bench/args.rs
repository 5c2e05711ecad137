//! What load is put on the pipeline, as arguments of a command line.

use std::{ops::RangeInclusive, path::PathBuf};

use clap::{Args, ValueEnum, value_parser};

use super::{
    placing::{Identity, Placing, Via},
    workload::{Shape, Workload},
};
use crate::{
    config::{Config, LockStrategy},
    domain::MAX_LINES,
};

/// The load of a run. `stocklock bench` and the laboratory share it.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Orders of a run
    #[arg(long, default_value_t = 50_000, value_parser = value_parser!(u32).range(1..=10_000_000))]
    orders: u32,
    /// Products that the orders are drawn from
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    products: u32,
    /// The exponent of Zipf's law; 0 is uniform
    #[arg(long, default_value_t = 0.0, value_parser = exponent)]
    zipf: f64,
    /// Lines of an order
    #[arg(long, default_value = "1..3", value_name = "MIN..MAX", value_parser = range)]
    lines: RangeInclusive<usize>,
    /// Read the orders from a file instead, a request body a line; invalid ones are left out
    #[arg(long, value_name = "FILE", conflicts_with_all = ["products", "zipf", "lines"])]
    baskets: Option<PathBuf>,
    /// Share of the demand that the stock can serve
    #[arg(long, default_value_t = 0.95, value_parser = share)]
    pub fill: f64,
    /// The same seed draws the same orders
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// drain begins with a backlog on the topic, end-to-end with the request to ingest. Both end
    /// with the final status in the order store
    #[arg(long, value_enum, default_value_t = Mode::Drain)]
    pub mode: Mode,
    /// The lock strategies that are measured
    #[arg(long, value_enum, default_value_t = Strategies::Both)]
    strategy: Strategies,
    /// Most orders of a transaction, instead of `worker.batch_max` and `compensator.batch_max`
    #[arg(long, value_parser = value_parser!(u32).range(1..=100_000))]
    batch_max: Option<u32>,
    /// Worker processes
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u8).range(1..=64))]
    pub workers: u8,
    /// Orders a second that are placed whatever the answers (end-to-end). Without it 256 clients
    /// place one order after another, or 4 streams have 500 lines in flight each, or a producer
    /// has 4,000 records in flight
    #[arg(long, value_parser = value_parser!(u32).range(1..=100_000))]
    pub rate: Option<u32>,
    /// How ingest would know a repeated request again (end-to-end)
    #[arg(long, value_enum, default_value_t = Identity::None)]
    pub(super) identity: Identity,
    /// How the orders come to ingest (end-to-end)
    #[arg(long, value_enum, default_value_t = Via::Requests)]
    pub(super) via: Via,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Drain,
    EndToEnd,
}

impl Mode {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::EndToEnd => "end-to-end",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Strategies {
    Row,
    Redlock,
    Both,
}

impl LoadArgs {
    /// Draws the orders, or reads them. Fails where the file cannot be read, or has no valid order.
    pub fn workload(&self) -> anyhow::Result<Workload> {
        match &self.baskets {
            Some(file) => Workload::read(file, self.orders as usize),
            None => Workload::generate(&Shape {
                orders: self.orders as usize,
                products: self.products as usize,
                zipf: self.zipf,
                lines: self.lines.clone(),
                seed: self.seed,
            }),
        }
    }

    pub(super) fn placing(&self) -> Placing {
        Placing { via: self.via, identity: self.identity, rate: self.rate }
    }

    /// The strategies to measure, in this order.
    pub fn strategies(&self) -> &'static [LockStrategy] {
        match self.strategy {
            Strategies::Row => &[LockStrategy::Row],
            Strategies::Redlock => &[LockStrategy::Redlock],
            Strategies::Both => &[LockStrategy::Row, LockStrategy::Redlock],
        }
    }

    /// Most orders of a transaction.
    pub fn batch_max(&self, config: &Config) -> usize {
        self.batch_max.map_or(config.worker.batches.max, |max| max as usize)
    }

    /// What the roles of a run are configured with.
    pub fn settings(&self, config: &Config, strategy: LockStrategy) -> Vec<(&'static str, String)> {
        let batch_max = self.batch_max(config).to_string();
        let mut settings = vec![
            ("lock.strategy", strategy.as_str().to_owned()),
            ("worker.batch_max", batch_max.clone()),
            ("compensator.batch_max", batch_max),
        ];
        if self.via == Via::Kafka {
            settings.push(("ingest.intake", "true".to_owned()));
        }
        settings
    }
}

fn range(text: &str) -> Result<RangeInclusive<usize>, String> {
    let bounds =
        text.split_once("..").and_then(|(min, max)| Some((min.parse().ok()?, max.parse().ok()?)));
    match bounds {
        Some((min, max)) if (1..=max).contains(&min) && max <= MAX_LINES => Ok(min..=max),
        _ => Err(format!("expected MIN..MAX within 1..{MAX_LINES}")),
    }
}

fn exponent(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|n| (0.0..=5.0).contains(n))
        .ok_or_else(|| "expected a number from 0 to 5".into())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|n| (0.0..=100.0).contains(n))
        .ok_or_else(|| "expected a number from 0 to 100".into())
}
