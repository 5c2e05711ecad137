//! What all servers and roles have in common.

use std::{path::PathBuf, process::Command};

use anyhow::Context as _;

use crate::{Lifetime, Patience, Process};

/// The description of a process that answers at an address.
pub trait Service {
    fn name(&self) -> &str;

    /// The file that holds the output of the process.
    fn log(&self) -> PathBuf;

    /// Prepares the data, unless an earlier call did.
    fn prepare(&self, _patience: &Patience) -> anyhow::Result<()> {
        Ok(())
    }

    /// The command that becomes the process, made by [`Lifetime::command`].
    fn command(&self, lifetime: Lifetime) -> Command;

    /// Asks once whether the service answers.
    fn answers(&self) -> bool;
}

/// A service with its process.
#[derive(Debug)]
pub struct Running<S> {
    pub service: S,
    pub process: Process,
    lifetime: Lifetime,
}

impl<S: Service> Running<S> {
    /// Prepares the data of a service, starts it, and waits until it answers.
    pub fn start(service: S, lifetime: Lifetime, patience: &Patience) -> anyhow::Result<Self> {
        let mut running = Self::spawn(service, lifetime, patience)?;
        running.await_ready(patience)?;
        Ok(running)
    }

    /// Prepares the data of a service, and starts it.
    pub fn spawn(service: S, lifetime: Lifetime, patience: &Patience) -> anyhow::Result<Self> {
        let preparing = || format!("preparing {}", service.name());
        service.prepare(patience).with_context(preparing)?;
        let process = launch(&service, lifetime)?;
        Ok(Self { service, process, lifetime })
    }

    /// Waits until the service answers. Fails if its process ends, or the patience does.
    pub fn await_ready(&mut self, patience: &Patience) -> anyhow::Result<()> {
        while !self.service.answers() {
            self.process.require_running()?;
            patience.pause().with_context(|| {
                let (name, log) = (self.service.name(), self.process.log_tail());
                format!("{name} does not answer; the end of its log:\n{log}")
            })?;
        }
        Ok(())
    }

    /// Kills the process if it still runs, starts another on the same data and at the same address,
    /// and waits until it answers.
    pub fn restart(&mut self, patience: &Patience) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process = launch(&self.service, self.lifetime)?;
        self.await_ready(patience)
    }
}

fn launch(service: &impl Service, lifetime: Lifetime) -> anyhow::Result<Process> {
    Process::spawn(service.name(), lifetime, service.command(lifetime), &service.log())
}
