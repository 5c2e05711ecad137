//! The processes of a run.

use std::{collections::VecDeque, fs::File};

use futures::{
    FutureExt as _,
    future::{select_all, try_join_all},
};

use super::{report::Run, role::Role, site::Site};

/// A compensator, workers that may come and go, and an ingest where orders are placed over HTTP.
pub struct Fleet<'a> {
    site: &'a Site,
    log: &'a File,
    compensator: Role,
    ingest: Option<Role>,
    /// The one that joined first is at the front.
    workers: VecDeque<Role>,
    /// What those that have ended used and did.
    run: Run,
}

impl<'a> Fleet<'a> {
    /// Starts a compensator, waits until it has its partitions, and starts the workers.
    pub(super) async fn start(
        site: &'a Site,
        log: &'a File,
        workers: usize,
    ) -> anyhow::Result<Self> {
        let spawn = |role| Role::spawn(role, site, &[], log);
        let mut compensator = spawn("compensator")?;
        compensator.ready().await?;
        let workers = (0..workers).map(|_| spawn("worker")).collect::<anyhow::Result<_>>()?;
        Ok(Self { site, log, compensator, ingest: None, workers, run: Run::default() })
    }

    /// Waits until one of the workers has partitions.
    pub(super) async fn any_ready(&mut self) -> anyhow::Result<()> {
        let ready = self.workers.iter_mut().map(|worker| worker.ready().boxed_local());
        let (first, _, others) = select_all(ready).await;
        drop(others);
        first
    }

    /// Waits until all of the workers have partitions.
    pub(super) async fn all_ready(&mut self) -> anyhow::Result<()> {
        try_join_all(self.workers.iter_mut().map(Role::ready)).await.map(drop)
    }

    /// Starts an ingest. Answers where it takes orders. If it `consumes` the topic of order
    /// requests, waits until it has its partitions.
    pub(super) async fn serve(&mut self, consumes: bool) -> anyhow::Result<String> {
        let mut ingest = Role::spawn("ingest", self.site, &[], self.log)?;
        ingest.ready().await?;
        if consumes {
            ingest.has_partitions().await?;
        }
        let url = format!("http://{}/v1/orders", ingest.http);
        self.ingest = Some(ingest);
        Ok(url)
    }

    /// How many orders have got their final status in the order store.
    pub(super) async fn count_final(&self) -> anyhow::Result<u64> {
        let metrics = self.compensator.metrics().await?;
        let kinds = ["kind=\"completed\"", "kind=\"failed\""];
        let moved: f64 =
            kinds.iter().map(|kind| metrics.sum("stocklock_compensations_total", kind)).sum();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        Ok(moved as u64)
    }

    pub fn count_workers(&self) -> usize {
        self.workers.len()
    }

    /// Starts another worker, and does not wait for it.
    pub fn add_worker(&mut self) -> anyhow::Result<()> {
        self.workers.push_back(Role::spawn("worker", self.site, &[], self.log)?);
        Ok(())
    }

    /// Kills the worker that joined first by SIGKILL. What it measured until then is lost, but for
    /// its use of the machine.
    pub fn kill_oldest_worker(&mut self) -> anyhow::Result<()> {
        if let Some(oldest) = self.workers.pop_front() {
            self.run.add_usage(oldest.name, oldest.usage()?);
        }
        Ok(())
    }

    /// Stops all, and answers what they used and did.
    pub(super) async fn stop(mut self) -> anyhow::Result<Run> {
        for worker in self.workers {
            // One that has just joined may not answer yet.
            if let Ok(metrics) = worker.metrics().await {
                self.run.batches += metrics.sum("stocklock_batch_orders_count", "");
                self.run.batched += metrics.sum("stocklock_batch_orders_sum", "");
            }
            self.run.add_usage(worker.name, worker.usage()?);
            worker.stop().await?;
        }
        for role in std::iter::once(self.compensator).chain(self.ingest) {
            self.run.add_usage(role.name, role.usage()?);
            role.stop().await?;
        }
        Ok(self.run)
    }
}
