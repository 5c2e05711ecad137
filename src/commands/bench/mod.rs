//! `stocklock bench`: a seeded load through the real pipeline, measured from outside.
//!
//! It works on the stores that it is told to use, and never removes them. The parts are public for
//! the laboratory in `dev/lab`, which adds scratch databases, ceilings and churn.

mod args;
mod fleet;
mod load;
mod placing;
mod producing;
mod report;
mod role;
mod site;
mod stopwatch;
mod workload;

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;

use self::load::Load;
pub use self::{
    args::{LoadArgs, Mode},
    fleet::Fleet,
    load::Meanwhile,
    report::{Run, millis, round},
    role::Role,
    site::Site,
    workload::Workload,
};
use super::{Answer, Output, process};
use crate::{
    config::{Config, Layers, LockStrategy},
    lifecycle::Shutdown,
    store::{OrderStore, StockStore},
    telemetry::Metrics,
    verify::{Checks, Progress, verify},
    wire::{OrderEventCodec, OrderStatusCodec},
};

/// How long the verification waits for what is in flight.
const SETTLE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Use stores that hold orders or products already, for instance those of an earlier bench. The
    /// products of the load are set to its quantities
    #[arg(long)]
    reuse_stores: bool,
}

/// Runs the load once for each strategy on the configured stores, and prints what each run gave.
pub(super) async fn run(
    args: &BenchArgs,
    layers: &Layers,
    output: Output,
) -> anyhow::Result<Answer> {
    let config = Config::resolve(layers)?;
    let workload = args.load.workload()?;
    let stop = Shutdown::on_signals()?;
    let binary = std::env::current_exe()?;
    fail_unless_usable(&config, args.reuse_stores).await?;
    let mut verified = true;
    for &strategy in args.load.strategies() {
        let settings = args.load.settings(&config, strategy);
        let site = Site::open(layers, &settings, &binary).await?;
        let run = site
            .use_for(&stop, async |site| {
                args.load.measure(site, &workload, strategy, &|_| Ok(())).await
            })
            .await
            .with_context(|| format!("strategy {}", strategy.as_str()))?;
        verified &= run.verified;
        run.print(output);
    }
    Ok(if verified { Answer::Done } else { Answer::No })
}

impl LoadArgs {
    /// One run: imports the stock, puts the load on the roles, and verifies the stores.
    ///
    /// Fails if a role ends, or if no order becomes final for two minutes. The error names the file
    /// with the log of the roles.
    pub async fn measure(
        &self,
        site: &Site,
        workload: &Workload,
        strategy: LockStrategy,
        meanwhile: Meanwhile<'_>,
    ) -> anyhow::Result<Run> {
        let log = tempfile::Builder::new().prefix("stocklock-bench-").suffix(".log").tempfile();
        let log = log.context("a log file")?;
        let load =
            Load { site, workload, workers: self.workers.into(), meanwhile, log: log.as_file() };
        match self.put(&load).await {
            Ok(run) => Ok(Run {
                mode: self.mode.as_str(),
                identity: self.identity.as_str(),
                via: self.via.as_str(),
                strategy: strategy.as_str(),
                batch_max: site.config.worker.batches.max,
                ..run
            }),
            Err(error) => {
                let path = log.keep()?.1;
                Err(error.context(format!("what the roles logged is in {}", path.display())))
            }
        }
    }

    async fn put(&self, load: &Load<'_>) -> anyhow::Result<Run> {
        let site = load.site;
        let (orders, stock) = site.stores(&Metrics::new()?)?;
        site.import(&stock, &load.workload.stock(self.fill)).await?;
        let (mut run, latencies) = match self.mode {
            Mode::Drain => load.drain(&orders).await?,
            Mode::EndToEnd => load.end_to_end(&orders, self.placing()).await?,
        };
        run.set_latencies(&latencies);
        run.verified = site.is_verified(&orders, &stock).await?;
        Ok(run)
    }
}

impl Site {
    /// Whether `stocklock verify` would exit with 0. Orders in flight have a minute to settle.
    ///
    /// Fails if a store or the broker cannot be read.
    pub async fn is_verified(
        &self,
        orders: &OrderStore,
        stock: &StockStore,
    ) -> anyhow::Result<bool> {
        let report = verify(&Checks {
            orders,
            stock,
            config: &self.config,
            events: Arc::new(OrderEventCodec::new()?),
            statuses: Arc::new(OrderStatusCodec::new()?),
            without: &[],
            settle: SETTLE,
            since: None,
            progress: Progress::hidden(),
        })
        .await?;
        let is_verified = report.violations.is_empty()
            && report.unsettled.is_empty()
            && report.unchecked.is_empty();
        if !is_verified {
            tracing::warn!(?report, "not verified");
        }
        Ok(is_verified)
    }

    /// Does `work` until it ends or a signal stops it, and closes the site either way.
    pub async fn use_for<T>(
        self,
        stop: &Shutdown,
        work: impl AsyncFnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let done = tokio::select! {
            done = work(&self) => done,
            () = stop.requested() => Err(anyhow::anyhow!("interrupted")),
        };
        self.close().await?;
        done
    }
}

/// Fails if a store holds anybody's data, before anything is changed: orders or products, or, if
/// the stores may be reused, orders that are pending and would be counted as the bench's.
async fn fail_unless_usable(config: &Config, may_reuse: bool) -> anyhow::Result<()> {
    let metrics = process::metrics()?;
    let orders = process::open_order_store(config, &metrics)?;
    let stock = process::open_stock_store(config, &metrics)?;
    if may_reuse {
        if orders.has_pending_orders().await? {
            bail!("order_store.url: orders are pending, and would be counted as the bench's");
        }
        return Ok(());
    }
    for (key, has_rows) in [
        ("order_store.url", orders.has_orders().await?),
        ("stock_store.url", stock.has_products().await?),
    ] {
        if has_rows {
            bail!("{key}: the store is not empty; name an empty one, or add --reuse-stores");
        }
    }
    Ok(())
}
