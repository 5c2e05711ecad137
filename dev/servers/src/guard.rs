//! A process that watches the worker, which is the process that starts the servers. Whichever of
//! the two is killed, the other ends all that was started.

use std::{
    env,
    process::{Command, ExitCode},
    thread,
};

use anyhow::Context as _;
use nix::{
    sys::{prctl, signal::Signal},
    unistd::getppid,
};
use stocklock_servers::{Identity, Interrupt};

use crate::children;

/// Runs this program again as the worker, and answers its exit status. Passes signals on. When the
/// worker has ended, kills everything that descends from it, except where it succeeded and
/// `leaves_servers`.
pub(crate) fn run(leaves_servers: bool) -> anyhow::Result<ExitCode> {
    children::adopt_orphans()?;
    let signals = Interrupt::on_signals()?;
    let me = std::process::id();
    let mut command = Command::new(env::current_exe()?);
    command.arg(format!("--guarded-by={me}")).args(env::args_os().skip(1));
    let worker = command.spawn().context("this program as a child")?.id().cast_signed();
    let status = loop {
        if let Some(signal) = signals.take()
            && let Some(worker) = Identity::of(worker)
        {
            worker.signal(signal);
        }
        match children::reap()? {
            Some((pid, status)) if pid == worker => break status,
            Some(_orphan) => {}
            None => thread::sleep(children::PAUSE),
        }
    };
    if status != 0 || !leaves_servers {
        children::kill_family(&[])?;
    }
    Ok(ExitCode::from(status))
}

/// Has the kernel send SIGTERM to the worker, which is this process, when its guard dies. Orphans
/// stay with the worker then. Fails if the guard is dead.
pub(crate) fn end_with(guard: u32) -> anyhow::Result<()> {
    children::adopt_orphans()?;
    prctl::set_pdeathsig(Signal::SIGTERM).context("PR_SET_PDEATHSIG")?;
    anyhow::ensure!(getppid().as_raw() == guard.cast_signed(), "the guard {guard} has ended");
    Ok(())
}
