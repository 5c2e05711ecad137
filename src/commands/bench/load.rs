//! The two ways to measure the pipeline.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use anyhow::bail;
use chrono::{DateTime, Utc};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    fleet::Fleet,
    placing::{Placing, Via},
    report::Run,
    site::Site,
    stopwatch::Stopwatch,
    workload::Workload,
};
use crate::{domain::OrderId, store::OrderStore};

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Without any order becoming final for so long, a run is given up.
const PATIENCE: Duration = Duration::from_secs(120);

/// What happens to the fleet while it works: called about every 20 ms.
pub type Meanwhile<'a> = &'a dyn Fn(&mut Fleet<'_>) -> anyhow::Result<()>;

pub(super) struct Load<'a> {
    pub(crate) site: &'a Site,
    pub(crate) workload: &'a Workload,
    pub(crate) workers: usize,
    pub(crate) meanwhile: Meanwhile<'a>,
    /// What the roles say.
    pub(crate) log: &'a File,
}

impl Load<'_> {
    /// From a backlog on the topic: the time begins when the first worker has its partitions.
    pub(super) async fn drain(&self, orders: &OrderStore) -> anyhow::Result<(Run, Histogram<u64>)> {
        let counted_from = Utc::now();
        let events = self.site.place(orders, self.workload).await?;
        self.site.publish(&events).await?;
        drop(events);
        let mut fleet = Fleet::start(self.site, self.log, self.workers).await?;
        fleet.any_ready().await?;
        self.finish(fleet, &Stopwatch::start(), orders, counted_from).await
    }

    /// From requests to ingest. The latencies are those of the orders after the time to warm up.
    pub(super) async fn end_to_end(
        &self,
        orders: &OrderStore,
        placing: Placing,
    ) -> anyhow::Result<(Run, Histogram<u64>)> {
        let mut fleet = Fleet::start(self.site, self.log, self.workers).await?;
        fleet.all_ready().await?;
        let url = fleet.serve(placing.via == Via::Kafka).await?;
        let warm_up = placing.rate.map_or(Duration::ZERO, |rate| self.workload.warm_up(rate));
        let (stopwatch, counted_from) = (Stopwatch::start(), Utc::now() + warm_up);
        let placing = placing.place_all(self.site, &url, &self.workload.orders);
        let finishing = self.finish(fleet, &stopwatch, orders, counted_from);
        let ((), finished) = tokio::try_join!(placing, finishing)?;
        Ok(finished)
    }

    /// Waits until all orders are final, and stops the roles.
    async fn finish(
        &self,
        mut fleet: Fleet<'_>,
        stopwatch: &Stopwatch,
        orders: &OrderStore,
        counted_from: DateTime<Utc>,
    ) -> anyhow::Result<(Run, Histogram<u64>)> {
        self.all_final(&mut fleet).await?;
        let (seconds, others) = stopwatch.stop();
        let mut run = fleet.stop().await?;
        run.workload.clone_from(&self.workload.name);
        (run.orders, run.lines) = (self.workload.orders.len(), self.workload.count_lines());
        run.workers = self.workers;
        run.set_rates(seconds, others);
        Ok((run, orders.settle_times(OrderId::first_of(counted_from)).await?))
    }

    async fn all_final(&self, fleet: &mut Fleet<'_>) -> anyhow::Result<()> {
        let style = ProgressStyle::with_template(
            "{bar:40} {pos}/{len} orders final, {per_sec}, {elapsed}",
        )?;
        let progress = ProgressBar::new(self.workload.orders.len() as u64).with_style(style);
        let mut moved_at = Instant::now();
        while progress.position() < self.workload.orders.len() as u64 {
            tokio::time::sleep(LOOK_EVERY).await;
            let moved = fleet.count_final().await?;
            if moved > progress.position() {
                progress.set_position(moved);
                moved_at = Instant::now();
            }
            if moved_at.elapsed() > PATIENCE {
                bail!(
                    "{moved} of {} orders are final, and none became so for {PATIENCE:?}",
                    self.workload.orders.len()
                );
            }
            (self.meanwhile)(fleet)?;
        }
        progress.finish_and_clear();
        Ok(())
    }
}
