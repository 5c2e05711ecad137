//! Many short holds while the compensators die: does each hold end as it should, and in time?
//!
//! Clients place orders with and without a hold at a fixed rate, and confirm some of the holds.
//! Meanwhile two compensators with static membership are killed by SIGKILL in turn, and start
//! again. The run is good if all of this holds:
//!
//! - Every answer is one that the API documents for a healthy ingest; none is a 503.
//! - Every order is what its client was told, and no order is missing.
//! - Every hold that nobody confirmed has ended as `EXPIRED`: never early, and in time.
//! - `stocklock verify` would exit with 0.

mod clients;
mod compensators;
mod ends;

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Args, value_parser};
use serde::Serialize;
use stocklock::{
    commands::bench::{Role, Site, round},
    domain::ProductId,
    telemetry::Metrics,
};
use tokio::time::{Instant, sleep};

use self::{
    clients::{Answers, Clients},
    compensators::Compensators,
    ends::Ends,
};

/// Units of each product. No order is refused.
const PLENTY: i64 = 1_000_000_000;
/// All of them are in memory at the end.
const MAX_HOLDS: i64 = 10_000_000;
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The load of a run with holds.
#[derive(Debug, Args)]
pub(crate) struct HoldsArgs {
    /// Orders with a hold
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u32).range(1..=MAX_HOLDS))]
    holds: u32,
    /// How long they hold their stock, in seconds; each length is as likely
    #[arg(long, default_value = "5..20", value_name = "MIN..MAX", value_parser = seconds)]
    seconds: RangeInclusive<u32>,
    /// Orders with a hold that are placed a second, whatever the answers
    #[arg(long, default_value_t = 500, value_parser = value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Orders without a hold that are placed for each order with one
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u8).range(0..=10))]
    others: u8,
    /// Of a hundred holds, how many a client tries to confirm
    #[arg(long, default_value_t = 50, value_parser = value_parser!(u8).range(0..=100))]
    confirmed: u8,
    /// How often one of the compensators is killed by SIGKILL
    #[arg(long, default_value = "20s", value_name = "INTERVAL", value_parser = super::interval)]
    kill_every: Duration,
    /// The most time from the end of a hold until its order is cancelled
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = super::interval)]
    late_max: Duration,
    /// The same seed draws the same orders
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

/// What a run gave.
#[derive(Debug, Serialize)]
pub(crate) struct HoldsRun {
    holds: u32,
    others: u32,
    seconds: f64,
    /// Holds that a client confirmed, and those that nobody confirmed in time.
    confirmed: usize,
    expired: usize,
    /// From the end of a hold until its order was cancelled: the shortest and the longest time.
    earliest_s: f64,
    latest_s: f64,
    /// Compensators that were killed.
    kills: usize,
    /// Answers by request and status.
    answers: BTreeMap<String, u32>,
    /// What was not as it should be, the first few.
    wrong: Vec<String>,
    pub(crate) verified: bool,
}

/// One run on a site. Fails if a role does not start or has ended, if a request got no answer, or
/// if orders stay open.
pub(crate) async fn run(args: &HoldsArgs, site: &Site) -> anyhow::Result<HoldsRun> {
    let log = tempfile::Builder::new().prefix("stocklock-holds-").suffix(".log").tempfile()?;
    let done = run_logged(args, site, log.as_file()).await;
    match done {
        Ok(run) if run.is_good() => Ok(run),
        done => {
            eprintln!("what the roles logged is in {}", log.keep()?.1.display());
            done
        }
    }
}

async fn run_logged(
    args: &HoldsArgs,
    site: &Site,
    log: &std::fs::File,
) -> anyhow::Result<HoldsRun> {
    let (orders, stock) = site.stores(&Metrics::new()?)?;
    let units = clients::products().map(|id| Ok((ProductId::parse(&id)?, PLENTY)));
    site.import(&stock, &units.collect::<anyhow::Result<_>>()?).await?;
    let mut worker = Role::spawn("worker", site, &[], log)?;
    let mut compensators = Compensators::start(site, log).await?;
    worker.ready().await?;
    let mut ingest = Role::spawn("ingest", site, &[], log)?;
    ingest.ready().await?;
    let begun = Instant::now();
    let clients = Clients::new(args, format!("http://{}/v1/orders", ingest.http))?;
    let mut ends = Ends::open(site).await?;
    let open_until = Duration::from_secs((*args.seconds.end()).into()) + args.late_max;
    let traffic = async {
        let answers = clients.place_all().await?;
        await_all_closed(&mut ends, open_until * 2).await?;
        anyhow::Ok(answers)
    };
    let answers: Answers = tokio::select! {
        answers = traffic => answers?,
        failed = compensators.kill_in_turn(args.kill_every) => match failed? {},
    };
    let seconds = begun.elapsed().as_secs_f64();
    let kills = compensators.kills();
    let found = ends.judge(&answers, args.late_max).await?;
    // Ingest publishes what a killed compensator has left.
    let verified = site.is_verified(&orders, &stock).await?;
    ingest.stop().await?;
    worker.stop().await?;
    compensators.stop().await?;
    Ok(HoldsRun {
        holds: args.holds,
        others: args.holds * u32::from(args.others),
        seconds: round(seconds, 1),
        confirmed: found.confirmed,
        expired: found.expired,
        earliest_s: found.earliest_s,
        latest_s: found.latest_s,
        kills,
        wrong: answers.unexpected().into_iter().chain(found.wrong).collect(),
        answers: answers.by_status,
        verified,
    })
}

impl HoldsRun {
    pub(crate) fn is_good(&self) -> bool {
        self.verified && self.wrong.is_empty()
    }
}

/// Waits until no order is pending or reserved. Fails after `limit`.
async fn await_all_closed(ends: &mut Ends, limit: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let open = ends.count_open().await.context("the open orders")?;
        if open == 0 {
            return Ok(());
        }
        if begun.elapsed() > limit {
            bail!("{open} orders are still open, {limit:?} after the last request");
        }
        sleep(LOOK_EVERY).await;
    }
}

fn seconds(text: &str) -> Result<RangeInclusive<u32>, String> {
    let bounds =
        text.split_once("..").and_then(|(min, max)| Some((min.parse().ok()?, max.parse().ok()?)));
    match bounds {
        Some((min, max)) if (1..=max).contains(&min) && max <= 3_600 => Ok(min..=max),
        _ => Err("expected MIN..MAX within 1..3600".to_owned()),
    }
}
