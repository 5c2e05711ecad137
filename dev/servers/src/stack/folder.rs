//! The folder of a stack.
//!
//! - `stack.conf`: which servers there are, and their ports; it marks the folder as a stack
//! - `pids/NAME`: pid and start time of a server
//! - `logs/NAME`: the output of a server
//! - `NAME/`: the data of a server

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::sys::{
    signal::Signal,
    statfs::{FsType, TMPFS_MAGIC, statfs},
};
use stocklock_servers::Identity;

use super::conf::{Conf, ServerName};
use crate::say;

/// The path of a unix socket has room for 107 bytes, with what a server puts behind the folder.
const MAX_PATH_BYTES: usize = 85;
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Source: linux/magic.h.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
const DISK: &str = "/var/tmp";

pub(super) fn is_stack(dir: &Path) -> bool {
    Conf::exists(dir)
}

/// The folder that `STOCKLOCK_STACK_DIR` names.
pub(super) fn from_environment() -> Option<PathBuf> {
    env::var_os("STOCKLOCK_STACK_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

/// The folder of an existing stack: the given one, else that of the environment, else that of the
/// last `up`. `None` if there is no stack.
pub(super) fn find(dir: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    let named = dir.map(Path::to_owned).or_else(from_environment);
    let found = match named {
        Some(named) => Some(named),
        None => fs::read_to_string(state_file()?).ok().map(|text| text.trim().into()),
    };
    Ok(found.filter(|dir| is_stack(dir)))
}

/// The same. Fails if there is no stack.
pub(super) fn required(dir: Option<&Path>) -> anyhow::Result<PathBuf> {
    find(dir)?.with_context(|| no_stack(dir))
}

pub(super) fn no_stack(dir: Option<&Path>) -> String {
    let dir = dir.map(Path::to_owned).or_else(from_environment);
    let place = dir.map(|dir| format!(" in {}", dir.display()));
    format!("no stack is up{}", place.unwrap_or_default())
}

/// A new folder on a real disk: the tests also look at what a commit costs there.
pub(super) fn create() -> anyhow::Result<PathBuf> {
    let mut base = env::var_os("TMPDIR").map_or_else(|| DISK.into(), PathBuf::from);
    if is_in_memory(&base)? {
        base = DISK.into();
    }
    let created = tempfile::Builder::new().prefix("stocklock-stack.").tempdir_in(&base);
    Ok(created.with_context(|| format!("a folder in {}", base.display()))?.keep())
}

/// Takes a folder for a new stack. Fails if it holds other files, or its path is too long.
pub(super) fn claim(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("the folder {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let shown = dir.display();
    ensure!(fs::read_dir(&dir)?.next().is_none(), "{shown} is not empty, and not a stack of ours");
    let length = dir.as_os_str().len();
    ensure!(length <= MAX_PATH_BYTES, "the path is too long for unix sockets: {shown}");
    if is_in_memory(&dir)? {
        say(format!(
            "note: {shown} is in memory, not on a disk: commits are faster than they should be"
        ));
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
    Ok(dir)
}

/// Removes all that is in a folder.
pub(super) fn clear(dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Records the process of a server.
pub(super) fn record(dir: &Path, server: ServerName, process: Identity) -> anyhow::Result<()> {
    Ok(fs::write(pid_file(dir, server), format!("{process}\n"))?)
}

/// The recorded process of a server.
pub(super) fn recorded(dir: &Path, server: ServerName) -> Option<Identity> {
    fs::read_to_string(pid_file(dir, server)).ok()?.parse().ok()
}

/// Stops the servers of a stack and removes its folder.
pub(super) fn stop_and_remove(dir: &Path) -> anyhow::Result<()> {
    if is_stack(dir) {
        stop(dir)?;
    }
    if let Err(error) = fs::remove_dir_all(dir) {
        say(format!("could not remove all of {}: {error}", dir.display()));
    }
    Ok(())
}

/// Asks all servers to stop, and kills those that do not within 20 s.
pub(super) fn stop(dir: &Path) -> anyhow::Result<()> {
    let conf = Conf::load(dir)?;
    let names = || {
        let names: Vec<_> = conf.running(dir).map(|(server, _)| server.to_string()).collect();
        names.join(" ")
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        conf.running(dir).for_each(|(_, process)| process.signal_group(signal));
        let begun = Instant::now();
        while conf.running(dir).next().is_some() && begun.elapsed() < STOP_WITHIN {
            thread::sleep(Duration::from_millis(20));
        }
        if conf.running(dir).next().is_none() {
            return Ok(());
        }
        if signal == Signal::SIGTERM {
            say(format!("did not stop within {} s, killing: {}", STOP_WITHIN.as_secs(), names()));
        }
    }
    bail!("cannot be stopped: {}", names())
}

/// Remembers the folder of the last `up`.
pub(super) fn remember(dir: &Path) -> anyhow::Result<()> {
    let file = state_file()?;
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(fs::write(file, format!("{}\n", std::path::absolute(dir)?.display()))?)
}

/// Forgets the folder, if it is that of the last `up`.
pub(super) fn forget(dir: &Path) -> anyhow::Result<()> {
    let file = state_file()?;
    if fs::read_to_string(&file).is_ok_and(|text| Path::new(text.trim()) == dir) {
        fs::remove_file(file)?;
    }
    Ok(())
}

fn state_file() -> anyhow::Result<PathBuf> {
    let base = env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let base = base.or_else(home).context("neither XDG_STATE_HOME nor HOME is set")?;
    Ok(base.join("stocklock/stack"))
}

fn pid_file(dir: &Path, server: ServerName) -> PathBuf {
    dir.join("pids").join(server.to_string())
}

fn is_in_memory(dir: &Path) -> anyhow::Result<bool> {
    let kind = statfs(dir).with_context(|| dir.display().to_string())?.filesystem_type();
    Ok(kind == TMPFS_MAGIC || kind == RAMFS_MAGIC)
}
