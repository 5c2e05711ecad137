//! `stocklock-lab`: runs of `stocklock bench` on scratch databases, beside what the databases can
//! do without stocklock, and under churn. `dev/bench` drives it.
//!
//! `stocklock-lab holds` measures how holds end while the compensators die.
//!
//! It prints a JSON object a run on standard output. Exit status: 0 all runs were verified, 1 one
//! was not, 2 a run failed.

mod bare;
mod ceiling;
mod churn;
mod history;
mod holds;
mod report;
mod scratch;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use chrono::Utc;
use clap::Parser;
use hdrhistogram::Histogram;
use stocklock::{
    commands::bench::{Fleet, LoadArgs, Mode, Site, Workload},
    config::{Config, Layers, LockStrategy},
    domain::OrderId,
    error_text::with_causes,
    lifecycle::Shutdown,
    telemetry::Metrics,
};

use self::{
    churn::Churn,
    report::{Before, LabRun},
    scratch::on_scratch,
};

const MIN_CHURN: Duration = Duration::from_millis(500);

/// Measures stocklock on scratch databases, beside what the databases can do without it
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Lab {
    #[command(subcommand)]
    command: Option<Command>,
    /// A TOML file of settings, as for stocklock
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Set one key, over the file and the environment
    #[arg(long, value_name = "SECTION.KEY=VALUE", global = true)]
    set: Vec<String>,
    /// The stocklock to measure; without it, the one beside this program
    #[arg(long, value_name = "FILE", global = true)]
    binary: Option<PathBuf>,
    #[command(flatten)]
    load: LoadArgs,
    /// How often another worker joins, or one is killed by SIGKILL, in turn
    #[arg(long, value_name = "INTERVAL", value_parser = interval)]
    churn: Option<Duration>,
    /// Refused orders that are in both stores before a run begins
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000_000))]
    history: u32,
    /// Holds of other orders that are open during a run
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=10_000_000))]
    open_holds: u32,
    /// Runs of each strategy
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=100))]
    runs: u8,
    /// Do not measure what the databases can do at all, nor, with `--rate`, what the commits and
    /// Kafka hops take without stocklock
    #[arg(long)]
    skip_ceiling: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Places many orders with short holds, and kills the compensators in turn meanwhile
    Holds(holds::HoldsArgs),
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if interval < MIN_CHURN { Err(format!("expected {MIN_CHURN:?} or more")) } else { Ok(interval) }
}

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(run(&Lab::parse())).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("stocklock-lab: {}", with_causes(&*error));
            ExitCode::from(2)
        }
    }
}

/// Whether all runs were verified.
async fn run(lab: &Lab) -> anyhow::Result<bool> {
    let layers = Layers::read(lab.config.as_deref(), Layers::variables(), &lab.set);
    if let Some(Command::Holds(args)) = &lab.command {
        let (binary, stop) = (lab.binary()?, Shutdown::on_signals()?);
        let work = async |site: &Site| holds::run(args, site).await;
        let run = on_scratch(&layers, &[], &binary, &stop, work).await?;
        println!("{}", serde_json::to_string(&run)?);
        return Ok(run.is_good());
    }
    let bench = Bench {
        lab,
        config: Config::resolve(&layers)?,
        layers,
        binary: lab.binary()?,
        workload: lab.load.workload()?,
        stop: Shutdown::on_signals()?,
    };
    let bounds = if lab.skip_ceiling { Bounds::default() } else { bench.bounds().await? };
    let mut all_verified = true;
    for _ in 0..lab.runs {
        for strategy in lab.load.strategies() {
            let run = bench.run(*strategy, &bounds).await;
            let run = run.with_context(|| format!("strategy {strategy:?}"))?;
            all_verified &= run.is_verified();
            println!("{}", serde_json::to_string(&run)?);
        }
    }
    Ok(all_verified)
}

