//! Which process is which, as `/proc` shows it.

use std::{collections::BTreeSet, fs, str::FromStr};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

/// One process, for good: the system may give its pid to a later process, but not with the same
/// start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pid: i32,
    /// In clock ticks since the system started.
    started: u64,
}

impl Identity {
    /// The process that has this pid now. `None` if there is none, or only a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = Stat::of(pid)?;
        (stat.state != 'Z').then_some(Self { pid, started: stat.started })
    }

    pub fn pid(self) -> i32 {
        self.pid
    }

    /// Whether the process still runs. A zombie does not.
    pub fn is_running(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal to the process if it still runs.
    pub fn signal(self, signal: Signal) {
        if self.is_running() {
            // It may have ended since the look.
            let _sent = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Sends a signal to all processes of the group that this process leads, if it still runs.
    pub fn signal_group(self, signal: Signal) {
        if self.is_running() {
            let _sent = killpg(Pid::from_raw(self.pid), signal);
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

impl FromStr for Identity {
    type Err = anyhow::Error;

    /// Reads what `Display` writes: `PID START_TIME`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let expected = || format!("expected a pid and a start time, found {text:?}");
        let (pid, started) = text.trim().split_once(' ').with_context(expected)?;
        Ok(Self {
            pid: pid.parse().with_context(expected)?,
            started: started.parse().with_context(expected)?,
        })
    }
}

/// The running processes that descend from this one, without itself. A process that comes into
/// being meanwhile may be missing.
pub fn descendants(ancestor: i32) -> Vec<Identity> {
    let stats = all();
    let mut family = BTreeSet::from([ancestor]);
    loop {
        let before = family.len();
        for stat in &stats {
            if family.contains(&stat.parent) {
                family.insert(stat.pid);
            }
        }
        if family.len() == before {
            break;
        }
    }
    let running = stats.iter().filter(|stat| stat.pid != ancestor && stat.state != 'Z');
    let of_family = running.filter(|stat| family.contains(&stat.pid));
    of_family.map(|stat| Identity { pid: stat.pid, started: stat.started }).collect()
}

/// Whether Ctrl-C in the terminal reaches this process: its group is in the foreground there.
pub fn is_in_foreground() -> bool {
    Stat::of(std::process::id().cast_signed()).is_some_and(|stat| stat.group == stat.foreground)
}

/// The fields of `/proc/PID/stat` that matter here. Source: `proc_pid_stat(5)`.
struct Stat {
    pid: i32,
    state: char,
    parent: i32,
    group: i32,
    /// The process group in the foreground of its terminal, or -1.
    foreground: i32,
    started: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name of the command, in brackets, and may hold anything.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse().ok();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            parent: number(1)?,
            group: number(2)?,
            foreground: number(5)?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

fn all() -> Vec<Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Stat::of).collect()
}
