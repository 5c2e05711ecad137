//! `stocklock bench`: a seeded load through the real pipeline, and beside it what the databases can do at all.

mod bare;
mod ceiling;
mod fleet;
mod load;
mod report;
mod role;
mod scratch;
mod stopwatch;
mod workload;

use std::{fs::File, ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use chrono::Utc;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;

use self::{
    load::Load,
    report::Run,
    scratch::Scratch,
    workload::{Shape, Workload},
};
use super::{Answer, Output};
use crate::{
    config::{Config, Layers, LockStrategy},
    domain::{MAX_LINES, OrderId},
    lifecycle::Shutdown,
    telemetry::Metrics,
    verify::{Checks, verify},
    wire::{OrderEventCodec, OrderStatusCodec},
};

const SHORTEST_CHURN: Duration = Duration::from_millis(500);
const SETTLE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Orders of a run
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    orders: u32,
    /// Products that the orders are drawn from
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    products: u32,
    /// The exponent of Zipf's law; 0 is uniform
    #[arg(long, default_value_t = 0.0, value_parser = exponent)]
    zipf: f64,
    /// Lines of an order
    #[arg(long, default_value = "1..3", value_name = "MIN..MAX", value_parser = range)]
    lines: RangeInclusive<usize>,
    /// Orders from a file instead, a request body a line; those that are invalid are left out
    #[arg(long, value_name = "FILE", conflicts_with_all = ["products", "zipf", "lines"])]
    baskets: Option<PathBuf>,
    /// Share of the demand that the stock can serve
    #[arg(long, default_value_t = 0.95, value_parser = share)]
    fill: f64,
    /// The same seed draws the same orders
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// drain: from a backlog on the topic; end-to-end: from the HTTP request. Both: to the final status in the order store
    #[arg(long, value_enum, default_value_t = Mode::Drain)]
    mode: Mode,
    /// The lock strategies that are measured
    #[arg(long, value_enum, default_value_t = Strategies::Both)]
    strategy: Strategies,
    /// Most orders of a transaction, instead of `worker.batch_max` and `compensator.batch_max`
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch_max: Option<u32>,
    /// Worker processes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: u8,
    /// How often another worker joins, or one is killed by SIGKILL, in turn
    #[arg(long, value_name = "INTERVAL", value_parser = interval)]
    churn: Option<Duration>,
    /// Orders a second that are placed whatever the answers (end-to-end); without it, 256 clients place them one after another
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Orders that are in both stores before a run begins, refused
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000_000))]
    history: u32,
    /// Runs of each strategy
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=100))]
    runs: u8,
    /// Does not measure what the databases can do at all, nor, with `--rate`, what the commits and Kafka hops take without stocklock
    #[arg(long)]
    skip_ceiling: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Drain,
    EndToEnd,
}

impl Mode {
    fn as_str(self) -> &'static str {
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

impl Strategies {
    fn each(self) -> &'static [LockStrategy] {
        match self {
            Self::Row => &[LockStrategy::Row],
            Self::Redlock => &[LockStrategy::Redlock],
            Self::Both => &[LockStrategy::Row, LockStrategy::Redlock],
        }
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

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if interval < SHORTEST_CHURN {
        Err(format!("expected {SHORTEST_CHURN:?} or more"))
    } else {
        Ok(interval)
    }
}

pub(super) async fn run(
    args: &BenchArgs,
    layers: &Layers,
    output: Output,
) -> anyhow::Result<Answer> {
    let config = Config::resolve(layers)?;
    let batch_max = args.batch_max.map_or(config.worker.batches.max, |max| max as usize);
    let bench = Bench {
        args,
        layers,
        workload: args.workload()?,
        batch_max,
        stop: Shutdown::on_signals()?,
    };
    let bounds = if args.skip_ceiling { Bounds::default() } else { bench.bounds().await? };
    let mut verified = true;
    for _ in 0..args.runs {
        for strategy in args.strategy.each() {
            let run = bench.run(*strategy, &bounds).await;
            let run = run.with_context(|| format!("strategy {}", strategy.as_str()))?;
            verified &= run.verified;
            run.print(output);
        }
    }
    Ok(if verified { Answer::Done } else { Answer::No })
}

impl BenchArgs {
    fn workload(&self) -> anyhow::Result<Workload> {
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
}

struct Bench<'a> {
    args: &'a BenchArgs,
    layers: &'a Layers,
    workload: Workload,
    batch_max: usize,
    stop: Shutdown,
}

/// What no worker can surpass on these servers, where it was measured.
#[derive(Default)]
struct Bounds {
    ceiling_orders_per_s: Option<f64>,
    /// Of an open loop.
    bare_micros: Option<Histogram<u64>>,
}

impl Bench<'_> {
    async fn bounds(&self) -> anyhow::Result<Bounds> {
        Ok(match self.args.rate {
            Some(rate) if self.args.mode == Mode::EndToEnd => {
                let bare_micros = Some(self.bare(rate).await.context("the bare way")?);
                Bounds { bare_micros, ceiling_orders_per_s: None }
            }
            _ => Bounds {
                ceiling_orders_per_s: Some(self.ceiling().await.context("the ceiling")?),
                bare_micros: None,
            },
        })
    }

