//! Two compensators with static membership that are killed in turn.

use std::{convert::Infallible, fs::File, time::Duration};

use stocklock::commands::bench::{Role, Site};
use tokio::time::sleep;

const INSTANCES: [&str; 2] = ["one", "two"];

pub(super) struct Compensators<'a> {
    site: &'a Site,
    log: &'a File,
    /// `None` while one is replaced.
    running: [Option<Role>; 2],
    kills: usize,
}

impl<'a> Compensators<'a> {
    /// Starts both, and waits until both have their partitions.
    pub(super) async fn start(site: &'a Site, log: &'a File) -> anyhow::Result<Self> {
        let mut running = [spawn(0, site, log)?, spawn(1, site, log)?];
        for role in &mut running {
            role.ready().await?;
        }
        Ok(Self { site, log, running: running.map(Some), kills: 0 })
    }

    /// Kills one after each interval, and starts it again. Fails if one does not become ready.
    pub(super) async fn kill_in_turn(&mut self, every: Duration) -> anyhow::Result<Infallible> {
        loop {
            sleep(every).await;
            let turn = self.kills % INSTANCES.len();
            // It is killed as it is dropped. Two processes with one instance id would shut each
            // other out of the group.
            self.running[turn] = None;
            self.kills += 1;
            let role = self.running[turn].insert(spawn(turn, self.site, self.log)?);
            role.ready().await?;
        }
    }

    pub(super) fn kills(&self) -> usize {
        self.kills
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        for role in self.running.into_iter().flatten() {
            role.stop().await?;
        }
        Ok(())
    }
}

fn spawn(turn: usize, site: &Site, log: &File) -> anyhow::Result<Role> {
    let instance = ("STOCKLOCK__KAFKA__GROUP_INSTANCE_ID", INSTANCES[turn]);
    Role::spawn("compensator", site, &[instance], log)
}
