//! The children of this process, and those that it adopts.

use std::{iter, thread, time::Duration};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use stocklock_servers::{Identity, descendants};

/// Between two looks at the children.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// Makes this process the "subreaper" of all that it starts: a descendant whose parent has ended
/// becomes its child, so that none is lost. Source: `PR_SET_CHILD_SUBREAPER(2const)`.
pub(crate) fn adopt_orphans() -> anyhow::Result<()> {
    prctl::set_child_subreaper(true).context("PR_SET_CHILD_SUBREAPER")
}

/// The pid and the exit status of a child that has ended; the status is as a shell reports it.
pub(crate) fn reap() -> anyhow::Result<Option<(i32, u8)>> {
    match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(pid, status)) => {
            // The kernel keeps its last eight bits.
            Ok(Some((pid.as_raw(), u8::try_from(status)?)))
        }
        Ok(WaitStatus::Signaled(pid, signal, _)) => {
            Ok(Some((pid.as_raw(), u8::try_from(128 + signal as i32)?)))
        }
        Ok(_) | Err(Errno::ECHILD) => Ok(None),
        Err(error) => Err(error).context("waiting for a child"),
    }
}

/// All running descendants of this process, without those that are to stay.
pub(crate) fn family(staying: &[Identity]) -> Vec<Identity> {
    let mut family = descendants(std::process::id().cast_signed());
    family.retain(|process| !staying.contains(process));
    family
}

/// Kills all descendants of this process, without those that are to stay.
pub(crate) fn kill_family(staying: &[Identity]) -> anyhow::Result<()> {
    loop {
        iter::from_fn(|| reap().transpose()).collect::<anyhow::Result<Vec<_>>>()?;
        // A process may start others until it is dead, so look again.
        let left = family(staying);
        if left.is_empty() {
            return Ok(());
        }
        for process in left {
            process.signal(Signal::SIGKILL);
        }
        thread::sleep(PAUSE);
    }
}
