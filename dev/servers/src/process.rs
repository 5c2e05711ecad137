//! A process that this one started, with the file that holds its output.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::{Identity, Lifetime, Patience, lifetime};

/// Lines of a log that an error shows.
const LOG_LINES_SHOWN: usize = 25;

/// A running or ended child. When it is dropped, its process group is killed if the lifetime is
/// that of the parent.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lifetime: Lifetime,
    log: PathBuf,
}

impl Process {
    /// Spawns what [`Lifetime::command`] made. The process appends all of its output to the log.
    ///
    /// Fails if the log cannot be opened. A program that does not exist ends with status 127, and
    /// its log says so.
    pub fn spawn(
        name: &str,
        lifetime: Lifetime,
        mut command: Command,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let output = fs::File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("the log {} of {name}", log.display()))?;
        command.stdout(output.try_clone()?).stderr(output);
        let child = lifetime::spawn(command).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, lifetime, log: log.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `None` if the process has ended.
    pub fn identity(&self) -> Option<Identity> {
        Identity::of(self.child.id().cast_signed())
    }

    /// Sends a signal. Fails if the process has ended and was awaited.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(self.raw_pid(), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// The exit status, once the process has ended.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("the exit status of {}", self.name))
    }

    /// Waits until the process has ended.
    pub fn await_end(&mut self, patience: &Patience) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            patience.pause().with_context(|| format!("{} did not end", self.name))?;
        }
    }

    /// Ends the process and its group as a crash does. Does nothing if it has ended.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.ended()?.is_none() {
            // A launcher that has not run yet leads no group.
            let _sent = killpg(self.raw_pid(), Signal::SIGKILL);
            self.child.kill()?;
            self.child.wait()?;
        }
        Ok(())
    }

    /// Asks the process to stop, as an orchestrator does. Does nothing if it has ended.
    pub fn ask_to_stop(&mut self) -> anyhow::Result<()> {
        if self.ended()?.is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        Ok(())
    }

    /// Waits until the process has ended, after [`Self::ask_to_stop`]. Kills it and fails if it has
    /// not ended within that time.
    pub fn await_stop(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let stopped = self.await_end(&Patience::new(within));
        if stopped.is_err() {
            self.kill()?;
        }
        stopped
    }

    /// All that the process has written so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }

    /// Fails if the process has ended. The error shows the end of the log.
    pub fn require_running(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.ended()? {
            bail!(
                "{} has ended with {status}; the end of its log:\n{}",
                self.name,
                self.log_tail()
            );
        }
        Ok(())
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::OfParent {
            // Nobody is left to report to.
            let _ended = self.kill();
        }
    }
}