impl Lab {
    fn binary(&self) -> anyhow::Result<PathBuf> {
        let beside = || Ok(std::env::current_exe()?.with_file_name("stocklock"));
        self.binary.clone().map_or_else(beside, Ok)
    }
}

struct Bench<'a> {
    lab: &'a Lab,
    config: Config,
    layers: Layers,
    binary: PathBuf,
    workload: Workload,
    stop: Shutdown,
}

/// What no worker can surpass on these servers, where it was measured.
#[derive(Default)]
pub(crate) struct Bounds {
    /// Orders a second that the databases can do.
    pub(crate) ceiling_orders_per_s: Option<f64>,
    /// Microseconds from an order's arrival to its final status without stocklock, of an open loop.
    pub(crate) bare_micros: Option<Histogram<u64>>,
}

impl Bench<'_> {
    async fn bounds(&self) -> anyhow::Result<Bounds> {
        let load = &self.lab.load;
        Ok(match (load.rate, load.mode) {
            (Some(rate), Mode::EndToEnd) => Bounds {
                bare_micros: Some(self.bare(rate).await.context("the bare way")?),
                ceiling_orders_per_s: None,
            },
            _ => Bounds {
                bare_micros: None,
                ceiling_orders_per_s: Some(self.ceiling().await.context("the ceiling")?),
            },
        })
    }

    async fn bare(&self, rate: u32) -> anyhow::Result<Histogram<u64>> {
        self.on_scratch(&[], async |site| {
            let (orders, stock) = site.stores(&Metrics::new()?)?;
            site.import(&stock, &self.workload.stock(self.lab.load.fill)).await?;
            let counted_from = Utc::now() + self.workload.warm_up(rate);
            bare::run(site, &orders, &stock, &self.workload.orders, rate).await?;
            Ok(orders.settle_times(OrderId::first_of(counted_from)).await?)
        })
        .await
    }

    /// Orders a second, with the number of connections that serves the databases best.
    async fn ceiling(&self) -> anyhow::Result<f64> {
        let mut best: f64 = 0.0;
        for connections in ceiling::CONNECTIONS {
            // One more, which ends the statements of the others.
            let pool_max = (connections + 1).to_string();
            let pools =
                ["order_store.pool_max", "stock_store.pool_max"].map(|key| (key, pool_max.clone()));
            let measured = self.on_scratch(&pools, async |site| {
                let (orders, stock) = site.stores(&Metrics::new()?)?;
                site.import(&stock, &self.workload.stock(self.lab.load.fill)).await?;
                let events = site.place(&orders, &self.workload).await?;
                let batch_max = self.lab.load.batch_max(&self.config);
                ceiling::measure(&orders, &stock, &events, batch_max, connections).await
            });
            best = best.max(measured.await?);
        }
        Ok(best)
    }

    async fn run(&self, strategy: LockStrategy, bounds: &Bounds) -> anyhow::Result<LabRun> {
        let load = &self.lab.load;
        let settings = load.settings(&self.config, strategy);
        self.on_scratch(&settings, async |site| {
            history::add_refused(site, self.lab.history).await.context("history")?;
            history::add_open_holds(site, self.lab.open_holds).await.context("open holds")?;
            let churn = self.lab.churn.map(|interval| Churn::new(interval, load.workers.into()));
            let meanwhile =
                |fleet: &mut Fleet<'_>| churn.as_ref().map_or(Ok(()), |c| c.go_on(fleet));
            let run = load.measure(site, &self.workload, strategy, &meanwhile).await?;
            let counts = churn.map(Churn::counts).unwrap_or_default();
            let before = Before { history: self.lab.history, open_holds: self.lab.open_holds };
            Ok(LabRun::new(run, before, counts, bounds))
        })
        .await
    }

    async fn on_scratch<T>(
        &self,
        settings: &[(&'static str, String)],
        work: impl AsyncFnOnce(&Site) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        on_scratch(&self.layers, settings, &self.binary, &self.stop, work).await
    }
}
