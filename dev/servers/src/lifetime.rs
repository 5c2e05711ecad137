//! How long a process may live, and the launcher that sees to it.

use std::{
    ffi::OsStr,
    io,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{LazyLock, mpsc},
    thread,
};

/// Runs its arguments unless the parent, whose pid is `$0`, has died since it asked for the
/// process. The parent-death signal is set by then, so that no moment is left in which nobody
/// notices.
const EXEC_IF_PARENT_LIVES: &str = r#"[ "$PPID" = "$0" ] && exec "$@""#;

/// When a process that this one starts has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// With this process, in whatever way this one ends: the kernel sends SIGKILL.
    OfParent,
    /// When somebody stops it, which may be long after this process: it has a session of its own.
    Detached,
}

impl Lifetime {
    /// A command that becomes the program, under the same pid. Arguments and environment may be
    /// added. It leads a process group of its own, which Ctrl-C in the terminal does not reach.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self {
            Self::OfParent => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "sh", "-c", EXEC_IF_PARENT_LIVES]);
                command.arg(std::process::id().to_string()).process_group(0);
                command
            }
            // It may not lead a group before, or `setsid` would have to fork.
            Self::Detached => Command::new("setsid"),
        };
        command.arg(program).stdin(Stdio::null());
        command
    }
}

/// Spawns on a thread that lives as long as this process. The kernel sends the parent-death signal
/// when the *thread* that spawned the child ends. Source: `PR_SET_PDEATHSIG(2const)`.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in queue {
                // The caller waits, so that somebody takes the child.
                let _taken = reply.send(command.spawn());
            }
        });
        jobs
    });
    let (reply, child) = mpsc::channel();
    let gone = |_| io::Error::other("the thread that spawns has ended");
    SPAWNER
        .send((command, reply))
        .map_err(|_| io::Error::other("the thread that spawns has ended"))?;
    child.recv().map_err(gone)?
}