    /// The orders' times without stocklock, microseconds.
    async fn bare(&self, rate: u32) -> anyhow::Result<Histogram<u64>> {
        self.on_scratch(&[], async |scratch| {
            let (orders, stock) = scratch.stores(&Metrics::new()?)?;
            scratch.import(&stock, &self.workload.stock(self.args.fill)).await?;
            let counted_from = Utc::now() + self.workload.warm_up(rate);
            bare::run(scratch, &orders, &stock, &self.workload.orders, rate).await?;
            Ok(orders.settle_times(OrderId::first_of(counted_from)).await?)
        })
        .await
    }

    /// Orders a second that the databases can do, by the number of connections that serve them best.
    async fn ceiling(&self) -> anyhow::Result<f64> {
        let mut best: f64 = 0.0;
        for connections in ceiling::CONNECTIONS {
            // One more, which ends others.
            let pool_max = (connections + 1).to_string();
            let pools =
                ["order_store.pool_max", "stock_store.pool_max"].map(|key| (key, pool_max.clone()));
            let measured = self.on_scratch(&pools, async |scratch| {
                let (orders, stock) = scratch.stores(&Metrics::new()?)?;
                scratch.import(&stock, &self.workload.stock(self.args.fill)).await?;
                let events = scratch.place(&orders, &self.workload).await?;
                ceiling::measure(&orders, &stock, &events, self.batch_max, connections).await
            });
            best = best.max(measured.await?);
        }
        Ok(best)
    }

    async fn run(&self, strategy: LockStrategy, bounds: &Bounds) -> anyhow::Result<Run> {
        let settings = [
            ("lock.strategy", strategy.as_str().to_owned()),
            ("worker.batch_max", self.batch_max.to_string()),
            ("compensator.batch_max", self.batch_max.to_string()),
        ];
        let log = tempfile::Builder::new()
            .prefix("stocklock-bench-")
            .suffix(".log")
            .tempfile()
            .context("a log file")?;
        match self
            .on_scratch(&settings, async |scratch| self.measure(scratch, log.as_file()).await)
            .await
        {
            Ok(mut run) => {
                run.strategy = strategy.as_str();
                run.batch_max = self.batch_max;
                run.compare_with(bounds);
                Ok(run)
            }
            Err(error) => {
                Err(error.context(format!("what the roles said is in {}", log.keep()?.1.display())))
            }
        }
    }

    async fn measure(&self, scratch: &Scratch, log: &File) -> anyhow::Result<Run> {
        let (orders, stock) = scratch.stores(&Metrics::new()?)?;
        scratch.import(&stock, &self.workload.stock(self.args.fill)).await?;
        scratch.add_history(&orders, &stock, self.args.history).await?;
        let load = Load {
            scratch,
            workload: &self.workload,
            workers: self.args.workers.into(),
            churn: self.args.churn,
            log,
        };
        let (mut run, latencies) = match self.args.mode {
            Mode::Drain => load.drain(&orders).await?,
            Mode::EndToEnd => load.end_to_end(&orders, self.args.rate).await?,
        };
        run.mode = self.args.mode.as_str();
        run.history = self.args.history;
        run.tell_latencies(&latencies);
        let report = verify(&Checks {
            orders: &orders,
            stock: &stock,
            config: &scratch.config,
            events: Arc::new(OrderEventCodec::new()?),
            statuses: Arc::new(OrderStatusCodec::new()?),
            without: &[],
            settle: SETTLE,
        })
        .await?;
        run.verified = report.violations.is_empty()
            && report.unsettled.is_empty()
            && report.unchecked.is_empty();
        Ok(run)
    }

    /// Does something on databases and topics of its own, which are removed however it ends, unless by force.
    async fn on_scratch<T>(
        &self,
        settings: &[(&str, String)],
        work: impl AsyncFnOnce(&Scratch) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let scratch = Scratch::create(self.layers, settings).await?;
        let done = tokio::select! {
            done = work(&scratch) => done,
            () = self.stop.requested() => Err(anyhow!("interrupted")),
        };
        scratch.remove().await?;
        done
    }
}
